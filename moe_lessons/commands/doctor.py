"""``python -m moe_lessons doctor``: what is wrong with this installation, and what to do.

A check imports what is beyond the standard library itself: a missing package is a finding and not a crash."""

import argparse
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

INSTALL = "install the course again: `pip install -e .` in its folder"
EXTENSIONS = {"@jupyter-widgets/jupyterlab-manager": "jupyterlab_widgets", "anywidget": "anywidget"}
Findings = Iterator[tuple[str, str, str]]  # 'ok' or 'FAIL'; what was seen; what to do unless it is ok


def main(argv: Sequence[str] = ()) -> int:
    """Check what the course needs, and say of each thing that is wrong what to do: the packages and their versions,
    torch, the kernel of the notebooks, the JupyterLab extensions that draw the widgets. Nothing is changed. The exit
    status is 1 if something is to be mended."""
    argparse.ArgumentParser("python -m moe_lessons doctor", description=main.__doc__).parse_args(argv)
    print(f"Python {platform.python_version()}, {sys.executable}")
    failed = 0
    for check in (check_packages, check_torch, check_kernel, check_extensions):
        try:
            findings = list(check())
        except Exception as error:  # a check that cannot run is a finding too
            name = check.__name__.removeprefix("check_")
            findings = [("FAIL", f"{name} ({type(error).__name__}: {error})", INSTALL)]
        for status, seen, advice in findings:
            failed += status == "FAIL"
            print(f"{status:<4}  {seen}" + (f": {advice}" if status != "ok" else ""), flush=True)
    print(f"{failed} to mend." if failed else "Everything the course needs is here.")
    return 1 if failed else 0


def check_packages() -> Findings:
    """Compare every package that the course needs with the range in the course's own metadata."""
    from packaging.requirements import Requirement

    for needed in map(Requirement, metadata.requires("moe_lessons") or []):
        if needed.marker is None:  # those of the extras carry a marker
            try:
                version = metadata.version(needed.name)
                status = "ok" if needed.specifier.contains(version, prereleases=True) else "FAIL"
            except metadata.PackageNotFoundError:
                version, status = "is not installed", "FAIL"
            yield status, f"{needed.name} {version}", f'run `pip install "{needed.name}{needed.specifier}"`'


def check_torch() -> Findings:
    """Find whether torch can be imported."""
    import torch

    yield "ok", f"torch computes with {torch.get_num_threads()} threads", ""


def check_kernel() -> Findings:
    """Find whether the kernel of the notebooks is of this environment."""
    from jupyter_client.kernelspec import KernelSpecManager

    here = Path(sys.executable).parent.resolve()  # the folder of this environment: where links lead to does not count
    program = Path(KernelSpecManager().get_kernel_spec("python3").argv[0])  # a bare `python` is this interpreter
    status = "FAIL" if program.is_absolute() and program.parent.resolve() != here else "ok"
    yield status, f"the kernel 'python3' is {program}", f"run `{sys.executable} -m ipykernel install --sys-prefix`"


def check_extensions() -> Findings:
    """Find the two JupyterLab extensions that draw the widgets, enabled."""
    from jupyter_core.paths import jupyter_path
    from jupyterlab.commands import AppOptions, get_app_info

    info = get_app_info(AppOptions(labextensions_path=jupyter_path("labextensions")))
    for extension, package in EXTENSIONS.items():
        off = [name for name, is_off in info["disabled"].items() if is_off and name.partition(":")[0] == extension]
        if extension not in info["federated_extensions"]:
            advice = f"run `pip install --force-reinstall --no-deps {package}`"
            yield "FAIL", f"JupyterLab extension {extension} is missing", advice
        else:
            advice = "; ".join(f"run `jupyter labextension enable {name}`" for name in off)
            seen = f"JupyterLab extension {extension} is {'disabled' if off else 'enabled'}"
            yield "FAIL" if off else "ok", seen, advice
