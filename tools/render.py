"""``make render`` (``python -m tools.render``): execute the lessons afresh and store what a static page shows of them.

It refuses one whose cells contradict themselves (`tools.checks`), and one that was made while others used the machine.
Then write what `tools.tables` does, and draw the pictures of the README unless lessons were named. A rendered notebook
depends on its source and the versions installed, not on when or where it was made.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from moe_lessons.analysis.busy import seconds_of_others
from tools import pictures, tables
from tools.checks import Check, checks_after

MOST_BUSY = 0.15  # of one core: more than that of others, and a time that a lesson shows means little
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"


def main(argv: Sequence[str] = ()) -> int:
    """Render the named notebooks, or all of ``notebooks/``; 1 if one was refused."""
    parser = argparse.ArgumentParser("python -m tools.render", description=main.__doc__)
    parser.add_argument("notebooks", nargs="*", help="default: all of the course")
    said = "although others use the machine; then store no cell that shows times"
    parser.add_argument("--busy", action="store_true", help=said)
    arguments = parser.parse_args(argv)
    notebooks = arguments.notebooks
    paths = [Path(name) for name in notebooks] or sorted(Path("notebooks").glob("*.ipynb"))
    if not paths:
        print("no notebooks/*.ipynb here; run this at the root of the course", file=sys.stderr)
    refused = 0
    for path in paths:
        print(f"{path} …", end=" ", flush=True)
        try:
            render(path, arguments.busy)
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


def render(path: Path, busy: bool = False) -> None:
    """Execute the notebook in its static form, in a fresh kernel, and write it back.

    An error is raised, and the file left alone, when a cell fails, hangs, ends the kernel or shows a live widget, when
    one contradicts itself, and, unless busy, when other programs took more than MOST_BUSY of a core meanwhile.
    """
    notebook = nbformat.read(path, as_version=4)
    start, before = time.monotonic(), others()
    execute(notebook, path.parent, checks=checks_after(notebook))
    share = (others() - before) / (time.monotonic() - start)
    if not busy and share > MOST_BUSY:
        raise ValueError(f"other programs took {share:.2f} of a core meanwhile, where {MOST_BUSY} is allowed (--busy)")
    if not busy and share != share:
        print("(what others use of this machine is unknown)", end=" ", flush=True)
    for cell in notebook.cells:
        if any(WIDGET in output.get("data", {}) for output in cell.get("outputs", [])):
            raise ValueError(f"a live widget is shown although MOE_LESSONS_STATIC is 1, by the cell\n{cell.source}")
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def others() -> float:
    """The seconds that other programs have computed, or nan where the system does not say."""
    try:
        return seconds_of_others()
    except OSError:
        return float("nan")


def execute(
    notebook: nbformat.NotebookNode, folder: Path, patience: int = 300, checks: Mapping[int, list[Check]] = {}
) -> None:
    """Execute a notebook as if it lay in this folder, in its static form, in a fresh kernel.

    patience: seconds for a cell; a lesson takes less than a minute, this only ends what hangs. checks: made when
    that cell has run. ValueError, with a sentence for each that fails.
    """
    complaints = []

    async def compare(cell: nbformat.NotebookNode, cell_index: int, **_) -> None:
        due = checks.get(cell_index, [])
        asked = {str(i): check.expression for i, check in enumerate(due)}
        if not asked:
            return
        reply = await client.kc.execute("", silent=True, user_expressions=asked, reply=True, timeout=patience)
        for check, found in zip(due, reply["content"]["user_expressions"].values()):
            if found["status"] == "ok":
                complaints.append(check.complaint(float(found["data"]["text/plain"])))
            else:
                complaints.append(f"cell [{check.cell}]: {check.expression} is a {found['ename']}: {found['evalue']}")

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
        on_cell_executed=compare,
    )
    try:
        client.execute(env=environment, cleanup_kc=True)  # the kernel ends with it
    except Exception:
        if hasattr(client, "_async_cleanup_kernel_future"):  # Ctrl-C or TERM, at which nbclient ends the kernel
            raise KeyboardInterrupt from None
        raise
    if any(complaints):
        raise ValueError("; ".join(filter(None, complaints)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
