"""``python -m moe_lessons lab``: JupyterLab on a free port, at the first lesson."""

import os
import secrets
import socket
import sys
import threading
import time
import webbrowser
from pathlib import Path

JUPYTER_SETTINGS = Path(__file__).resolve().parent / "jupyter"
FIRST_LESSON = "notebooks/00_welcome.ipynb"


def main(no_browser: bool = False) -> int:
    """Start JupyterLab here and stay until it ends."""
    try:
        folder = course_folder()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    opens = not no_browser and can_open_browser()
    port, token = free_port(), secrets.token_hex(16)
    address = f"http://127.0.0.1:{port}/doc/tree/{FIRST_LESSON}?token={token}"
    os.environ["JUPYTER_TOKEN"] = token  # unlike an argument, not shown in the process list
    # Settings of the course, below the learner's own: JupyterLab asks for no news and looks for no updates.
    more = os.environ.get("JUPYTER_CONFIG_PATH")
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, [str(JUPYTER_SETTINGS), more]))
    threading.Thread(target=announce, args=(port, address, opens), daemon=True).start()

    from jupyterlab.labapp import LabApp

    LabApp.launch_instance(lab_arguments(folder, port, opens))
    return 0


def lab_arguments(folder: Path, port: int, opens: bool) -> list[str]:
    """The arguments of JupyterLab: this course, this machine only, and a terminal without chatter."""
    arguments = [
        f"--ServerApp.root_dir={folder}",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--LabApp.default_url=/doc/tree/{FIRST_LESSON}",
        "--LabApp.extension_manager=readonly",  # the other kind asks a package index
        "--Application.log_level=ERROR",
    ]
    if not opens:
        arguments.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--allow-root")
    return arguments


def course_folder() -> Path:
    """The folder that holds ``notebooks/``: where you are, or else the checkout this package runs from."""
    candidates = [Path.cwd(), Path(__file__).resolve().parent.parent]
    for folder in candidates:
        if (folder / FIRST_LESSON).is_file():
            return folder
    places = " or ".join(str(folder) for folder in candidates)
    raise FileNotFoundError(f"{FIRST_LESSON} is not in {places}; run this in a clone of the course")


def can_open_browser() -> bool:
    """Whether a browser window can be shown to the person who started this."""
    if "BROWSER" not in os.environ and sys.platform.startswith(("linux", "freebsd")):
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            return False  # a text browser in the terminal would be found, but it cannot run JupyterLab
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def free_port(first_choice: int = 8888) -> int:
    """`first_choice` if nobody listens there, else any free port."""
    for port in (first_choice, 0):
        with socket.socket() as listener:
            if os.name == "posix":  # as the server does it: a port that was in use a moment ago is free
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return listener.getsockname()[1]
    raise OSError("no free port on 127.0.0.1")


def announce(port: int, address: str, opens: bool) -> None:
    """Print the address once the server answers there."""
    while True:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    where = "The course opens in your browser. Its address:" if opens else "Open the course in a browser:"
    print(f"{where} {address}\nControl-C, twice, ends it.", flush=True)
