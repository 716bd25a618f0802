"""The wheel: what is in it, and the lessons that `lab` copies from it to a learner's folder."""

import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from moe_lessons import __version__

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
    (about,) = (name for name in files if name.endswith(".dist-info/METADATA"))
    assert "moe_lessons/py.typed" in files and about.startswith(f"moe_lessons-{__version__}.")
    names = {path.relative_to(ROOT / "notebooks").as_posix() for path in (ROOT / "notebooks").rglob("*.*")}
    names = {name for name in names if "checkpoints" not in name}
    assert {path.relative_to(course).as_posix() for path in course.rglob("*.*")} == names
