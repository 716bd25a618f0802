"""``python -m moe_lessons render``: execute the lessons afresh and store what a static page shows of them.

A rendered notebook depends on its source and the versions installed, not on when or where it was made: no
widget state, no timings, no random cell ids, no version of Python.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

CELL_TIMEOUT = 300  # seconds; a lesson takes less than a minute, this only ends what hangs


class RenderError(RuntimeError):
    """A notebook whose outputs must not be stored."""


def main(notebooks: Sequence[str] = ()) -> int:
    """Render the named notebooks, or all of ``notebooks/``; 1 if one was refused."""
    paths = [Path(name) for name in notebooks] or sorted(Path("notebooks").glob("*.ipynb"))
    if not paths:
        print("no notebooks/*.ipynb here; run this at the root of the course", file=sys.stderr)
        return 1
    refused = 0
    for path in paths:
        try:
            render(path)
            print(f"{path}: rendered", flush=True)
        except (OSError, RenderError) as error:
            refused += 1
            print(f"{path}: {error}; the file is unchanged", file=sys.stderr, flush=True)
    return 1 if refused else 0


def render(path: Path) -> None:
    """Execute the notebook in its static form and write it back, or raise RenderError and leave it alone."""
    path = Path(path)
    notebook = read(path)
    execute(notebook, path.parent, static=True)
    tidy(notebook)
    text = nbformat.writes(notebook) + "\n"
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def read(path: Path) -> nbformat.NotebookNode:
    """The notebook, in the newest format. A cell without an id is named by its place, not at random."""
    text = path.read_text(encoding="utf-8")
    try:
        raw = json.loads(text)
        if raw["nbformat"] == 4:
            raw["nbformat_minor"] = max(raw["nbformat_minor"], 5)  # the first with ids
            taken = {cell.get("id") for cell in raw["cells"]}
            for i, cell in enumerate(raw["cells"]):
                cell.setdefault("id", f"cell-{i}" if f"cell-{i}" not in taken else f"cell-{i}-unnamed")
        return nbformat.reads(json.dumps(raw), as_version=4)
    except (ValueError, KeyError, TypeError) as error:
        raise RenderError(f"not a notebook ({type(error).__name__}: {error})") from error


def execute(notebook: nbformat.NotebookNode, folder: Path, *, static: bool, timeout=CELL_TIMEOUT) -> None:
    """Run every cell of `notebook` in place, in a fresh kernel of this environment that stands in `folder`.

    In static form every view shows pictures only; in live form it shows its widgets.
    Raises RenderError, naming the cell, when one fails, hangs for `timeout` seconds or ends the kernel.
    """
    not_passed_on = ("MOE_LESSONS_STATIC", "MPLBACKEND")  # the form is asked for; plots go into the notebook
    environment = {name: value for name, value in os.environ.items() if name not in not_passed_on}
    if static:
        environment["MOE_LESSONS_STATIC"] = "1"
    # With no folder to look in, the only kernel is this very Python, whatever else is registered here.
    kernel = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    begun = []
    client = NotebookClient(
        notebook,
        km=kernel,
        timeout=timeout,
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--log-level=ERROR"],
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
        on_cell_execute=lambda cell, cell_index: begun.append(cell_index),
    )
    try:
        client.execute(env=environment, cleanup_kc=True)  # the kernel ends with it
    except CellExecutionError as error:
        raise RenderError(f"{cell_name(notebook, begun)} raised {error.ename}: {error.evalue}") from error
    except CellTimeoutError as error:
        raise RenderError(f"{cell_name(notebook, begun)} ran longer than {timeout} s") from error
    except DeadKernelError as error:
        raise RenderError(f"{cell_name(notebook, begun)} ended the kernel") from error


def cell_name(notebook: nbformat.NotebookNode, begun: list[int]) -> str:
    """The last of the cells that were begun, in words: its place among the code cells and its first line."""
    cell = notebook.cells[begun[-1]]
    number = sum(c.cell_type == "code" for c in notebook.cells[: begun[-1] + 1])
    first_line = cell.source.partition("\n")[0]
    return f"code cell {number} ({first_line!r})"


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Remove what varies from one execution to the next, and refuse what a static page cannot show."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    notebook.metadata["language_info"] = {"name": "python"}
    for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), start=1):
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            if output.output_type == "error":
                raise RenderError(f"code cell {number} shows an error, {output.ename}: {output.evalue}")
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                raise RenderError(f"code cell {number} shows a live widget although MOE_LESSONS_STATIC is 1")
