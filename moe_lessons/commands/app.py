"""``python -m moe_lessons app``: the site of the course, whose front page trains by itself, from this machine."""

import argparse
import functools
import sys
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from moe_lessons.commands.lab import has_display
from moe_lessons.support.data import HOME, IS_CHECKOUT, repository

SITE, PORT = HOME / "build" / "site", 8866


def main(argv: Sequence[str] = ()) -> int:
    """Serve the site of the course to this machine, and open it in a browser. Ctrl-C ends it."""
    parser = argparse.ArgumentParser("python -m moe_lessons app", description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="of the site (default: build/site of the checkout)")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open no browser")
    parser.add_argument("--port", type=int, help=f"default: {PORT}, or one that is free")
    options = parser.parse_args(argv)
    folder = options.folder or SITE
    if not (folder / "index.html").is_file():
        print(f"FOLDER must have an index.html, got {folder}." if options.folder else how_to_make(), file=sys.stderr)
        return 1
    try:
        server = serve(folder, PORT if options.port is None else options.port)
    except (OSError, OverflowError) as error:
        if options.port is not None:
            why = str(getattr(error, "strerror", None) or error).rstrip(".")
            print(f"--port must be one that is free, or 0 for any, got {options.port}: {why}.", file=sys.stderr)
            return 1
        server = serve(folder, 0)
    address = f"http://127.0.0.1:{server.server_port}/"
    print(f"{address} (Ctrl-C ends it)", flush=True)
    if not options.no_browser and has_display():
        webbrowser.open(address)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()
    return 0


def how_to_make() -> str:
    """Say which one command makes the site and opens it."""
    if IS_CHECKOUT:
        return f"The site is not in {SITE}: `make site` makes it."
    address = repository()
    where = f"git clone {address} && cd {address.rpartition('/')[2]}"
    return f"The site is made from a checkout of the course: run `{where} && make app`."


def serve(folder: Path, port: int) -> ThreadingHTTPServer:
    """Return a server of the files of a folder to this machine alone, port: 0 for any that is free. Raises OSError
    where the port is taken, OverflowError where there is none of that number."""
    return ThreadingHTTPServer(("127.0.0.1", port), functools.partial(Files, directory=folder))


class Files(SimpleHTTPRequestHandler):
    """Answers with files, without a line for each; a browser asks anew for what has changed since."""

    # A browser runs no module of another type, and what Windows calls a .js depends on what is installed there.
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".js": "text/javascript"}

    def log_message(self, *words) -> None:
        pass

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def copyfile(self, *files) -> None:
        with suppress(ConnectionError):  # the page was left before it had all of a file
            super().copyfile(*files)
