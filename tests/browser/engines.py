"""The page that trains in Firefox and WebKit, where they are installed (Debian: firefox-esr, webkit2gtk-driver, xvfb).

    python tests/browser/engines.py

In each: the first picture, its pace, every control to its ends, a link in a second window, the other views, and no
request to another host. It prints figures, and fails where something is not as it should be. `make test` does the same
in Chromium."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import Request, urlopen

import psutil
from websocket import create_connection

from moe_lessons.commands import app
from tools import page as training_page

CANVAS = "document.querySelector('.moe-canvas')"
STATE = f"[Number({CANVAS}?.dataset.step ?? -1), Number({CANVAS}?.dataset.frames ?? 0), performance.now()]"
ENDS = """[...document.querySelectorAll('.moe-control input, .moe-control select')].map((input) => {
  const before = input.value, said = [], last = input.options?.length - 1;
  for (const end of input.options ? [0, last] : [input.min, input.max]) {
    input.options ? (input.selectedIndex = end) : (input.value = end);
    input.dispatchEvent(new Event('input'));
    said.push(document.querySelector('.moe-said').textContent);
  }
  input.value = before;
  input.dispatchEvent(new Event('input'));
  return [input.id, input.disabled, ...said];
})"""
HOSTS = "performance.getEntriesByType('resource').map(({ name }) => name)"


class Firefox:
    """A Firefox that is driven over WebDriver BiDi."""

    def __init__(self, folder: Path):
        command = ["firefox-esr", "--headless", "--no-remote", "--remote-debugging-port=0", "--profile", str(folder)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if found := re.search(r"BiDi listening on (ws://\S+)", line):
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.socket, self.number = (
            create_connection(f"{found[1]}/session", 60, suppress_origin=True),
            itertools.count(1),
        )
        self._ask("session.new", capabilities={})
        self.context = self._ask("browsingContext.getTree")["contexts"][0]["context"]

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.number)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv())).get("id") != number:
            pass
        if answer["type"] == "error":
            raise RuntimeError(answer["message"])
        return answer["result"]

    def goto(self, url: str) -> None:
        self._ask("browsingContext.navigate", context=self.context, url=url, wait="interactive")

    def evaluate(self, expression: str) -> Any:
        where = {"target": {"context": self.context}, "awaitPromise": True}
        answer = self._ask("script.evaluate", expression=f"JSON.stringify({expression})", **where)
        return json.loads(answer["result"]["value"])

    def new_window(self) -> None:
        self.context = self._ask("browsingContext.create", type="window")["context"]


class WebKit:
    """A WebKitGTK that is driven over WebDriver, on a screen that nobody sees."""

    def __init__(self, folder: Path):
        number = 20000 + os.getpid() % 10000
        command = ["xvfb-run", "-a", "WebKitWebDriver", f"--port={number}"]
        self.process, self.base = subprocess.Popen(command), f"http://127.0.0.1:{number}/session"
        browser = next(Path("/usr/lib").glob("*/webkit2gtk-4.*/MiniBrowser"))
        options = {"webkitgtk:browserOptions": {"binary": str(browser), "args": ["--automation"]}}
        for _ in range(50):
            try:
                self.base += "/" + self._ask("", {"capabilities": {"alwaysMatch": options}})["sessionId"]
                break
            except OSError:
                time.sleep(0.2)

    def _ask(self, path: str, body: dict[str, Any]) -> Any:
        request = Request(self.base + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def goto(self, url: str) -> None:
        self._ask("/url", {"url": url})

    def evaluate(self, expression: str) -> Any:
        return json.loads(self._ask("/execute/sync", {"script": f"return JSON.stringify({expression})", "args": []}))

    def new_window(self) -> None:
        self._ask("/window", {"handle": self._ask("/window/new", {"type": "window"})["handle"]})


ENGINES = {Firefox: ("firefox-esr",), WebKit: ("WebKitWebDriver", "xvfb-run")}


@contextmanager
def running(engine: type) -> Iterator[Firefox | WebKit]:
    """A browser; it and all that it has started end with it."""
    before = psutil.Process().children(recursive=True)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            yield engine(Path(folder))
        finally:
            for process in psutil.Process().children(recursive=True):
                if process not in before:
                    process.kill()


def wait(browser: Firefox | WebKit, condition: str) -> None:
    end = time.monotonic() + 60
    while not browser.evaluate(condition):
        if time.monotonic() > end:
            raise SystemExit(f"{type(browser).__name__}: in 60 s there was no {condition}")
        time.sleep(0.1)


def check(browser: Firefox | WebKit, address: str) -> None:
    """Try the page in one browser."""
    name = type(browser).__name__
    browser.goto(f"{address}/view.html#preset=collapse&seed=1")
    wait(browser, f"{STATE}[1] > 0")
    print(f"{name}: first picture within {browser.evaluate(STATE)[2]:.0f} ms", flush=True)
    time.sleep(2)
    step, frames, at = browser.evaluate(STATE)
    time.sleep(8)
    later = browser.evaluate(STATE)
    seconds = (later[2] - at) / 1000
    print(f"  {(later[0] - step) / seconds:.0f} steps and {(later[1] - frames) / seconds:.1f} pictures a second")
    said = [each for each in browser.evaluate(ENDS) if any(each[2:])]
    print("  controls at whose ends the page says something:", *said, sep="\n    ")
    wait(browser, f"{STATE}[0] >= 0 && {CANVAS}.querySelectorAll('canvas').length > 4")
    link = browser.evaluate("location.href")
    browser.new_window()
    browser.goto(link)
    wait(browser, f"{STATE}[0] > 0")
    for view in ("text", "wall", "film#06-BalancingLab"):
        browser.goto(f"{address}/view.html?view={view}")
        wait(browser, f"{STATE}[1] > 0")
    browser.goto(link)
    hosts = {url for url in browser.evaluate(HOSTS) if not url.startswith((address, "data:", "blob:"))}
    if hosts or browser.evaluate("location.href") != link:
        raise SystemExit(f"{name}: other hosts {hosts}, address {browser.evaluate('location.href')} for {link}")


def main() -> None:
    found = [engine for engine, needed in ENGINES.items() if all(map(shutil.which, needed))]
    if not found:
        sys.exit("Neither Firefox (firefox-esr) nor WebKit (webkit2gtk-driver and xvfb) is installed.")
    with TemporaryDirectory() as folder:
        training_page.main(folder, "few")
        with app.serve(Path(folder), 0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            for engine in found:
                with running(engine) as browser:
                    check(browser, f"http://127.0.0.1:{server.server_port}")
            server.shutdown()


if __name__ == "__main__":
    main()
