"""Every lesson as it is stored reads well on a static page. (nbval runs it, and compares what it shows with this.)"""

import ast
from pathlib import Path

import nbformat
import pytest

from moe_lessons.render import WIDGET

LESSONS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
MAX_LINES, MAX_CLASS_LINES = 15, 30
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
