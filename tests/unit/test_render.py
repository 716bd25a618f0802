"""Rendering stores the static form, the same each time, and never a notebook that failed."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from tools import pictures, render


def write(path, *sources):
    notebook = new_notebook(cells=[new_markdown_cell("# A lesson"), *map(new_code_cell, sources)])
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    path.write_text(nbformat.writes(notebook), encoding="utf-8")
    return path


def test_it_stores_the_static_form_and_a_second_time_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("MOE_LESSONS_STATIC", raising=False)
    monkeypatch.setenv("MPLBACKEND", "agg")
    path = write(
        tmp_path / "a.ipynb",
        "import os, sys\nprint(os.environ['MOE_LESSONS_STATIC'])\nprint(sys.executable)\nprint(os.getcwd())",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
    )
    render.render(path)
    first = path.read_text()
    notebook = nbformat.reads(first, as_version=4)
    _, printing, plotting = notebook.cells
    assert printing.outputs[0].text.split() == ["1", sys.executable, str(tmp_path)]
    assert "image/png" in plotting.outputs[0].data
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"} and not any(cell.metadata for cell in notebook.cells)
    render.render(path)
    assert path.read_text() == first and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "bad, complaint",
    [
        ("import os\nos._exit(1)", "Kernel died"),
        ("import ipywidgets\nipywidgets.IntSlider()", "a live widget is shown .*IntSlider"),
    ],
)
def test_a_cell_that_fails_leaves_the_file_as_it_was(bad, complaint, tmp_path):
    path = write(tmp_path / "a.ipynb", "x = 1", bad, "x = 2")
    before = path.read_text()
    with pytest.raises(Exception, match=f"(?s){complaint}"):
        render.render(path)
    assert path.read_text() == before


def test_the_command_goes_on_after_a_bad_notebook_and_says_so(tmp_path, capsys):
    bad, good = write(tmp_path / "a.ipynb", "x = 1", "# boom\n1 / 0"), write(tmp_path / "b.ipynb", "1")
    before = bad.read_text()
    no_notebook = tmp_path / "c.ipynb"
    no_notebook.write_text("{}")
    assert render.main([str(bad), str(no_notebook), str(tmp_path / "d.ipynb"), str(good)]) == 1
    printed = capsys.readouterr().out
    assert f"{good} … rendered\n" in printed and printed.count(" … is unchanged: ") == 3
    assert re.search("(?s)# boom.*ZeroDivisionError.*: division by zero", printed) and bad.read_text() == before


DOCS = Path(__file__).resolve().parents[2] / pictures.FOLDER


@pytest.mark.parametrize("name, least", [("rescue.gif", 640), ("playground.png", 900), ("facts.png", 900)])
def test_each_is_an_image_of_at_most_500_kilobytes(name, least):
    assert (DOCS / name).stat().st_size < 500_000
    with Image.open(DOCS / name) as picture:
        assert picture.width >= least and getattr(picture, "n_frames", 1) == (50 if name == "rescue.gif" else 1)
        picture.load()


def test_the_animation_shows_the_auxiliary_loss_switched_on_and_is_the_same_each_time(tmp_path):
    for name in ("one.gif", "other.gif"):
        pictures.animate(tmp_path / name, collapse=8, rescue=16)
    assert (tmp_path / "one.gif").read_bytes() == (tmp_path / "other.gif").read_bytes()
    with Image.open(tmp_path / "one.gif") as film:
        assert film.n_frames == 4 and film.width == pictures.WIDTH
