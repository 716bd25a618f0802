"""``python -m moe_lessons lab``: JupyterLab at the first lesson."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from moe_lessons.support.data import NOTEBOOKS, PACKAGE
from moe_lessons.support.unpack import MANIFEST, unpack

JUPYTER = PACKAGE / "commands" / "jupyter"  # settings of JupyterLab
CHECKOUT, FIRST, COPY = PACKAGE.parent, "00_welcome.ipynb", "moe_lessons_course"
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
        name, why = getattr(error, "filename", None) or options.folder, getattr(error, "strerror", None) or str(error)
        why = "a file has that name" if isinstance(error, FileExistsError) else why.lower().rstrip(".")
        print(f"The lessons cannot be copied: {name}: {why}. {ANOTHER}", file=sys.stderr)
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
        "--LabApp.extension_manager=readonly",  # the other kind asks a package index
        "--Application.log_level=ERROR",
    ]
    LabApp.launch_instance(arguments)
    return 0


def open_course(asked: Path | None = None) -> tuple[Path, str]:
    """Open the course in `folder`. Where there is none, the lessons of the package are copied there; what you change
    stays, also when the package has newer ones. A deleted lesson comes back fresh."""
    is_copy = Path(MANIFEST).exists()
    for folder in [asked] if asked else [] if is_copy else [Path.cwd(), CHECKOUT]:
        if (folder / "notebooks" / FIRST).is_file():
            return folder.resolve(), f"notebooks/{FIRST}"
    folder = (asked or Path("." if is_copy else COPY)).expanduser().resolve()
    for sentence in unpack(NOTEBOOKS, folder):
        print(sentence, flush=True)
    return folder, FIRST


def has_display() -> bool:
    """Tell whether a browser can be shown. On a Linux without a display, one in the terminal would be opened."""
    return not sys.platform.startswith("linux") or any(map(os.getenv, ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")))
