"""The doctor finds nothing in a healthy installation, and finds what is broken."""

import subprocess
import sys
from importlib import metadata

import jupyterlab.commands
import pytest
import torch

from moe_lessons import doctor


def report(check):
    return [str(finding) for finding in check()]


def test_a_healthy_installation_passes(capsys):
    assert doctor.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("FAIL")]
    for package in ("python", "torch", "jupyterlab", "ipywidgets", "anywidget", "matplotlib", "pandas"):
        assert any(line.startswith(f"ok    {package} ") for line in lines), package


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    real = metadata.version

    def version(name):
        if name == "anywidget":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "torch" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    lines = report(doctor.check_versions)
    (anywidget,) = [line for line in lines if "anywidget" in line]
    assert anywidget.startswith('FAIL  anywidget is not installed: run `pip install "anywidget')
    (old_torch,) = [line for line in lines if "torch" in line]
    assert old_torch.startswith("FAIL  torch 1.0 is outside ") and 'run `pip install "torch' in old_torch


def test_the_course_itself_not_installed(monkeypatch):
    monkeypatch.setattr(doctor, "DISTRIBUTION", "no_such_course")
    (line,) = report(doctor.check_versions)
    assert line.startswith("FAIL  no_such_course is not installed") and "pip install -e ." in line


def test_it_runs_where_torch_cannot_be_imported():
    """The commonest broken installation: the package can be imported all the same, the rest is checked."""
    code = """if True:
        import sys
        sys.modules["torch"] = None  # now `import torch` fails
        from moe_lessons.__main__ import main
        sys.exit(main(["doctor"]))
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert "FAIL  threads (ModuleNotFoundError: " in result.stdout
    assert "ok    jupyterlab " in result.stdout


def test_more_threads_than_cores_is_a_warning(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    (line,) = report(doctor.check_threads)
    assert line.startswith("warn") and "OMP_NUM_THREADS=" in line


@pytest.mark.parametrize(
    "disabled, found",
    [
        ({}, "is enabled"),
        ({"anywidget": True}, "is disabled: run `jupyter labextension enable anywidget`"),
        ({"anywidget:plugin": True}, "is disabled: run `jupyter labextension enable anywidget:plugin`"),
        ({"anywidget": False, "anywidget-other": True}, "is enabled"),
    ],
)
def test_a_disabled_extension(disabled, found, monkeypatch):
    info = {"federated_extensions": dict.fromkeys(doctor.WIDGET_EXTENSIONS), "disabled": disabled}
    monkeypatch.setattr(jupyterlab.commands, "get_app_info", lambda options: info)
    (line,) = [line for line in report(doctor.check_lab) if "anywidget" in line]
    assert found in line


def test_a_missing_extension(monkeypatch):
    info = {"federated_extensions": {}, "disabled": {}}
    monkeypatch.setattr(jupyterlab.commands, "get_app_info", lambda options: info)
    lines = report(doctor.check_lab)
    assert all(line.startswith("FAIL") and "is missing: run `pip install" in line for line in lines)
    assert "jupyterlab_widgets`" in lines[0]


def test_a_kernel_of_another_environment(tmp_path, monkeypatch):
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text('{"argv": ["/opt/other/bin/python", "-m", "x"], "display_name": "x"}')
    monkeypatch.setattr("jupyter_client.kernelspec.jupyter_path", lambda *parts: [str(tmp_path / parts[0])])
    lines = report(doctor.check_kernel)
    assert lines[0].startswith("FAIL  the kernel 'python3' is /opt/other/bin/python")
    assert "-m ipykernel install --sys-prefix" in lines[0]


def test_a_foreign_lab_on_the_path(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: str(tmp_path / name))
    lines = report(doctor.check_kernel)
    assert lines[-1].startswith("warn") and "make lab" in lines[-1]


def test_chromium_can_be_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_LESSONS_CHROMIUM", str(tmp_path / "none"))
    assert doctor.find_chromium() is None
    monkeypatch.setenv("MOE_LESSONS_CHROMIUM", sys.executable)
    assert doctor.find_chromium() == sys.executable
