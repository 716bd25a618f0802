"""The doctor finds nothing in a healthy installation, and finds what is broken."""

import subprocess
import sys
from importlib import metadata

import jupyterlab.commands
import pytest
import torch

from moe_lessons.commands import doctor


def test_a_healthy_installation_passes_and_a_missing_and_an_old_package_are_named(capsys, monkeypatch):
    assert doctor.main() == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed and all(
        f"\nok    {name} " in printed for name in ("torch", "jupyterlab", "ipywidgets", "anywidget", "pandas")
    )
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


def test_it_runs_where_torch_cannot_be_imported():
    code = "import sys; sys.modules['torch'] = None; from moe_lessons.__main__ import main; sys.exit(main(['doctor']))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert "FAIL  torch (ModuleNotFoundError: " in result.stdout and "run `pip install -e .`" in result.stdout
    assert "ok    jupyterlab " in result.stdout


@pytest.mark.parametrize(
    "disabled, found",
    [
        ({}, ("ok", "… enabled", "")),
        ({"anywidget": True}, ("FAIL", "… disabled", "run `jupyter labextension enable anywidget`")),
        ({"anywidget:plugin": True}, ("FAIL", "… disabled", "run `jupyter labextension enable anywidget:plugin`")),
        ({"anywidget": False, "anywidget-other": True}, ("ok", "… enabled", "")),
        (None, ("FAIL", "… missing", "run `pip install --force-reinstall --no-deps anywidget`")),
    ],
)
def test_extensions_of_jupyterlab(disabled, found, monkeypatch):
    extensions = {} if disabled is None else doctor.EXTENSIONS
    info = {"federated_extensions": extensions, "disabled": disabled or {}}
    monkeypatch.setattr(jupyterlab.commands, "get_app_info", lambda options: info)
    status, seen, advice = list(doctor.check_extensions())[1]
    assert (status, seen.replace("JupyterLab extension anywidget is", "…"), advice) == found


def test_a_kernel_of_another_environment_fails_and_a_foreign_lab_is_a_warning(tmp_path, monkeypatch):
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text('{"argv": ["/opt/other/bin/python", "-m", "x"], "display_name": "x"}')
    monkeypatch.setattr("jupyter_client.kernelspec.jupyter_path", lambda *parts: [str(tmp_path / parts[0])])
    status, seen, advice = next(doctor.check_kernel())
    assert (status, seen) == ("FAIL", "the kernel 'python3' is /opt/other/bin/python")
    assert "-m ipykernel install --sys-prefix" in advice
    monkeypatch.setattr("shutil.which", lambda name: str(tmp_path / name))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    for check, word in ((doctor.check_kernel, "make lab"), (doctor.check_torch, "OMP_NUM_THREADS=")):
        status, _, advice = list(check())[-1]
        assert status == "warn" and word in advice
