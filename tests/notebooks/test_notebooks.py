"""Every lesson as it is stored reads well on a static page, and runs in its live form."""

import ast
from pathlib import Path

import nbformat
import pytest

from moe_lessons import render

LESSONS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
MAX_LINES, MAX_CLASS_LINES = 15, 30
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

pytestmark = pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)


def code_cells(lesson):
    return [cell for cell in nbformat.read(lesson, as_version=4).cells if cell.cell_type == "code"]


def outputs(lesson):
    return [output for cell in code_cells(lesson) for output in cell.outputs]


def defines_a_class(source: str) -> bool:
    try:
        return any(isinstance(node, ast.ClassDef) for node in ast.parse(source).body)
    except SyntaxError:  # an IPython command
        return False


def test_every_code_cell_was_executed(lesson):
    for cell in code_cells(lesson):
        assert cell.execution_count is not None, f"never executed, run `make render`:\n{cell.source}"


def test_no_cell_is_long(lesson):
    for cell in code_cells(lesson):
        lines = len(cell.source.splitlines())
        limit = MAX_CLASS_LINES if defines_a_class(cell.source) else MAX_LINES
        assert lines <= limit, f"{lines} lines, at most {limit}:\n{cell.source}"


def test_no_widget_is_stored(lesson):
    assert "widgets" not in nbformat.read(lesson, as_version=4).metadata
    assert not [output for output in outputs(lesson) if WIDGET_VIEW in output.get("data", {})]


def test_no_error_and_no_warning_is_stored(lesson):
    bad = [o for o in outputs(lesson) if o.output_type == "error" or o.get("name") == "stderr"]
    assert not bad


def test_a_static_page_shows_a_picture(lesson):
    assert any("image/png" in output.get("data", {}) for output in outputs(lesson))


def test_what_to_notice_is_tagged_with_a_claim(lesson):
    for cell in nbformat.read(lesson, as_version=4).cells:
        if cell.cell_type == "markdown" and "what to notice" in cell.source.lower():
            tags = cell.metadata.get("tags", [])
            assert any(tag.startswith("claim:") for tag in tags), f"no claim: tag on the cell\n{cell.source}"


def test_it_runs_in_its_live_form(lesson):
    notebook = render.read(lesson)
    render.execute(notebook, lesson.parent, static=False, timeout=120)
    assert not [o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]
