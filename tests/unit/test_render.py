"""Rendering stores the static form, the same each time, and never a notebook that failed."""

import json
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from moe_lessons import render


def write(path, *sources):
    notebook = new_notebook(cells=[new_markdown_cell("# A lesson"), *map(new_code_cell, sources)])
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    path.write_text(nbformat.writes(notebook), encoding="utf-8")
    return path


def outputs(path):
    notebook = nbformat.read(path, as_version=4)
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def test_it_executes_in_the_static_form_with_this_python(tmp_path, monkeypatch):
    monkeypatch.delenv("MOE_LESSONS_STATIC", raising=False)
    path = write(
        tmp_path / "a.ipynb",
        "import os, sys\nprint(os.environ['MOE_LESSONS_STATIC'])",
        "print(sys.executable)",
        "print(os.getcwd())",
    )
    render.render(path)
    assert [cell[0].text.strip() for cell in outputs(path)] == ["1", sys.executable, str(tmp_path)]


def test_what_varies_is_not_stored_and_a_second_time_changes_nothing(tmp_path):
    plot = "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"
    path = write(tmp_path / "a.ipynb", plot, "print(1)\nprint(2)")
    raw = json.loads(path.read_text())
    for cell in raw["cells"]:
        del cell["id"]  # as older tools write notebooks
    path.write_text(json.dumps(raw))
    render.render(path)
    first = path.read_text()
    stored = json.loads(first)
    assert "widgets" not in stored["metadata"]
    assert "version" not in stored["metadata"]["language_info"]
    assert [cell["metadata"] for cell in stored["cells"]] == [{}, {}, {}]
    assert [cell["id"] for cell in stored["cells"]] == ["cell-0", "cell-1", "cell-2"]
    assert "image/png" in stored["cells"][1]["outputs"][0]["data"]
    render.render(path)
    assert path.read_text() == first
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "bad, complaint",
    [
        ("# boom\n1 / 0", r"code cell 2 \('# boom'\) raised ZeroDivisionError: division by zero"),
        ("import os\nos._exit(1)", r"code cell 2 \('import os'\) ended the kernel"),
        ("import ipywidgets\nipywidgets.IntSlider()", "code cell 2 shows a live widget"),
    ],
)
def test_a_cell_that_fails_leaves_the_file_as_it_was(bad, complaint, tmp_path, capsys):
    path = write(tmp_path / "a.ipynb", "x = 1", bad, "x = 2")
    before = path.read_text()
    with pytest.raises(render.RenderError, match=complaint):
        render.render(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_cell_that_hangs_is_named(tmp_path):
    notebook = render.read(write(tmp_path / "a.ipynb", "x = 1", "import time\ntime.sleep(60)"))
    with pytest.raises(render.RenderError, match="code cell 2 .* ran longer than 1 s"):
        render.execute(notebook, tmp_path, static=True, timeout=1)


def test_the_live_form_does_not_say_static(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1")
    source = "import os\nprint('MOE_LESSONS_STATIC' in os.environ)"
    notebook = render.read(write(tmp_path / "a.ipynb", source))
    render.execute(notebook, tmp_path, static=False)
    assert notebook.cells[1].outputs[0].text == "False\n"


def test_the_command_goes_on_after_a_bad_notebook_and_says_so(tmp_path, capsys):
    bad, good = write(tmp_path / "a.ipynb", "1 / 0"), write(tmp_path / "b.ipynb", "1")
    no_notebook = tmp_path / "c.ipynb"
    no_notebook.write_text("{}")
    assert render.main([str(bad), str(no_notebook), str(tmp_path / "d.ipynb"), str(good)]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"{good}: rendered\n"
    assert f"{bad}: code cell 1 ('1 / 0') raised ZeroDivisionError" in printed.err
    assert printed.err.count("; the file is unchanged\n") == 3


def test_nothing_to_render_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert render.main() == 1
    assert "no notebooks/*.ipynb here" in capsys.readouterr().err
