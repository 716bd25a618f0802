"""``python -m moe_lessons`` and its lab command, without starting a server (tests/browser does that)."""

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import moe_lessons
from moe_lessons import __main__ as cli
from moe_lessons.commands import lab


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_each_command_hands_its_arguments_to_the_main_of_its_module(command, monkeypatch):
    assert importlib.util.find_spec(f"moe_lessons.commands.{command}")
    calls = []
    fake = SimpleNamespace(main=lambda argv: calls.append(argv) or 3)
    monkeypatch.setitem(sys.modules, f"moe_lessons.commands.{command}", fake)
    assert cli.main([command, "--quick", "a"]) == 3
    assert calls == [["--quick", "a"]]


def test_alone_it_lists_each_command_with_a_line_and_does_not_wait_for_torch(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        assert cli.main(arguments) == 0
        printed = capsys.readouterr().out
        assert all(f"  {name:<8} {about}\n" in printed for name, about in cli.COMMANDS.items())
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"moe_lessons {moe_lessons.__version__}\n"
    loaded = (
        "import sys, moe_lessons.__main__ as m, moe_lessons.commands.lab; m.main([]); print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", loaded], text=True).endswith("False\n")


@pytest.mark.parametrize("wrong, nearest", [("lap", "lab"), ("swep", "sweep"), ("Doctor", "doctor")])
def test_a_command_that_is_not_there_names_the_nearest(wrong, nearest, capsys):
    assert cli.main([wrong]) == 2
    assert f"There is no command {wrong!r}. Did you mean {nearest}?" in capsys.readouterr().err


def test_the_app_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "voila.app", None)
    assert cli.main(["app"]) == 1
    assert capsys.readouterr().err == 'The app needs Voila: run `pip install "moe_lessons[app]"`.\n'


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


def test_without_a_checkout_lab_copies_the_lessons_and_opens_them(tmp_path, monkeypatch, started, capsys):
    monkeypatch.setattr(lab, "CHECKOUT", tmp_path / "site-packages")
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine" / lab.FIRST
    for arguments, folder in (([], tmp_path / lab.COPY), (["mine"], mine.parent), (["mine"], mine.parent)):
        assert lab.main(arguments) == 0
        assert {f"--ServerApp.root_dir={folder}", f"--LabApp.default_url=/doc/tree/{lab.FIRST}"} <= set(started[-1])
    assert capsys.readouterr().out.count("The lessons are in") == 2
    monkeypatch.chdir(tmp_path / "mine")  # where the learner stands in the copy, it is that one
    mine.unlink()
    assert lab.main() == 0 and f"--ServerApp.root_dir={mine.parent}" in started[-1]
    assert mine.is_file() and capsys.readouterr().out == f"{lab.FIRST} is a fresh copy: it was missing.\n"


def test_kernels_keep_the_memory_of_a_step_unless_you_have_set_it(monkeypatch, tmp_path, started):
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000")
    lab.main([str(tmp_path)])
    assert (os.environ["MALLOC_TRIM_THRESHOLD_"], os.environ["MALLOC_MMAP_THRESHOLD_"]) == ("1000000000", "1000")
