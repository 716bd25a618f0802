"""``python -m moe_lessons`` and its lab command, without starting a server (tests/browser does that)."""

import sys
from types import SimpleNamespace

import pytest

from moe_lessons import __main__ as cli
from moe_lessons import lab


@pytest.mark.parametrize(
    "command, arguments, options",
    [
        ("lab", ["--no-browser"], {"no_browser": True}),
        ("render", ["a.ipynb"], {"notebooks": ["a.ipynb"]}),
        ("bench", ["--quick"], {"argv": ["--quick"]}),
        ("sweep", ["--list"], {"argv": ["--list"]}),
        ("doctor", [], {}),
    ],
)
def test_each_command_hands_its_arguments_to_the_main_of_its_module(command, arguments, options, monkeypatch):
    calls = []
    fake = SimpleNamespace(main=lambda **given: calls.append(given) or 3)
    monkeypatch.setitem(sys.modules, f"moe_lessons.{command}", fake)
    assert cli.main([command, *arguments]) == 3
    assert calls == [options]


@pytest.mark.parametrize(
    "arguments, complaint",
    [(["render", "--quick"], "unrecognized arguments: --quick"), ([], "required: command")],
)
def test_what_is_asked_for_wrongly_is_refused(arguments, complaint, capsys):
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert complaint in capsys.readouterr().err


def test_lab_opens_no_browser_without_a_display(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    assert not lab.has_display()
    monkeypatch.setenv("DISPLAY", ":0")
    assert lab.has_display()


@pytest.fixture
def started(monkeypatch):
    """The arguments with which JupyterLab was started, each time."""
    calls = []
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "/mine")  # which is changed, and restored with this
    monkeypatch.setattr("jupyterlab.labapp.LabApp.launch_instance", calls.append)
    return calls


def test_lab_prefers_the_course_you_stand_in_and_stays_on_this_machine(tmp_path, monkeypatch, started):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / lab.FIRST_LESSON).touch()
    for folder, root in ((tmp_path, tmp_path), (tmp_path / "notebooks", lab.CHECKOUT)):
        monkeypatch.chdir(folder)
        assert lab.main(no_browser=True) == 0
        assert {f"--ServerApp.root_dir={root}", "--ServerApp.ip=127.0.0.1"} <= set(started[-1])
        assert {"--LabApp.extension_manager=readonly", "--ServerApp.open_browser=False"} <= set(started[-1])


def test_lab_outside_the_course_says_where_it_looked(tmp_path, monkeypatch, capsys, started):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lab, "CHECKOUT", tmp_path / "site-packages")
    assert lab.main() == 1 and not started
    assert f"is not in {tmp_path} or" in capsys.readouterr().err
