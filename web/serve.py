"""``python -m web.serve [FOLDER]``: the site of the course, whose front page trains by itself, from this machine."""

import argparse
import asyncio
import os
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.web import Application, HTTPError, StaticFileHandler

from moe_lessons.commands.lab import has_display

SITE, PORT = Path(__file__).resolve().parents[1] / "build" / "site", 8866


def main(argv: Sequence[str] = ()) -> int:
    """Serve the site of the course to this machine, and open it in a browser. Ctrl-C ends it."""
    parser = argparse.ArgumentParser("python -m web.serve", description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=SITE, help="of the site (default: build/site)")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open no browser")
    parser.add_argument("--port", type=int, help=f"0: any that is free (default: {PORT} or, if taken, any)")
    options = parser.parse_args(argv)
    options.port = usual_port() if options.port is None else options.port
    if not (options.folder / "index.html").is_file():
        print(f"FOLDER must have an index.html, got {options.folder}; `make site` makes one.", file=sys.stderr)
        return 1
    try:
        with serving(options.folder, options.port) as address:
            print(f"{address}/ (Ctrl-C ends it)", flush=True)
            if not options.no_browser and has_display():
                webbrowser.open(address)
            with suppress(KeyboardInterrupt):
                while True:
                    time.sleep(3600)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        print(f"--port must be one that is free, or 0 for any, got {options.port}: {why}", file=sys.stderr)
        return 1
    return 0


def usual_port() -> int:
    """Return `PORT` or, where that is taken, 0: any."""
    with suppress(OSError), socket.create_server(("127.0.0.1", PORT)):
        return PORT
    return 0


@contextmanager
def serving(folder: Path, port: int) -> Iterator[str]:
    """Serve the files of a folder to this machine alone, on a thread, and give the address. port: 0 for any that is
    free. Raises OSError where the port is taken, OverflowError where there is none of that number."""
    listener, loop = socket.create_server(("127.0.0.1", port)), asyncio.new_event_loop()
    listener.setblocking(False)
    handlers = [("/(.*)", Files, {"path": os.path.realpath(folder), "default_filename": "index.html"})]
    app = Application(handlers, log_function=lambda _: None)  # without a line for each file

    async def start() -> None:
        HTTPServer(app).add_socket(listener)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        listener.close()


class Files(StaticFileHandler):
    """Files of a folder; a link that leads out of it is refused, and a browser asks anew for what has changed since."""

    def validate_absolute_path(self, root: str, absolute_path: str) -> str | None:
        if "\0" in absolute_path:
            raise HTTPError(404)
        return super().validate_absolute_path(root, os.path.realpath(absolute_path))

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-cache")

    def get_content_type(self) -> str:
        # A browser runs no module of another type, and what Windows calls a .js depends on what is installed there.
        return "text/javascript" if self.absolute_path.endswith(".js") else super().get_content_type()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
