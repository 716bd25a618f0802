"""``python -m moe_lessons lab``: JupyterLab at the first lesson."""

import os
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
FIRST_LESSON = "notebooks/00_welcome.ipynb"


def main(no_browser: bool = False) -> int:
    """Start JupyterLab on the course you stand in, or else on this checkout; it prints its address and stays."""
    folder = next((folder for folder in (Path.cwd(), CHECKOUT) if (folder / FIRST_LESSON).is_file()), None)
    if folder is None:
        where = f"{FIRST_LESSON} is not in {Path.cwd()} or {CHECKOUT}"
        print(f"{where}; run this in a clone of the course", file=sys.stderr)
        return 1
    # Settings of the course, below the learner's own: JupyterLab asks for no news and looks for no updates.
    settings = [str(CHECKOUT / "moe_lessons" / "jupyter"), os.environ.get("JUPYTER_CONFIG_PATH")]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, settings))

    from jupyterlab.labapp import LabApp

    LabApp.launch_instance(lab_arguments(folder, opens=not no_browser and has_display()))
    return 0


def lab_arguments(folder: Path, opens: bool) -> list[str]:
    """The arguments of JupyterLab: this course, this machine only, and a terminal without chatter."""
    return [
        f"--ServerApp.root_dir={folder}",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.open_browser={opens}",
        "--ServerApp.allow_root=True",
        f"--LabApp.default_url=/doc/tree/{FIRST_LESSON}",
        "--LabApp.extension_manager=readonly",  # the other kind asks a package index
        "--Application.log_level=ERROR",
    ]


def has_display() -> bool:
    """Whether a browser can be shown. On a Linux without a display, one in the terminal would be opened."""
    return not sys.platform.startswith("linux") or any(map(os.getenv, ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")))
