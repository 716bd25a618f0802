"""The lessons of the package come to a learner's folder, and what the learner writes there stays."""

import json
import os
import re
from unittest.mock import Mock

import nbformat
import pytest

from moe_lessons.commands import lab
from moe_lessons.support.unpack import MANIFEST, unpack


def write(path, *sources, output=""):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].outputs = [nbformat.v4.new_output("stream", text=output)] if output else []
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def source_of(path):
    return nbformat.read(path, as_version=4).cells[0].source


@pytest.fixture
def lessons(tmp_path):
    write(tmp_path / "package" / "00_welcome.ipynb", "first")
    write(tmp_path / "package" / "05_collapse.ipynb", "fifth")
    (tmp_path / "package" / "badges").mkdir()
    (tmp_path / "package" / "badges" / "a.svg").write_text("<svg/>")
    return tmp_path / "package"


@pytest.fixture
def folder(lessons, tmp_path):
    folder = tmp_path / "deep" / "course"
    (said,) = unpack(lessons, folder)
    assert f"The lessons are in {folder} now" in said
    return folder


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_all_is_copied_once_what_was_only_run_becomes_newer_and_what_is_missing_comes_back(lessons, folder):
    assert names(folder) == sorted([MANIFEST, *names(lessons)])
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert unpack(lessons, folder) == []
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    write(folder / "05_collapse.ipynb", "fifth", output="mine")
    write(lessons / "05_collapse.ipynb", "fifth, better")
    assert unpack(lessons, folder) == ["05_collapse.ipynb is the newer one now."]
    assert source_of(folder / "05_collapse.ipynb") == "fifth, better"
    assert unpack(lessons, folder) == []
    (folder / "05_collapse.ipynb").unlink()
    write(lessons / "09_modern.ipynb", "ninth")
    fresh, new = unpack(lessons, folder)
    assert fresh == "05_collapse.ipynb is a fresh copy: it was missing." and new == "09_modern.ipynb is new."


def test_what_was_changed_stays_and_the_newer_comes_beside_it_once(lessons, folder):
    mine, new = folder / "05_collapse.ipynb", folder / "05_collapse.new.ipynb"
    write(mine, "fifth", "my own cell")
    assert unpack(lessons, folder) == []  # there is no newer one
    before = mine.read_bytes()
    for version, beside in enumerate((new, new, folder / "05_collapse.new.new.ipynb")):
        write(lessons / "05_collapse.ipynb", f"version {version}")
        (said,) = unpack(lessons, folder)
        assert said == f"05_collapse.ipynb stays as you changed it; the newer one is {beside.name}, beside it."
        assert mine.read_bytes() == before and source_of(beside) == f"version {version}"
        if version == 1:
            write(new, "mine, too")
    assert source_of(new) == "mine, too"
    beside.unlink()
    assert unpack(lessons, folder) == [] and not beside.exists()


@pytest.mark.parametrize("manifest", ["", "{", "[]", "\xff"])
def test_without_a_sound_manifest_nothing_is_overwritten(lessons, folder, manifest):
    (folder / MANIFEST).write_text(manifest, encoding="latin1")
    write(folder / "05_collapse.ipynb", "mine")
    said = unpack(lessons, folder)
    assert source_of(folder / "05_collapse.ipynb") == "mine" and "05_collapse.new.ipynb" in said[-1]
    assert len(json.loads((folder / MANIFEST).read_text())) == 4


def test_it_follows_no_link_out_of_the_folder(lessons, folder, tmp_path):
    theirs = tmp_path / "theirs"
    write(theirs / "05_collapse.ipynb", "fifth")  # as what was copied, so unchanged
    for name, target in {
        "00_welcome.ipynb": theirs / "new.ipynb",
        "05_collapse.ipynb": theirs / "05_collapse.ipynb",
    }.items():
        (folder / name).unlink()
        (folder / name).symlink_to(target)
    (theirs / MANIFEST).write_bytes((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).symlink_to(theirs / MANIFEST)
    before = {path: path.read_bytes() for path in theirs.iterdir()}
    write(lessons / "05_collapse.ipynb", "fifth, better")
    assert "05_collapse.ipynb stays as you changed it" in unpack(lessons, folder)[-1]
    assert source_of(folder / "05_collapse.new.ipynb") == "fifth, better" and not (folder / MANIFEST).is_symlink()
    (folder / "badges" / "a.svg").unlink()
    (folder / "badges").rmdir()
    (folder / "badges").symlink_to(theirs, target_is_directory=True)
    with pytest.raises(OSError, match="leads out of the folder"):
        unpack(lessons, folder)
    assert {path: path.read_bytes() for path in theirs.iterdir()} == before


def test_an_interrupted_copy_leaves_whole_files_and_goes_on(lessons, tmp_path, monkeypatch):
    folder, replace = tmp_path / "course", os.replace
    full = Mock(side_effect=[lambda: None, OSError(28, "No space left on device")])
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "replace", lambda part, target: full() and replace(part, target))
        unpack(lessons, folder)
    assert names(folder) == ["00_welcome.ipynb"]
    unpack(lessons, folder)
    assert names(folder) == sorted([MANIFEST, *names(lessons)])


def test_where_it_cannot_write_lab_says_so_in_one_line(tmp_path, capsys):
    (tmp_path / "course").write_text("mine")
    assert lab.main([str(tmp_path / "course"), "--no-browser"]) == 1
    assert re.fullmatch(r"The lessons cannot be copied: .*course: a file has that name\..*\n", capsys.readouterr().err)
    assert (tmp_path / "course").read_text() == "mine"
