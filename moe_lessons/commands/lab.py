"""``python -m moe_lessons lab``: JupyterLab at the first lesson."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from moe_lessons.support.data import NOTEBOOKS, PACKAGE
from moe_lessons.support.files import write_whole

JUPYTER = PACKAGE / "commands" / "jupyter"  # settings of JupyterLab, its style, an extension
CHECKOUT = PACKAGE.parent
FIRST, COPY = "00_welcome.ipynb", "moe_lessons_course"
ANOTHER = "Another place: python -m moe_lessons lab FOLDER"
# glibc then keeps the memory of a training step for the next one: a step of text takes 15 to 30 % less time.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(10**9), "MALLOC_MMAP_THRESHOLD_": str(2**25)}


def main(argv: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser("python -m moe_lessons lab", description=open_course.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help=f"of the course (outside one: {COPY}, here)")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open no browser")
    options = parser.parse_args(argv)
    try:
        folder, lesson = open_course(options.folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, or the home of somebody who is not here
        print(f"The lessons cannot be copied: {error}. {ANOTHER}", file=sys.stderr)
        return 1
    # Settings of the course, below the learner's own: JupyterLab asks for no news and looks for no updates.
    settings = filter(None, [str(JUPYTER), os.environ.get("JUPYTER_CONFIG_PATH")])
    os.environ |= KEEP_MEMORY | dict(os.environ) | {"JUPYTER_CONFIG_PATH": os.pathsep.join(settings)}

    from jupyterlab.labapp import LabApp

    arguments = [  # this course, this machine only, and a terminal without chatter
        f"--ServerApp.root_dir={folder}",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.open_browser={not options.no_browser and has_display()}",
        "--ServerApp.allow_root=True",
        "--ServerApp.jpserver_extensions={'notebook_shim': False}",  # it asks for what jupyter-server calls deprecated
        f"--LabApp.default_url=/doc/tree/{lesson}",
        "--ServerApp.kernel_websocket_connection_class=moe_lessons.commands.connection.PromptConnection",
        "--LabApp.extension_manager=readonly",  # the other kind asks a package index
        "--LabApp.custom_css=True",
        f"--LabApp.extra_labextensions_path={JUPYTER / 'labextensions'}",
        f"--ServerApp.tornado_settings={ {'static_custom_path': [str(JUPYTER / 'custom')]}!r}",
        "--Application.log_level=ERROR",
    ]
    LabApp.launch_instance(arguments)
    return 0


def open_course(asked: Path | None = None) -> tuple[Path, str]:
    """Open JupyterLab at the first lesson, from this machine alone. Where `folder` has no lessons, those of the package
    are copied there. What is there already stays as it is; a deleted lesson comes back fresh. Ctrl-C ends it."""
    for folder in [asked] if asked else [Path.cwd(), CHECKOUT]:
        if (folder / "notebooks" / FIRST).is_file():
            return folder.resolve(), f"notebooks/{FIRST}"
    is_copy = any(Path(lesson.name).is_file() for lesson in NOTEBOOKS.glob("*.ipynb"))
    folder = (asked or Path("." if is_copy else COPY)).expanduser().resolve()
    if new := copy_missing(NOTEBOOKS, folder):
        print(f"The lessons are in {folder} (files new there: {new}). What you change stays.", flush=True)
    return folder, FIRST


def copy_missing(source: Path, folder: Path) -> int:
    """Copy each file below `source` that `folder` lacks, whole or not at all, and return how many those are. JupyterLab
    trusts these lessons, so that their live views come back after a reload. OSError where a link in the folder leads
    out of it."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [path for path in source.rglob("*") if path.is_file()]
    missing = [path for path in missing if not os.path.lexists(folder / path.relative_to(source))]
    for path in missing:
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.parent.resolve().is_relative_to(folder.resolve()):
            raise OSError(f"a link leads out of the folder: {target.parent}")
        write_whole(target, path.read_bytes())
        if target.suffix == ".ipynb":
            trust(target)
    return len(missing)


def trust(lesson: Path) -> None:
    """Sign a notebook as `jupyter trust` does, where there is a place for signatures."""
    import nbformat
    from nbformat.sign import NotebookNotary

    with contextlib.suppress(OSError):
        NotebookNotary().sign(nbformat.read(lesson, as_version=4))


def has_display() -> bool:
    """Tell whether a browser can be shown. On a Linux without a display, one in the terminal would be opened."""
    return not sys.platform.startswith("linux") or any(map(os.getenv, ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")))
