"""How fast live views are in a real browser: pictures a second, the share of training, and from a key to new pixels.

    python tests/browser/measure.py                                  # on an otherwise idle machine
    python tests/browser/measure.py --busy 2 --views "routing laboratory"   # one view, beside two busy processes
    python tests/browser/measure.py --views page                     # the page that trains by itself

It prints, and asserts nothing."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from conftest import LabServer, NotebookPage, View
from tests.chromium import running_chromium
from web import training_page
from web.serve import serving

COST = "[lab.loop.cost[part] for part in ('training', 'showing')]"
LONG = "play=10**6, max_steps=10**6"


class Key(NamedTuple):
    """A slider that is moved by keys, its `stops`, and what in the page says that a key has an effect: an expression of
    `canvas`, of its text `reading`, and of the `value` of the slider."""

    slider: str
    stops: int
    shows: str


TOKEN = Key("Token", 32, "canvas.dataset.token === value")
VIEWS = {  # what is measured: how the view is made, and a key
    "playground": (f"Playground({LONG})", TOKEN),
    "balancing laboratory": (
        f"BalancingLab({LONG})",
        Key("Auxiliary loss", 8, "reading.includes(`loss (${value})`)"),
    ),
    "routing laboratory": (f"RoutingLab({LONG})", None),
    "collapse laboratory": (f"CollapseLab({LONG})", None),
    "facts by heart": (f"FactsLab({LONG})", None),
}
WATCH = Path(__file__).with_name("watch.js").read_text()
CANVAS = "document.querySelector('.moe-canvas')"
COUNTS = f"[Number({CANVAS}.dataset.frames), Number({CANVAS}.dataset.step)]"


def say(what: str, result: str) -> None:
    print(f"  {what:50} {result}", flush=True)


def pace(page, seconds: float) -> None:
    """Print pictures and steps a second, over so many seconds."""
    (frames, steps), start = page.evaluate(COUNTS), time.monotonic()
    page.wait_for_timeout(1000 * seconds)
    (frames_then, steps_then), seconds = page.evaluate(COUNTS), time.monotonic() - start
    say("pictures a second seen in the browser", f"{(frames_then - frames) / seconds:.1f}")
    say("steps a second", f"{(steps_then - steps) / seconds:.0f}")


def latency(page, slider, key: Key, times: int, state: str) -> None:
    """Print the milliseconds from a key on a slider, so many times, to the picture that shows its effect."""
    page.evaluate(WATCH, [key.slider, key.shows])
    slider.focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(1500)
    taken = []
    for i in range(times):
        page.evaluate("expect()")
        page.keyboard.press("ArrowRight" if i // (key.stops - 1) % 2 == 0 else "ArrowLeft")
        page.wait_for_function("() => window.arrived", timeout=20_000)
        taken.append(page.evaluate("arrived - pressed"))
        page.wait_for_timeout(100)
    middle, late = sorted(taken)[times // 2], sorted(taken)[int(0.95 * times)]
    say(f"{key.slider} key to new pixels, {state}", f"median {middle:.0f} ms, 95th percentile {late:.0f} ms")


def measure(server: LabServer, browser, name: str, seconds: float, times: int) -> None:
    """Print all figures of one view, in a page of its own."""
    code, key = VIEWS[name]
    print(f"{name}, load of the machine {os.getloadavg()[0]:.1f}")
    server.write("measure.ipynb", "from moe_lessons.widgets import *", f"lab = {code}\nlab")
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    notebook = NotebookPage(context.new_page())
    notebook.open(server, "measure.ipynb")
    notebook.run_all()
    page, view = notebook.page, View(notebook.page)
    page.wait_for_timeout(300 * seconds)
    pace(page, seconds)
    training, showing = server.ask("measure.ipynb", COST)
    say("training's share of the loop's CPU", f"{training / (training + showing):.1%}")
    if key:
        latency(page, view.handle(key.slider), key, times, "training")
        view.pause()
        latency(page, view.handle(key.slider), key, times, "paused")
    context.close()
    server.end_kernels()


def measure_page(browser, seconds: float, times: int) -> None:
    """Print all figures of the page that trains: as it is, and with a processor four times slower."""
    print(f"page, load of the machine {os.getloadavg()[0]:.1f}")
    with TemporaryDirectory() as folder:
        training_page.main(folder, "few")
        with serving(Path(folder), 0) as address:
            for slower in (1, 4):
                page, arrived = browser.new_page(viewport={"width": 1280, "height": 1000}), []
                page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": slower})
                page.on("requestfinished", arrived.append)
                page.goto(f"{address}/view.html")
                page.wait_for_function("() => document.querySelector('.moe-canvas[data-step]')?.dataset.frames > 0")
                say(f"{slower} times slower: first picture", f"{page.evaluate('performance.now()'):.0f} ms")
                size = sum(request.sizes()["responseBodySize"] for request in arrived)
                say("asked for until then", f"{size / 1e6:.1f} MB")
                page.wait_for_timeout(1500)
                pace(page, seconds)
                latency(page, page.get_by_label("Token", exact=True), TOKEN, times, "training")
                page.close()


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Processes that only loop, as long as it lasts."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="run N busy processes beside it")
    parser.add_argument("--views", nargs="+", choices=[*VIEWS, "page"], default=[*VIEWS, "page"], help="only these")
    parser.add_argument("--seconds", type=float, default=10, help="over which pictures are counted")
    parser.add_argument("--keys", type=int, default=60, help="how many are pressed on a slider")
    options = parser.parse_args()
    with busy_processes(options.busy), running_chromium() as browser:
        if "page" in options.views:
            measure_page(browser, options.seconds, options.keys)
        if views := [name for name in options.views if name != "page"]:
            with TemporaryDirectory() as folder, closing(LabServer(Path(folder))) as server:
                for name in views:
                    measure(server, browser, name, options.seconds, options.keys)


if __name__ == "__main__":
    main()
