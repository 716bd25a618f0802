"""The lessons of the package come to a learner's folder, and what the learner writes there stays."""

import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from unittest.mock import Mock

import nbformat
import pytest

from moe_lessons.commands import lab
from moe_lessons.support.unpack import MANIFEST, unpack

NESTED = "[" * 200_000


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
    for version in (1, 2):
        write(lessons / "05_collapse.ipynb", f"version {version}")
        (said,) = unpack(lessons, folder)
        assert said == f"05_collapse.ipynb stays as you changed it; the newer one is {new.name}, beside it."
        assert mine.read_bytes() == before and source_of(new) == f"version {version}"
    new.unlink()
    assert unpack(lessons, folder) == [] and not new.exists()


@pytest.mark.parametrize("manifest", ["", "[]", "\xff", NESTED])
def test_without_a_sound_manifest_nothing_is_overwritten(lessons, folder, manifest):
    (folder / MANIFEST).write_text(manifest, encoding="latin1")
    write(folder / "05_collapse.ipynb", "mine")
    said = unpack(lessons, folder)
    assert source_of(folder / "05_collapse.ipynb") == "mine" and "05_collapse.new.ipynb" in said[-1]
    assert len(json.loads((folder / MANIFEST).read_text())) == 4


def test_it_follows_no_link_out_of_the_folder(lessons, folder, tmp_path):
    theirs = tmp_path / "theirs"
    write(theirs / "05_collapse.ipynb", "fifth")  # as what was copied, so unchanged
    (theirs / MANIFEST).write_bytes((folder / MANIFEST).read_bytes())
    before = {path: path.read_bytes() for path in theirs.iterdir()}
    for name in ("05_collapse.ipynb", MANIFEST):
        (folder / name).unlink()
        (folder / name).symlink_to(theirs / name)
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


def pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


UNREADABLE = {
    "a lesson nested without end": lambda folder: (folder / "05_collapse.ipynb").write_text(NESTED),
    "a lesson that is a pipe": lambda folder: pipe(folder / "05_collapse.ipynb"),
}


@pytest.mark.parametrize("change", UNREADABLE)
def test_what_is_no_lesson_any_more_stays_and_the_newer_comes_beside_it(lessons, folder, change):
    UNREADABLE[change](folder)
    write(lessons / "05_collapse.ipynb", "fifth, better")
    assert unpack(lessons, folder) == [
        "05_collapse.ipynb stays as you changed it; the newer one is 05_collapse.new.ipynb, beside it."
    ]
    assert source_of(folder / "05_collapse.new.ipynb") == "fifth, better"


def loop(path):
    path.symlink_to(path)
    return path


PLACES = {
    "a file": (lambda path: path.write_text("mine") and path, "a file has that name"),
    "a loop of links": (loop, "loop"),
    "a pipe for a manifest": (lambda path: path.mkdir() or pipe(path / MANIFEST) or path, "a file has that name"),
}


@pytest.mark.parametrize("place", PLACES)
def test_where_it_cannot_write_lab_says_so_in_one_line(tmp_path, capsys, place):
    make, why = PLACES[place]
    assert lab.main([str(make(tmp_path / "course")), "--no-browser"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"The lessons cannot be copied: .*\. Another place: python -m moe_lessons lab FOLDER\n", said)
    assert re.search(why, said, re.IGNORECASE)


ROOT = Path(__file__).resolve().parents[2]
@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel) -> dict[str, str]:
    """Give the environment of a learner who has the wheel, and settings of their own."""
    site, home = wheel.parent / "site", wheel.parent / "home"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(pip, check=True)
    own = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"IPYTHONDIR": str(home), "MOE_LESSONS_PROGRESS": "off", "MOE_LESSONS_STATIC": "1", "OMP_NUM_THREADS": "1"}
    return os.environ | own | {"PYTHONPATH": str(site), "JUPYTER_PREFER_ENV_PATH": "1"}


@pytest.fixture(scope="module")
def course(installed, wheel) -> Path:
    """Give the folder that `lab` made in an empty one; its server ran, and has ended."""
    empty = wheel.parent / "empty"
    empty.mkdir()
    log, command = wheel.parent / "log", [sys.executable, "-m", "moe_lessons", "lab", "--no-browser"]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=empty, env=installed, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while not re.search(r"http://127\S+/doc/tree/00_welcome.ipynb\?token=", log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
    finally:
        process.terminate()
        process.wait(20)
    return empty / "moe_lessons_course"


def test_it_is_small_and_whole_and_lab_copies_every_lesson(wheel, course):
    files = {file.filename: file.file_size for file in zipfile.ZipFile(wheel).infolist()}
    assert wheel.stat().st_size < 10e6 and max(files.values()) < 2e6
    own = [path.relative_to(ROOT).as_posix() for path in (ROOT / "moe_lessons").rglob("*.*")]
    assert {name for name in own if "__pycache__" not in name and "checkpoints/" not in name} <= set(files)
    assert not [name for name in files if re.search(r"checkpoints/|__pycache__|^tests/", name)]
    names = {path.relative_to(ROOT / "notebooks").as_posix() for path in (ROOT / "notebooks").rglob("*.*")}
    names = {name for name in names if "checkpoints" not in name}
    assert {path.relative_to(course).as_posix() for path in course.rglob("*.*")} == names | {".moe_lessons.json"}
