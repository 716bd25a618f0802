"""What a maintainer runs: rendering, pictures, and the benchmark at tiny sizes."""

import sys
from functools import partial

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from moe_lessons.nn import DISPATCH, TransformerConfig
from tools import bench, pictures, render
from tools import bench_cases as cases
from tools.bench_cases import AUTO, FORWARD, OURS, Case, LayerSizes
from tools.checks import checks_after


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
    render.render(path, busy=True)
    first = path.read_text()
    notebook = nbformat.reads(first, as_version=4)
    _, printing, plotting = notebook.cells
    assert printing.outputs[0].text.split() == ["1", sys.executable, str(tmp_path)]
    assert "image/png" in plotting.outputs[0].data
    assert notebook.metadata.keys() == {"kernelspec", "language_info"} and not any(c.metadata for c in notebook.cells)
    render.render(path, busy=True)
    assert path.read_text() == first and list(tmp_path.iterdir()) == [path]


def test_a_cell_that_fails_leaves_its_file_as_it_was_and_the_command_goes_on(tmp_path, capsys):
    bad = "1 / 0", "import os\nos._exit(1)", "import ipywidgets\nipywidgets.IntSlider()"
    paths = [write(tmp_path / f"{place}.ipynb", "x = 1", cell) for place, cell in enumerate(bad)]
    (tmp_path / "none.ipynb").write_text("{}")
    paths += [tmp_path / "none.ipynb", write(tmp_path / "good.ipynb", "1")]
    before = [path.read_text() for path in paths]
    assert render.main(["--busy", *map(str, paths)]) == 1
    assert [path.read_text() == text for path, text in zip(paths, before)] == [True] * 4 + [False]
    printed = capsys.readouterr().out
    assert all(said in printed for said in ("division by zero", "Kernel died", "IntSlider", f"{paths[-1]} … rendered"))


def test_the_animation_shows_the_auxiliary_loss_switched_on_and_is_the_same_each_time(tmp_path):
    for name in ("one.gif", "other.gif"):
        pictures.animate(tmp_path / name, collapse=8, rescue=16)
    assert (tmp_path / "one.gif").read_bytes() == (tmp_path / "other.gif").read_bytes()
    with Image.open(tmp_path / "one.gif") as film:
        assert film.n_frames == 4 and film.width == pictures.GIF_WIDTH


SMALL = LayerSizes(E=4, K=2, T=24, D=8, F=4)
MODEL = TransformerConfig(d_model=8, d_ff=4, num_layers=2, num_heads=2, num_kv_heads=1, num_experts=4)
HF = ["HF eager", "HF grouped_mm"]
TINY = [
    Case(f"forward, {SMALL}", "dense, 1×", partial(cases.each_way, SMALL, FORWARD), threads=1),
    Case("training", OURS, partial(cases.training, MODEL, 2, 5)),
]


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(bench, "all_cases", lambda: TINY)
    monkeypatch.setattr(bench, "rounds_for", lambda calls, device: 2)


def test_the_table_has_every_row_and_the_threads_are_given_back(tiny, capsys):
    before = torch.get_num_threads()
    assert bench.main(["--threads", str(before + 1)]) == 0
    out = capsys.readouterr().out
    for name in (AUTO, *(f"MoE, {way}" for way in DISPATCH), "dense, 1×", "dense, 2×", *HF):
        assert f"\n  {name:<20}" in out
    assert [line[-2:] for line in out.splitlines() if "threads:" in line] == ["1)", f"{before + 1})"]
    assert torch.get_num_threads() == before


def lesson(path, *cells):
    """Write a notebook of these cells: source, tags; text where a source begins with #."""
    made = [(new_markdown_cell if source.startswith("#") else new_code_cell)(source) for source, _ in cells]
    for cell, (_, tags) in zip(made, cells):
        cell.metadata["tags"] = list(tags)
    path.write_text(nbformat.writes(new_notebook(cells=made)), encoding="utf-8")
    return path


SAYS = "# What to notice. It takes 1,024 ms, and −.5 more."
CELLS = [
    ("parts = {'read': 3.0, 'add': 6.8}; whole, took, table = 10, 1020.0, [-0.51]", ["parts:parts.values()=whole"]),
    (SAYS, ["number:took=1024±5", "number:table[0]=−.5±.02"]),
    ("took = 1", ["bound:took<=whole"]),  # later cells may give a name another value
]


def test_a_lesson_that_agrees_with_itself_is_stored_and_one_that_contradicts_itself_refused(tmp_path):
    path = lesson(tmp_path / "a.ipynb", *CELLS)
    render.render(path, busy=True)
    assert [cell.metadata.tags for cell in nbformat.read(path, as_version=4).cells] == [tags for _, tags in CELLS]
    start = "parts, whole, took, table = {'read': 3.0, 'add': 6.4}, 10, 1018.0, [float('nan')]"
    path = lesson(path, (start, CELLS[0][1]), CELLS[1], ("took = 11", ["bound:took<=whole", "bound:token<=1"]))
    before = path.read_text()
    with pytest.raises(ValueError) as refusal:
        render.render(path, busy=True)
    numbers = ["0.94", "1024, and took is 1018", "−.5, and table[0] is nan", "1.1", "'token'"]
    found = str(refusal.value).split("; ")
    assert path.read_text() == before and all(said in one for said, one in zip(numbers, found, strict=True))


@pytest.mark.parametrize(
    "cells",
    [
        [("1", []), ("# It takes 1,024.5 ms, or 11,024", ["number:took=1024±5"])],
        [("1", []), (SAYS, ["number:took=1024"])],
        [(SAYS, ["number:took=1024±5"]), ("1", [])],
        [("1", ["bound:took"])],
    ],
)
def test_a_tag_that_cannot_be_checked_is_refused(cells, tmp_path):
    notebook = nbformat.read(lesson(tmp_path / "a.ipynb", *cells), as_version=4)
    with pytest.raises(ValueError, match=r"^cell \[\d\] must "):
        checks_after(notebook)


def test_a_lesson_made_on_a_busy_machine_is_refused(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "a.ipynb", "1")
    before = path.read_text()
    monkeypatch.setattr(render, "seconds_of_others", iter([0.0, 1e6, 0.0, 1e6]).__next__)
    assert render.main([str(path)]) == 1 and path.read_text() == before
    assert "0.15" in capsys.readouterr().out  # of a core, which others may take
    assert render.main(["--busy", str(path)]) == 0 and path.read_text() != before
