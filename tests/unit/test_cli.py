"""``python -m moe_lessons`` and its commands lab (which tests/browser starts) and doctor."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from unittest.mock import Mock

import jupyterlab.commands
import nbformat
import pytest
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from jupyter_server.services.kernels.websocket import KernelWebsocketHandler
from nbformat.sign import NotebookNotary

from moe_lessons import __main__ as cli
from moe_lessons.commands import doctor, lab
from moe_lessons.commands.connection import PromptConnection


def test_alone_it_lists_each_command_and_does_not_wait_for_torch():
    code = "import sys, moe_lessons.__main__ as m, moe_lessons.commands.lab; m.main([]); print('torch' in sys.modules)"
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert all(f"  {name} " in printed for name in cli.COMMANDS) and printed.endswith("False\n")


def test_a_command_that_is_not_there_names_the_nearest(capsys):
    assert cli.main(["swep"]) == 2
    said = capsys.readouterr().err
    assert "'swep'" in said and "sweep" in said


@pytest.fixture
def started(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "environ", os.environ | {"JUPYTER_CONFIG_PATH": "/mine"})  # a copy, which is changed
    monkeypatch.setattr("jupyterlab.labapp.LabApp.launch_instance", calls.append)
    return calls


def test_lab_prefers_the_course_you_stand_in_and_stays_on_this_machine(tmp_path, monkeypatch, started):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / lab.FIRST).touch()
    for folder, root in ((tmp_path, tmp_path), (tmp_path / "notebooks", lab.CHECKOUT)):
        monkeypatch.chdir(folder)
        assert lab.main(["--no-browser"]) == 0
        assert {f"--ServerApp.root_dir={root}", "--ServerApp.ip=127.0.0.1"} <= set(started[-1])
        assert {"--LabApp.extension_manager=readonly", "--ServerApp.open_browser=False"} <= set(started[-1])
        assert f"--LabApp.default_url=/doc/tree/notebooks/{lab.FIRST}" in started[-1]
    assert list(tmp_path.rglob("*.*")) == [tmp_path / "notebooks" / lab.FIRST]
    assert lab.main([str(tmp_path / "new")]) == 0 and f"--ServerApp.root_dir={tmp_path / 'new'}" in started[-1]


def test_without_a_checkout_lab_copies_what_is_missing_and_leaves_what_is_there(tmp_path, monkeypatch, started, capsys):
    monkeypatch.setattr(lab, "CHECKOUT", tmp_path / "site-packages")
    monkeypatch.chdir(tmp_path)
    lesson, linked = tmp_path / "mine" / lab.FIRST, tmp_path / "mine" / "course.ipynb"
    for arguments, folder in (([], tmp_path / lab.COPY), (["mine"], lesson.parent)):
        assert lab.main(arguments) == 0
        assert {f"--ServerApp.root_dir={folder}", f"--LabApp.default_url=/doc/tree/{lab.FIRST}"} <= set(started[-1])
    assert capsys.readouterr().out.count("The lessons are in") == 2
    (lesson.parent / "GLOSSARY.md").write_text("mine")
    linked.unlink()
    linked.symlink_to(tmp_path / "elsewhere")
    lesson.unlink()
    monkeypatch.chdir(lesson.parent)  # where the learner stands in the copy, it is that one
    assert lab.main() == 0 and f"--ServerApp.root_dir={lesson.parent}" in started[-1]
    assert lesson.read_bytes() == (lab.NOTEBOOKS / lab.FIRST).read_bytes()
    assert (lesson.parent / "GLOSSARY.md").read_text() == "mine" and not linked.exists()
    assert "(files new there: 1)" in capsys.readouterr().out


def test_an_interrupted_copy_leaves_whole_files_and_goes_on(tmp_path, monkeypatch):
    full = Mock(side_effect=[None, OSError(28, "No space left on device")])
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "replace", lambda part, target, move=os.replace: full() or move(part, target))
        lab.copy_missing(lab.NOTEBOOKS, tmp_path)
    (copied,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert copied.read_bytes() == (lab.NOTEBOOKS / copied.relative_to(tmp_path)).read_bytes()
    assert lab.copy_missing(lab.NOTEBOOKS, tmp_path) > 15 and lab.copy_missing(lab.NOTEBOOKS, tmp_path) == 0


def test_lab_follows_no_link_out_of_the_folder(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "course").mkdir()
    (tmp_path / "course" / "badges").symlink_to(tmp_path / "theirs", target_is_directory=True)
    with pytest.raises(OSError, match="a link leads out of the folder"):
        lab.copy_missing(lab.NOTEBOOKS, tmp_path / "course")
    assert not list((tmp_path / "theirs").iterdir())


def test_each_message_of_a_kernel_is_sent_at_once(monkeypatch):
    at_once = Mock()
    monkeypatch.setattr(KernelWebsocketHandler, "set_nodelay", at_once)
    monkeypatch.setattr(ZMQChannelsWebsocketConnection, "connect", lambda self: "connected")
    made = PromptConnection(websocket_handler=KernelWebsocketHandler.__new__(KernelWebsocketHandler))
    assert made.connect() == "connected"
    at_once.assert_called_once_with(True)


def test_jupyterlab_trusts_the_lessons_that_were_copied_and_none_that_was_there(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    theirs = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("a stranger's")])
    (tmp_path / "course").mkdir()
    nbformat.write(theirs, tmp_path / "course" / lab.FIRST)
    lab.copy_missing(lab.NOTEBOOKS, tmp_path / "course")
    lessons = {path.name: nbformat.read(path, 4) for path in (tmp_path / "course").glob("*.ipynb")}
    untrusted = [name for name, lesson in lessons.items() if not NotebookNotary().check_signature(lesson)]
    assert untrusted == [lab.FIRST] and len(lessons) > 12


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to(path)], ids=["a file", "a loop of links"])
def test_where_it_cannot_write_lab_says_so_in_one_line(make, tmp_path, capsys):
    make(tmp_path / "course")
    assert lab.main([str(tmp_path / "course"), "--no-browser"]) == 1
    assert re.fullmatch(r"The lessons cannot be copied: [^\n]*course[^\n]*\n", capsys.readouterr().err)


def test_the_doctor_passes_a_healthy_installation_and_names_a_missing_and_an_old_package(capsys, monkeypatch):
    assert doctor.main() == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed and all(f"\nok    {name} " in printed for name in ("torch", "jupyterlab", "anywidget"))
    real = metadata.version

    def version(name):
        if name == "anywidget":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "torch" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert doctor.main() == 1
    printed = capsys.readouterr().out
    assert 'FAIL  anywidget is not installed: run `pip install "anywidget' in printed
    assert 'FAIL  torch 1.0: run `pip install "torch' in printed


@pytest.mark.parametrize("command", [f"moe_lessons {name}" for name in cli.COMMANDS] + ["web.serve"])
def test_each_command_says_what_it_does(command):
    result = subprocess.run([sys.executable, "-m", *command.split(), "--help"], capture_output=True, text=True)
    assert result.stdout.startswith("usage: python -m") and result.returncode == 0
    if command.endswith("sweep"):
        names = re.search(r"names: ([\w\s,]+)", result.stdout)[1].replace(",", " ").split()
        run = [sys.executable, "-m", *command.split(), "none"]
        accepted = subprocess.run(run, capture_output=True, text=True).stderr
        assert names and all(f"'{name}'" in accepted for name in names)


def test_the_doctor_runs_where_torch_cannot_be_imported_and_stops_in_peace_where_nobody_reads():
    code = "import sys; sys.modules['torch'] = None; from moe_lessons.__main__ import main; sys.exit(main(['doctor']))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert "FAIL  torch (ModuleNotFoundError: " in result.stdout and "ok    jupyterlab " in result.stdout
    command = f"{sys.executable} -m moe_lessons doctor | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert result.stdout.startswith("Python") and "BrokenPipe" not in result.stderr


@pytest.mark.parametrize(
    "disabled, found",
    [
        ({"anywidget": False, "anywidget-other": True}, ("ok", "enabled")),
        ({"anywidget:plugin": True}, ("FAIL", "disabled")),
        (None, ("FAIL", "missing")),
    ],
)
def test_the_doctor_looks_at_the_extensions_of_jupyterlab(disabled, found, monkeypatch):
    extensions = {} if disabled is None else doctor.EXTENSIONS
    info = {"federated_extensions": extensions, "disabled": disabled or {}}
    monkeypatch.setattr(jupyterlab.commands, "get_app_info", lambda options: info)
    status, seen, _ = list(doctor.check_extensions())[1]
    assert (status, seen) == (found[0], f"JupyterLab extension anywidget is {found[1]}")


def test_the_doctor_finds_a_kernel_of_another_environment(tmp_path, monkeypatch):
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text('{"argv": ["/opt/other/bin/python", "-m", "x"], "display_name": "x"}')
    monkeypatch.setattr("jupyter_client.kernelspec.jupyter_path", lambda *parts: [str(tmp_path / parts[0])])
    ((status, seen, advice),) = doctor.check_kernel()
    assert (status, seen) == ("FAIL", "the kernel 'python3' is /opt/other/bin/python")
    assert "-m ipykernel install --sys-prefix" in advice
