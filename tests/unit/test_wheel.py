"""The wheel holds all that a learner needs: in an empty folder, without this checkout and without a network, the
lessons are copied, JupyterLab opens the first one, and its cells run."""

import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
ALONE = """
import socket, moe_lessons
def connect(self, address):
    raise OSError(f"a lesson asks for {address}")
socket.socket.connect = connect
moe_lessons.__file__
"""


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


def test_it_is_small_and_lab_copies_every_lesson(wheel, course):
    assert wheel.stat().st_size < 10e6
    for file in zipfile.ZipFile(wheel).infolist():
        assert file.file_size < 2e6 and not re.search(r"checkpoints/|__pycache__|^tests/", file.filename)
    names = {path.relative_to(ROOT / "notebooks").as_posix() for path in (ROOT / "notebooks").rglob("*.*")}
    names = {name for name in names if "checkpoints" not in name}
    assert {path.relative_to(course).as_posix() for path in course.rglob("*.*")} == names | {".moe_lessons.json"}


def test_the_first_lesson_trains_there_without_a_network(course, installed, wheel):
    lesson = nbformat.read(course / "00_welcome.ipynb", as_version=4)
    code = [cell.source if cell.cell_type == "code" else "" for cell in lesson.cells]
    end = next(i for i, source in enumerate(code) if " = Playground(" in source)  # the first training
    lesson.cells = [nbformat.v4.new_code_cell(ALONE), *lesson.cells[: end + 1]]
    kernel = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = NotebookClient(lesson, km=kernel, timeout=120, resources={"metadata": {"path": str(course)}})
    client.execute(env=installed, cleanup_kc=True)
    assert str(wheel.parent / "site") in lesson.cells[0].outputs[0].data["text/plain"]
    assert any("image/png" in output.get("data", {}) for output in lesson.cells[-1].outputs)
