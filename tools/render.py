"""``make render`` (``python -m tools.render``): execute the lessons afresh and store what a static page shows of them.

Then write what `tools.tables` does, and draw the pictures of the README unless lessons were named. A rendered notebook
depends on its source and the versions installed, not on when or where it was made.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from tools import pictures, tables

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"


def main(argv: Sequence[str] = ()) -> int:
    """Render the named notebooks, or all of ``notebooks/``; 1 if one was refused."""
    parser = argparse.ArgumentParser("python -m tools.render", description=main.__doc__)
    parser.add_argument("notebooks", nargs="*", help="default: all of the course")
    notebooks = parser.parse_args(argv).notebooks
    paths = [Path(name) for name in notebooks] or sorted(Path("notebooks").glob("*.ipynb"))
    if not paths:
        print("no notebooks/*.ipynb here; run this at the root of the course", file=sys.stderr)
    refused = 0
    for path in paths:
        print(f"{path} …", end=" ", flush=True)
        try:
            render(path)
            print("rendered", flush=True)
        except KeyboardInterrupt:
            print("is unchanged: interrupted")
            return 130
        except Exception as error:  # whatever it is, the next notebook may be sound
            refused += 1
            print(f"is unchanged: {error}", flush=True)
    if paths and not notebooks:
        pictures.main()
    if paths:
        tables.main()
    return 1 if refused or not paths else 0


def render(path: Path) -> None:
    """Execute the notebook in its static form, in a fresh kernel, and write it back.

    An error is raised, and the file left alone, when a cell fails, hangs, ends the kernel or shows a live widget.
    """
    notebook = nbformat.read(path, as_version=4)
    execute(notebook, path.parent)
    for cell in notebook.cells:
        if any(WIDGET in output.get("data", {}) for output in cell.get("outputs", [])):
            raise ValueError(f"a live widget is shown although MOE_LESSONS_STATIC is 1, by the cell\n{cell.source}")
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def execute(notebook: nbformat.NotebookNode, folder: Path, patience: int = 300) -> None:
    """Execute a notebook as if it lay in this folder, in its static form, in a fresh kernel.

    patience: seconds for a cell; a lesson takes less than a minute, this only ends what hangs.
    """
    environment = {**os.environ, "MOE_LESSONS_STATIC": "1"}
    environment.pop("MPLBACKEND", None)  # plots go into the notebook
    # With no folder to look in, the only kernel is this very Python, whatever else is registered here.
    kernel = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = NotebookClient(
        notebook,
        km=kernel,
        timeout=patience,
        extra_arguments=["--log-level=CRITICAL"],
        resources={"metadata": {"path": str(folder)}},
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
    )
    try:
        client.execute(env=environment, cleanup_kc=True)  # the kernel ends with it
    except Exception:
        if hasattr(client, "_async_cleanup_kernel_future"):  # Ctrl-C or TERM, at which nbclient ends the kernel
            raise KeyboardInterrupt from None
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
