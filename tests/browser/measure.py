"""How fast live views are in a real browser: pictures a second, the share of training, and from a key to new pixels.

    python tests/browser/measure.py                                  # on an otherwise idle machine
    python tests/browser/measure.py --busy 2 --views "routing laboratory"   # one view, beside two busy processes
    python tests/browser/measure.py --views page --minutes 60        # the page that trains by itself, for an hour

It prints, and asserts nothing."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from conftest import LabServer, NotebookPage, View
from tests.chromium import running_chromium
from web import training_page
from web.serve import serving

COST = "cost = {0}.loop.cost\nprint(f\"{{cost['training'] / (cost['training'] + cost['showing']):.1%}}\")"
LONG = "play=10**6, max_steps=10**6"


@dataclass
class Key:
    """A control that is moved by keys, through `stops` stops and back, and what in the page says that it has an effect:
    an expression of `canvas`, of its texts `words` and `reading`, and of what the control says itself, `value`."""

    control: str
    stops: int
    shows: str
    is_list: bool = False


# What is measured: how the view is made, whether it trains, and the keys.
VIEWS = {
    "playground": (f"Playground({LONG})", True, [Key("Token", 32, "canvas.dataset.token === value")]),
    "balancing laboratory": (
        f"BalancingLab({LONG})", True,
        [Key("Auxiliary loss", 8, "reading.includes(`minimised (${value})`)"),
         Key("Highlight", 10, "reading.startsWith(value + ': ')", is_list=True)],
    ),
    "routing laboratory": (
        f"RoutingLab({LONG})", True,
        [Key("Layer", 3, "words.startsWith(`Layer ${value}: `)"),
         Key("Layer", 3, "titles.every((title) => !/layer \\d/.test(title) || title.endsWith(`layer ${value}`))")],
    ),
    "collapse laboratory": (f"CollapseLab({LONG})", True, []),
    "facts by heart": (f"FactsLab({LONG})", True, []),
    "cost calculator": (
        "CostCalculator()", False,
        [Key("Layers", 30, "words !== before"),
         Key("Batch", 8, "words.includes(value === '1' ? 'for one text' : `for ${value} texts`)")],
    ),
}  # fmt: skip
IMPORTS = "from moe_lessons.widgets import *"
WATCH = Path(__file__).with_name("watch.js").read_text()
CANVAS = "document.querySelector('.moe-canvas')"
FRAMES = f"Number({CANVAS}.dataset.frames)"


def latencies(page, view: View, key: Key, times: int) -> list[float]:
    """Milliseconds from a key on a control to the picture that shows its effect, so many times, sorted."""
    page.evaluate(WATCH, [key.control, key.is_list, key.shows])
    control = view.view.get_by_label(key.control, exact=True) if key.is_list else view.handle(key.control)
    forth, back = ("ArrowDown", "ArrowUp") if key.is_list else ("ArrowRight", "ArrowLeft")
    control.focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(1500)
    taken = []
    for i in range(times):
        page.evaluate("expect()")
        page.keyboard.press(forth if i // (key.stops - 1) % 2 == 0 else back)
        page.wait_for_function("() => window.arrived", timeout=20_000)
        taken.append(page.evaluate("arrived - pressed"))
        page.wait_for_timeout(100)
    return sorted(taken)


def say(what: str, result: str) -> None:
    print(f"  {what:50} {result}", flush=True)


def pace(notebook: NotebookPage, view: View, seconds: float) -> None:
    """Pictures and steps a second, over so many seconds, and the share of training."""
    page = notebook.page
    page.wait_for_timeout(300 * seconds)
    frames, steps, start = page.evaluate(FRAMES), view.step, time.monotonic()
    page.wait_for_timeout(1000 * seconds)
    seconds = time.monotonic() - start
    say("pictures a second seen in the browser", f"{(page.evaluate(FRAMES) - frames) / seconds:.1f}")
    say("steps a second", f"{(view.step - steps) / seconds:.0f}")
    notebook.run_cell(2)
    page.wait_for_timeout(500)
    printed = page.locator(".jp-CodeCell").nth(2).locator(".jp-OutputArea-output").first.text_content()
    say("training's share of the loop's CPU", printed.strip())
    view.is_drawn()


def measure(server: LabServer, browser, name: str, seconds: float, keys: int) -> None:
    """Print all figures of one view, in a page of its own."""
    code, trains, controls = VIEWS[name]
    print(f"{name}, load of the machine {os.getloadavg()[0]:.1f}")
    server.write("measure.ipynb", IMPORTS, f"lab = {code}\nlab", COST.format("lab") if trains else "")
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    notebook = NotebookPage(context.new_page())
    notebook.open(server, "measure.ipynb")
    notebook.run_all()
    view = View(notebook.page)
    if trains:
        pace(notebook, view, seconds)
    for state in ("training", "paused") if trains else ("",):
        if state == "paused":
            view.pause()
        for key in controls:
            taken = latencies(notebook.page, view, key, keys)
            goal = "all panels" if "titles" in key.shows else "new pixels"
            middle, late = taken[keys // 2], taken[int(0.95 * keys)]
            what = f"{key.control} key to {goal}{state and ', '}{state}"
            say(what, f"median {middle:.0f} ms, 95th percentile {late:.0f} ms")
    context.close()
    server.end_kernels()


def measure_page(browser, seconds: float, keys: int, minutes: float) -> None:
    """Print all figures of the page that trains: as it is, with a CPU four times slower, and after a long training."""
    print(f"page, load of the machine {os.getloadavg()[0]:.1f}")
    with TemporaryDirectory() as folder:
        training_page.main(folder, "few")
        with serving(Path(folder), 0) as address:
            for slower in (1, 4):
                page = browser.new_page(viewport={"width": 1280, "height": 1000})
                page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": slower})
                arrived = []
                page.on("requestfinished", lambda request, arrived=arrived: arrived.append(request))
                page.goto(f"{address}/view.html")
                page.wait_for_function("() => document.querySelector('.moe-canvas[data-step]')?.dataset.frames > 0")
                say(f"{slower} times slower: first picture", f"{page.evaluate('performance.now()'):.0f} ms")
                size = sum(request.sizes()["responseBodySize"] for request in arrived)
                say("asked for until then", f"{size / 1e6:.1f} MB")
                step = f"Number({CANVAS}.dataset.step)"
                page.wait_for_timeout(1500)
                frames, steps, start = page.evaluate(FRAMES), page.evaluate(step), time.monotonic()
                page.wait_for_timeout(1000 * seconds)
                took = time.monotonic() - start
                say("pictures a second", f"{(page.evaluate(FRAMES) - frames) / took:.1f}")
                say("steps a second", f"{(page.evaluate(step) - steps) / took:.0f}")
                for state in ("training", "paused"):
                    if state == "paused":
                        page.get_by_role("button", name="Pause", exact=True).click()
                    taken = sorted(pressed(page, keys))
                    late = f"median {taken[keys // 2]:.0f} ms, 95th percentile {taken[int(0.95 * keys)]:.0f} ms"
                    say(f"Token key to new pixels, {state}", late)
                if slower == 1:
                    long_training(page, minutes)
                page.close()


def pressed(page, times: int) -> Iterator[float]:
    """Milliseconds from a key on the slider of tokens to the picture that shows its effect, so many times."""
    page.evaluate(WATCH, ["Token", False, "canvas.dataset.token === value"])
    page.get_by_label("Token", exact=True).focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(500)
    for i in range(times):
        page.evaluate("expect()")
        page.keyboard.press("ArrowRight" if i // 31 % 2 == 0 else "ArrowLeft")
        page.wait_for_function("() => window.arrived", timeout=20_000)
        yield page.evaluate("arrived - pressed")
        page.wait_for_timeout(50)


def long_training(page, minutes: float) -> None:
    """Print the memory of the browser's processes after a minute and after so many."""
    start = time.monotonic()
    for minute in sorted({1.0, max(minutes, 1.0)}):
        while time.monotonic() - start < 60 * minute:
            if (play := page.get_by_role("button", name="Play", exact=True)).count():
                play.click()  # it stops by itself after so many steps
            page.wait_for_timeout(500)
        page.wait_for_timeout(2000)
        used = sum(each.memory_info().rss for each in psutil.Process().children(recursive=True) if "renderer" in
                   " ".join(each.cmdline()))  # fmt: skip
        what = f"memory of the pages after {minute:g} min, step {page.evaluate(f'{CANVAS}.dataset.step')}"
        say(what, f"{used / 1e6:.0f} MB")


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
    parser.add_argument("--minutes", type=float, default=1, help="that the page trains for its memory")
    parser.add_argument("--seconds", type=float, default=10, help="over which pictures are counted")
    parser.add_argument("--keys", type=int, default=60, help="how many are pressed on each control")
    options = parser.parse_args()
    with busy_processes(options.busy), running_chromium() as browser:
        if "page" in options.views:
            measure_page(browser, options.seconds, options.keys, options.minutes)
        if views := [name for name in options.views if name != "page"]:
            with TemporaryDirectory() as folder, closing(LabServer(Path(folder))) as server:
                for name in views:
                    measure(server, browser, name, options.seconds, options.keys)


if __name__ == "__main__":
    main()
