"""Every lesson as it is stored reads well on a static page. (nbval runs it, and compares what it shows with this.)"""

import ast
import re
from pathlib import Path

import nbformat
import pytest
import torch
from nbval.plugin import get_sanitize_patterns

from moe_lessons import exercises
from moe_lessons.exercises import EXERCISES
from moe_lessons.support.show import show_source
from tests.cells import names_in, needed, to_python
from tools.render import WIDGET

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
LESSONS = [path for path in NOTEBOOKS if path.name[0].isdigit()]  # the course page is none
MAX_LINES, MAX_CLASS_LINES = 15, 30
MAX_CELLS, MAX_WORDS, MAX_CODE = 30, 900, 80
TAG = "exercise:"
assert LESSONS, "there is no lesson"


def exercise_of(cell):
    names = [tag.removeprefix(TAG) for tag in cell.metadata.get("tags", []) if tag.startswith(TAG)]
    return getattr(exercises, names[0]) if names else None


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def lesson(request) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


@pytest.fixture
def code_cells(lesson):
    return [cell for cell in lesson.cells if cell.cell_type == "code"]


def test_every_code_cell_was_executed_and_none_is_long(code_cells):
    assert code_cells
    for cell in code_cells:
        assert cell.execution_count is not None, f"never executed, run `make render`:\n{cell.source}"
        limit = MAX_CLASS_LINES if re.search("^class ", cell.source, re.M) else MAX_LINES
        assert len(cell.source.splitlines()) <= limit, f"more than {limit} lines:\n{cell.source}"


def test_a_static_page_shows_no_widget_no_error_and_no_warning(lesson, code_cells):
    outputs = [output for cell in code_cells for output in cell.outputs]
    assert WIDGET not in kinds(outputs) and "widgets" not in lesson.metadata
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


def kinds(outputs) -> set[str]:
    return {kind for output in outputs for kind in output.get("data", {})}


def test_what_to_notice_is_tagged_with_a_claim(lesson):
    for cell in lesson.cells:
        if cell.cell_type == "markdown" and "what to notice" in cell.source.lower():
            tags = cell.metadata.get("tags", [])
            assert any(tag.startswith("claim:") for tag in tags), f"no claim: tag on the cell\n{cell.source}"


def main_path(lesson) -> str:
    """Give the words of the lesson: without what is folded and the addresses of links, up to the quiz."""
    text = "\n\n".join(cell.source for cell in lesson.cells if cell.cell_type == "markdown")
    text = re.split(r"^#+ .*(?:check yourself|going further)", text, flags=re.I | re.M)[0]
    text = re.sub(r"^\[!\[.*", "", text, flags=re.M)  # badges
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"<details.*?</details>", "", text, flags=re.S))


def test_a_lesson_is_read_in_half_an_hour(lesson):
    """Its main path ends at the quiz; imports, records, questions, exercises and their checks are no code to read."""
    starts = [i for i, cell in enumerate(lesson.cells) if re.match("#+ .*check yourself", cell.source, re.I)]
    path = lesson.cells[: starts[0]] if starts else lesson.cells
    written = [exercise_of(cell) is not None for cell in path]
    passed = [own or "hide-input" in cell.metadata.get("tags", ()) for cell, own in zip(path, written)]
    read = [cell for cell, over in zip(path, passed) if not over and not re.search(r"\.check\(\w+\)$", cell.source)]
    asks = [cell for cell in read if re.search(r"^\w+ = \w*Prediction\(", cell.source, re.M)]
    own = [cell for cell in read if cell.cell_type == "code" and cell not in asks]
    code = [line for cell in own for line in cell.source.splitlines() if line.strip()]
    assert len(read) <= MAX_CELLS
    assert len(re.findall(r"\w[\w'’.,-]*", main_path(lesson))) <= MAX_WORDS
    assert len(code) <= MAX_CODE and sum(written) <= 2
    assert len(asks) <= 2
    assert sum("Quiz(" in cell.source for cell in lesson.cells) <= 1


def test_each_exercise_stands_in_its_lesson_once_and_each_lesson_shows_pictures():
    found = []
    for path in LESSONS:
        cells = nbformat.read(path, as_version=4).cells
        found += [f"{path.stem.split('_')[0]}.{exercise.name}" for exercise in map(exercise_of, cells) if exercise]
        assert "image/png" in kinds([output for cell in cells for output in cell.get("outputs", [])]), path
    assert sorted(found) == sorted(exercise.key for exercise in EXERCISES)


def test_an_exercise_can_be_written_checked_and_asked_about(lesson):
    for i, cell in enumerate(lesson.cells):
        if not (exercise := exercise_of(cell)):
            continue
        written, asked = (ast.parse(str(source)).body[0] for source in (cell.source, show_source(exercise.answer)))
        assert written.name == exercise.answer_name and ast.unparse(written).endswith("...")
        arguments = [getattr(node, "args", None) for node in (written, asked)]
        assert ast.dump(arguments[0] or ast.parse("")) == ast.dump(arguments[1] or ast.parse(""))
        assert lesson.cells[i + 1].source == f"{exercise.name}.check({exercise.answer_name})"
        before = "\n".join(before.source for before in lesson.cells[:i] if before.cell_type == "markdown")
        assert re.findall(r"^### Exercise (★+)(?!★)", before, re.M)[-1] == "★" * exercise.stars, exercise


def test_no_cell_takes_the_name_of_an_exercise(lesson, code_cells):
    own = {exercise.name for cell in lesson.cells if (exercise := exercise_of(cell))}
    for cell in code_cells:
        assert "moe_lessons.exercises" in cell.source or not names_in(cell.source)[0] & own, cell.source


def test_nbval_overlooks_the_digits_of_a_measurement_and_nothing_else():
    def sanitized(text: str) -> str:
        for pattern, replacement in get_sanitize_patterns((Path(__file__).parent / "sanitize.cfg").read_text()):
            text = re.sub(pattern, replacement, text)
        return text

    for one, other in (("loss 0.87", "loss 1.2"), ("9 %", "87.5 %"), ("by -2e-07", "by 1.2e-6"), ("a  1.5", "a 10.25")):
        assert sanitized(one) == sanitized(other)
    for one, other in (("4 experts", "5 experts"), ("loss 0.87", "rate 0.87"), ("E0", "E1"), ("(4, 8)", "(4, 6)")):
        assert sanitized(one) != sanitized(other)


# Its solutions put in: run are the cells of the exercises and those that they need, in their order. All other cells use
# nothing that the learner writes, so they do what they do in the open lesson, which nbval runs.


@pytest.fixture(autouse=True)
def no_print_options_are_left():
    """A lesson sets how tensors are printed; here it runs in the process of the tests."""
    yield
    torch.set_printoptions(profile="default")


def code_of(path: Path) -> list:
    """Give the code cells of a lesson whose learner has written each solution."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for cell in cells:
        if exercise := exercise_of(cell):
            cell.source = str(show_source(exercise.answer))
    return cells


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_solution_is_right(path):
    cells, found, names = code_of(path), [], {}
    sources = [cell.source for cell in cells]
    for i, cell in enumerate(cells):
        if exercise_of(cell):
            check = i + 1  # the next cell
            for place in needed(sources[: check + 1], {check})[:-1]:
                exec(to_python(sources[place]), names)
            found.append(eval(sources[check].splitlines()[0], names))
    assert [check.status for check in found] == ["right"] * len(found), found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_other_cell_uses_what_the_learner_writes(path):
    cells = code_of(path)
    own = {exercise.answer_name for cell in cells if (exercise := exercise_of(cell))}
    for before, cell in zip([None, *cells], cells):
        if before is None or not exercise_of(before):  # a check cell
            source = re.sub(r"\w+\.take\(\w+\)", "None", cell.source)  # gives the solution in the open lesson
            assert not names_in(source)[1] & own, cell.source
