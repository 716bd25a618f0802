"""Every lesson as it is stored reads well on a static page. (nbval runs it, and compares what it shows with this.)"""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbval.plugin import get_sanitize_patterns

from moe_lessons.render import WIDGET

LESSONS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
MAX_LINES, MAX_CLASS_LINES = 15, 30
MAX_CELLS, MAX_WORDS, MAX_VERDICTS = 50, 1500, 5
MIN_EXERCISES = 18  # of the course, and two in each lesson from 02 on
assert LESSONS, "there is no lesson"


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def lesson(request) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


@pytest.fixture
def code_cells(lesson):
    return [cell for cell in lesson.cells if cell.cell_type == "code"]


@pytest.fixture
def outputs(code_cells):
    return [output for cell in code_cells for output in cell.outputs]


def test_every_code_cell_was_executed(code_cells):
    assert code_cells
    for cell in code_cells:
        assert cell.execution_count is not None, f"never executed, run `make render`:\n{cell.source}"


def test_no_cell_is_long(code_cells):
    for cell in code_cells:
        try:
            has_class = any(isinstance(node, ast.ClassDef) for node in ast.parse(cell.source).body)
        except SyntaxError:  # an IPython command
            has_class = False
        lines, limit = len(cell.source.splitlines()), MAX_CLASS_LINES if has_class else MAX_LINES
        assert lines <= limit, f"{lines} lines, at most {limit}:\n{cell.source}"


def test_a_static_page_shows_pictures_and_no_widget(lesson, outputs):
    shown = {kind for output in outputs for kind in output.get("data", {})}
    assert "image/png" in shown and WIDGET not in shown and "widgets" not in lesson.metadata


def test_no_error_and_no_warning_is_stored(outputs):
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


def test_what_to_notice_is_tagged_with_a_claim(lesson):
    for cell in lesson.cells:
        if cell.cell_type == "markdown" and "what to notice" in cell.source.lower():
            tags = cell.metadata.get("tags", [])
            assert any(tag.startswith("claim:") for tag in tags), f"no claim: tag on the cell\n{cell.source}"


def main_path(lesson) -> str:
    """The words of the lesson: without what is folded, without the addresses of links, up to 'Going further'."""
    text = "\n\n".join(cell.source for cell in lesson.cells if cell.cell_type == "markdown")
    text = re.split(r"^#+ .*going further", text, flags=re.I | re.M)[0]
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"<details.*?</details>", "", text, flags=re.S))


def test_a_lesson_is_read_in_half_an_hour(lesson):
    assert len(lesson.cells) <= MAX_CELLS
    assert len(re.findall(r"\w[\w'’.,-]*", main_path(lesson))) <= MAX_WORDS


def test_the_learner_writes_what_is_checked():
    checks = {path.stem: 0 for path in LESSONS}
    for path in LESSONS:
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        checks[path.stem] = sum(bool(re.search(r"^check_\w+\(", source, re.M)) for source in cells)
    assert sum(checks.values()) >= MIN_EXERCISES
    assert not [name for name, count in checks.items() if count < 2 and name >= "02"], checks


def test_cells_print_numbers_and_no_verdicts():
    texts = [
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for path in LESSONS
        for cell in nbformat.read(path, as_version=4).cells
        for output in cell.get("outputs", [])
    ]
    assert sum(bool(re.search(r"\b(True|False)\b", text)) for text in texts) <= MAX_VERDICTS


def test_nbval_overlooks_the_digits_of_a_measurement_and_nothing_else():
    def sanitized(text: str) -> str:
        for pattern, replacement in get_sanitize_patterns((Path(__file__).parent / "sanitize.cfg").read_text()):
            text = re.sub(pattern, replacement, text)
        return text

    for one, other in (("loss 0.87", "loss 1.2"), ("9 %", "87.5 %"), ("by -2e-07", "by 1.2e-6"), ("a  1.5", "a 10.25")):
        assert sanitized(one) == sanitized(other)
    for one, other in (("4 experts", "5 experts"), ("loss 0.87", "rate 0.87"), ("E0", "E1"), ("(4, 8)", "(4, 6)")):
        assert sanitized(one) != sanitized(other)
