"""``python -m moe_lessons`` and its lab command, without starting a server (tests/browser does that)."""

import os
import socket
import subprocess
import sys
import webbrowser
from types import SimpleNamespace

import pytest

from moe_lessons import __main__ as cli
from moe_lessons import lab


@pytest.mark.parametrize("command", ["lab", "render", "bench", "sweep", "doctor"])
def test_each_command_runs_the_main_of_its_module(command, monkeypatch):
    calls = []
    module = SimpleNamespace(main=lambda **options: calls.append(options))
    monkeypatch.setitem(sys.modules, f"moe_lessons.{command}", module)
    assert cli.main([command]) == 0
    assert len(calls) == 1


def test_commands_hand_on_their_arguments_and_the_exit_code(monkeypatch):
    calls = []

    def main(**options):
        calls.append(options)
        return 3

    for command in ("render", "bench", "sweep"):
        monkeypatch.setitem(sys.modules, f"moe_lessons.{command}", SimpleNamespace(main=main))
    assert cli.main(["render", "a.ipynb"]) == cli.main(["bench", "--quick"]) == cli.main(["sweep", "--list"]) == 3
    assert calls == [{"notebooks": ["a.ipynb"]}, {"argv": ["--quick"]}, {"argv": ["--list"]}]


def test_an_unknown_argument_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["render", "--quick"])
    assert "unrecognized arguments: --quick" in capsys.readouterr().err


def test_without_a_command_it_says_which_there_are():
    result = subprocess.run([sys.executable, "-m", "moe_lessons"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "required: command" in result.stderr


def test_lab_stays_on_this_machine(tmp_path):
    arguments = lab.lab_arguments(tmp_path, 1234, opens=False)
    assert "--ServerApp.ip=127.0.0.1" in arguments
    assert "--ServerApp.port=1234" in arguments
    assert "--LabApp.extension_manager=readonly" in arguments
    assert "--no-browser" in arguments
    assert "--no-browser" not in lab.lab_arguments(tmp_path, 1234, opens=True)


@pytest.mark.parametrize("uid", [0, 1000])
def test_lab_runs_as_root_too(uid, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: uid, raising=False)
    assert ("--allow-root" in lab.lab_arguments(tmp_path, 1234, opens=False)) == (uid == 0)


def test_lab_takes_another_port_when_the_first_is_taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        assert lab.free_port(taken) not in (taken, 0)
    assert lab.free_port(taken) == taken


def test_lab_opens_no_browser_where_none_can_be_shown(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(webbrowser, "get", lambda: "a browser")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    assert not lab.can_open_browser()
    monkeypatch.setenv("DISPLAY", ":0")
    assert lab.can_open_browser()

    def none():
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "get", none)
    assert not lab.can_open_browser()


def test_lab_outside_the_course_says_where_it_looked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lab, "__file__", str(tmp_path / "site-packages" / "moe_lessons" / "lab.py"))
    assert lab.main() == 1
    assert f"is not in {tmp_path} or" in capsys.readouterr().err


def test_lab_prefers_the_course_you_stand_in(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "00_welcome.ipynb").touch()
    monkeypatch.chdir(tmp_path)
    assert lab.course_folder() == tmp_path
