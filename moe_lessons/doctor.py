"""``python -m moe_lessons doctor``: what is wrong with this installation, and what to do.

Everything beyond the standard library is imported inside a check, so that a missing package is a finding
and not a crash.
"""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

DISTRIBUTION = "moe_lessons"
INSTALL = "run `pip install -e .` in the course's folder (or `make lab`, which does it)"
WIDGET_EXTENSIONS = {"@jupyter-widgets/jupyterlab-manager": "jupyterlab_widgets", "anywidget": "anywidget"}
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Finding(NamedTuple):
    """One line of the report: status 'ok', 'warn' or 'FAIL', what was seen, and what to do about it."""

    status: str
    seen: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.status:<4}  {self.seen}" + (f": {self.advice}" if self.advice else "")


def main() -> int:
    """Print one line per check; 1 if one of them is FAIL."""
    failed = 0
    for check in (check_versions, check_threads, check_accelerator, check_kernel, check_lab, check_chromium):
        try:
            for finding in check():
                failed += finding.status == "FAIL"
                print(finding, flush=True)
        except Exception as error:  # a check that cannot run is a finding too
            failed += 1
            subject = check.__name__.removeprefix("check_")
            print(Finding("FAIL", f"{subject} ({type(error).__name__}: {error})", INSTALL), flush=True)
    print(f"{failed} to mend." if failed else "Everything the course needs is here.")
    return 1 if failed else 0


def check_versions() -> Iterator[Finding]:
    """Python and every package the course needs, against the ranges in the course's own metadata."""
    try:
        info = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        yield Finding("FAIL", f"{DISTRIBUTION} is not installed in {sys.executable}", INSTALL)
        return
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python, wanted = platform.python_version(), info["Requires-Python"]
    if SpecifierSet(wanted).contains(python, prereleases=True):
        yield Finding("ok", f"python {python}")
    else:
        yield Finding("FAIL", f"python {python}", f"make the environment again with a Python {wanted}")
    for requirement in map(Requirement, metadata.requires(DISTRIBUTION) or []):
        if requirement.marker is None:  # those of the extras carry a marker
            yield check_package(requirement.name, requirement.specifier)


def check_package(name: str, specifier) -> Finding:
    """One installed package against the range it should be in."""
    repair = f'run `pip install "{name}{specifier}"`'
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding("FAIL", f"{name} is not installed", repair)
    if not specifier.contains(version, prereleases=True):
        return Finding("FAIL", f"{name} {version} is outside {specifier}", repair)
    return Finding("ok", f"{name} {version}")


def check_threads() -> Iterator[Finding]:
    """Torch should use the cores that this process may run on, and no more."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    seen = f"threads: torch uses {threads}, this process may use {cores} cores"
    if threads > cores:
        yield Finding("warn", seen, f"set OMP_NUM_THREADS={cores}, or everything here is slow")
    else:
        yield Finding("ok", seen)


def check_accelerator() -> Iterator[Finding]:
    """A GPU if there is one; no lesson needs it."""
    import torch

    if torch.cuda.is_available():
        yield Finding("ok", f"GPU: {torch.cuda.get_device_name()} (device='cuda')")
    elif torch.backends.mps.is_available():
        yield Finding("ok", "GPU: Apple (device='mps')")
    else:
        yield Finding("ok", "GPU: none, and no lesson needs one")


def check_kernel() -> Iterator[Finding]:
    """The notebooks' kernel and the `jupyter-lab` on PATH must be those of this very environment."""
    from jupyter_client.kernelspec import KernelSpecManager

    program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    # Jupyter itself replaces a bare `python` by the interpreter it runs in.
    foreign = Path(program).is_absolute() and not is_here(Path(program))
    if foreign:
        yield Finding(
            "FAIL",
            f"the kernel 'python3' is {program}, not {sys.executable}",
            f"run `{sys.executable} -m ipykernel install --sys-prefix`",
        )
    else:
        yield Finding("ok", f"kernel: {sys.executable}")
    if metadata.version("ipykernel").startswith("6."):
        seen = "ipykernel 6: controls are answered only when the cell that waits has ended"
        yield Finding("warn", seen, "make the environment again with Python 3.11 or newer, which brings ipykernel 7.4")
    on_path = shutil.which("jupyter-lab")
    if on_path and not is_here(Path(on_path)):
        yield Finding(
            "warn",
            f"`jupyter-lab` on PATH is another installation, {on_path}",
            "start the course with `make lab` or `python -m moe_lessons lab`",
        )


def is_here(program: Path) -> bool:
    """Whether a program lies in this environment (its own folder; what a link points to does not count)."""
    return program.parent.resolve() == Path(sys.executable).parent.resolve()


def check_lab() -> Iterator[Finding]:
    """The two JupyterLab extensions that draw the course's widgets, present and enabled."""
    from jupyter_core.paths import jupyter_path
    from jupyterlab.commands import AppOptions, get_app_info

    info = get_app_info(AppOptions(labextensions_path=jupyter_path("labextensions")))
    for extension, package in WIDGET_EXTENSIONS.items():
        plugins_off = [name for name, off in info["disabled"].items() if off and is_part(name, extension)]
        if extension not in info["federated_extensions"]:
            repair = f"run `pip install --force-reinstall --no-deps {package}`"
            yield Finding("FAIL", f"JupyterLab extension {extension} is missing", repair)
        elif plugins_off:
            repair = " and ".join(f"`jupyter labextension enable {name}`" for name in plugins_off)
            yield Finding("FAIL", f"JupyterLab extension {extension} is disabled", f"run {repair}")
        else:
            yield Finding("ok", f"JupyterLab extension {extension} is enabled")


def is_part(plugin: str, extension: str) -> bool:
    """Whether a name in the list of what is disabled means the extension or one of its plugins."""
    return plugin.partition(":")[0] == extension


def check_chromium() -> Iterator[Finding]:
    """Only the tests in a browser need a Chromium; a learner uses any browser."""
    yield Finding("ok", f"Chromium: {find_chromium() or 'none, and only the browser tests need one'}")


def find_chromium() -> str | None:
    """The Chromium to test with: MOE_LESSONS_CHROMIUM, or the first of the usual names on PATH."""
    named = os.environ.get("MOE_LESSONS_CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
