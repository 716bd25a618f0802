"""Each lesson with its solutions put in: every exercise is right, and nothing else changes.

Run are the cells of the exercises and those that they need, in their order. All other cells use nothing that the
learner writes (a test holds this), so they do what they do in the open lesson, which nbval runs as a whole.
"""

import symtable
from pathlib import Path

import nbformat
import pytest
import torch
from IPython.core.inputtransformer2 import TransformerManager

from moe_lessons import exercises
from moe_lessons.support.show import show_source

TAG = "exercise:"
to_python = TransformerManager().transform_cell
LESSONS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def no_print_options_are_left():
    """A lesson sets how tensors are printed; here it runs in the process of the tests."""
    yield
    torch.set_printoptions(profile="default")


def exercise_of(cell):
    names = [tag.removeprefix(TAG) for tag in cell.metadata.get("tags", []) if tag.startswith(TAG)]
    return getattr(exercises, names[0]) if names else None


def names_in(source: str) -> tuple[set[str], set[str]]:
    """Give the global names that a cell binds, and those that it uses, also within its functions."""
    bound, used = set(), set()
    tables = [symtable.symtable(to_python(source), "cell", "exec")]  # without magics
    for table in tables:  # grows
        tables += table.get_children()
        is_module = table.get_type() == "module"
        for symbol in table.get_symbols():
            if is_module and (symbol.is_assigned() or symbol.is_imported()):
                bound.add(symbol.get_name())
            if symbol.is_referenced() and (is_module or symbol.is_global()):
                used.add(symbol.get_name())
    return bound, used


def needed(cells: list, names: set[str]) -> list:
    """Of the code cells those that bind the names, and what these need in turn, in their order."""
    found = []
    for cell in reversed(cells):
        bound, used = names_in(cell.source)
        if bound & names:
            names |= used
            found.insert(0, cell)
    return found


def code_of(path: Path) -> list:
    """Give the code cells of a lesson whose learner has written each solution."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for cell in cells:
        if exercise := exercise_of(cell):
            cell.source = str(show_source(exercise.answer))
    return cells


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_every_solution_is_right(path):
    cells, found, names = code_of(path), [], {}
    for i, cell in enumerate(cells):
        if exercise := exercise_of(cell):
            used = names_in(cell.source)[1] | {exercise.name}
            for own in [*needed(cells[:i], used), cell]:
                exec(to_python(own.source), names)
            found.append(eval(cells[i + 1].source.splitlines()[0], names))
    assert [check.status for check in found] == ["right"] * len(found), found


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_no_other_cell_uses_what_the_learner_writes(path):
    cells = code_of(path)
    own = {exercise.answer_name for cell in cells if (exercise := exercise_of(cell))}
    for before, cell in zip([None, *cells], cells):
        if before is None or not exercise_of(before):  # a check cell
            assert not names_in(cell.source)[1] & own, cell.source
