"""``python -m tools.measure``: how fast live views are in a real browser, as rows of docs/measured.md.

Of the page that trains by itself and of views in a notebook: how long the first picture takes (from the page's address,
from running the cell), pictures and steps a second, which part of the time trains (of the page's worker, or of the CPU
time of the view's loop), and the time from a key to the picture that shows what it does, while it trains. The key moves
a slider where the page says what that did, and presses Restart elsewhere. It ends with 1 where a figure is missing."""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, Locator, Page

from tests.chromium import running_chromium
from tests.jupyterlab import LabServer, NotebookPage, View
from web import manifest, training_page
from web.serve import serving

LEAST_KEYS, BETWEEN = 5, 100  # how often the key is pressed at least; milliseconds in between
SIZE = {"width": 1280, "height": 1000}
TITLES = ("first picture", "pictures a second", "steps a second", "time that trains", "key to picture: median; 95 %")
RESTART, TOKEN = "Number(now.step) < Number(before.step)", "now.token !== before.token"
LOSS, LAYER = r"/loss \([^)]*/.exec({0}.reading)[0]", "{0}.words.slice(0, 7)"
VIEWS = {  # of a notebook: how it is made, what the key moves, and how the page says so
    "playground": ("Playground", "Token", TOKEN),
    "balancing laboratory": ("BalancingLab", "Auxiliary loss", " !== ".join(map(LOSS.format, ("now", "before")))),
    "routing laboratory": ("RoutingLab", "Layer", " !== ".join(map(LAYER.format, ("now", "before")))),
    "collapse laboratory": ("CollapseLab", "Restart", RESTART),
    "memorisation grid": ("FactsLab", "Restart", RESTART),
}
FIRST = "() => document.querySelector('.moe-canvas[data-step]')?.dataset.frames > 0"
DATA = "document.querySelector('.moe-canvas').dataset"
COUNTS = f"[performance.now() / 1000, Number({DATA}.frames), Number({DATA}.step)]"
# Makes took(): the milliseconds from the next key to the end of drawing the first picture that shows its effect.
WATCH = """(isShown) => {
    const canvas = document.querySelector(".moe-canvas");
    const text = (name) => canvas.querySelector(`.moe-${name}`).textContent;
    const seen = () => ({ ...canvas.dataset, reading: text("reading"), words: text("words") });
    const isEffect = new Function("now", "before", `return ${isShown}`);
    const wait = (done, fail) => addEventListener("keydown", () => {
        const [start, before] = [performance.now(), seen()];
        const watcher = new MutationObserver(() => {
            if (!isEffect(seen(), before)) return;
            watcher.disconnect();
            done(performance.now() - start);
        });
        watcher.observe(canvas, { attributes: true });
        setTimeout(() => fail(new Error("no picture shows what the key does")), 60_000);
    }, { once: true, capture: true });
    window.press = () => { window.took = new Promise(wait); };
}"""
# In the page's worker: note how long its steps take.
NOTE_STEPS = """async (address) => {
    const { prototype } = (await import(`${address}/loop.js`)).History;
    const { note } = prototype;
    self.trained = 0;
    prototype.note = function (...given) {
        note.apply(this, given);
        if (Object.hasOwn(this, "train")) return;
        const { train } = this;
        this.train = async () => {
            const start = performance.now();
            const isGood = await train.call(this);
            self.trained += (performance.now() - start) / 1000;
            return isGood;
        };
    };
}"""


@dataclass
class Opened:
    """A view that trains: its page, seconds to its first picture, what the key moves and does, and the seconds that it
    has trained and those that it could have."""

    page: Page
    first: float
    control: Callable[[], Locator]
    is_shown: str
    trained: Callable[[], tuple[float, float]]


def figures(opened: Opened, seconds: float) -> list[float]:
    """Measure a view, in the order of TITLES, with two figures for the key."""
    page = opened.page
    page.wait_for_timeout(300 * seconds)
    now, frames, steps = page.evaluate(COUNTS)
    trained, possible = opened.trained()
    page.wait_for_timeout(1000 * seconds)
    now_then, frames_then, steps_then = page.evaluate(COUNTS)
    trained_then, possible_then = opened.trained()
    passed, share = now_then - now, (trained_then - trained) / (possible_then - possible)
    taken = key_times(opened, seconds)
    late = quantiles(taken, n=20, method="inclusive")
    return [opened.first, (frames_then - frames) / passed, (steps_then - steps) / passed, share, late[9], late[18]]


def key_times(opened: Opened, seconds: float) -> list[float]:
    """Press the key for some seconds; return the milliseconds that each took."""
    page, taken = opened.page, []
    if (more := page.locator("button", has_text=re.compile("^More$"))).count():
        more.click()
    control = opened.control()
    page.evaluate(WATCH, opened.is_shown)
    control.focus()
    is_button = control.evaluate("element => element.matches('button')")
    keys = ("Space", "Space") if is_button else ("ArrowRight", "ArrowLeft")
    end = time.monotonic() + seconds
    while len(taken) < LEAST_KEYS or time.monotonic() < end:
        page.wait_for_timeout(BETWEEN)
        page.wait_for_function(f"() => {DATA}.step > 5", timeout=60_000)  # so that Restart has something to undo
        page.evaluate("press()")
        page.keyboard.press(keys[len(taken) % 2])
        taken.append(page.evaluate("took"))
    return taken


@contextmanager
def opened_page(browser: Browser, slow: float) -> Iterator[Opened]:
    """The page's playground, which else would pause after some steps."""
    manifest.MOST_STEPS = 10**9
    with TemporaryDirectory() as folder:
        training_page.main(folder, "few")
        with serving(Path(folder), 0) as address, closing(new_page(browser, slow)) as page:
            page.goto(f"{address}/view.html")
            page.wait_for_function(FIRST)
            first, worker = page.evaluate("performance.now() / 1000"), page.workers[0]
            worker.evaluate(NOTE_STEPS, address)
            trained = lambda: worker.evaluate("[self.trained, performance.now() / 1000]")  # noqa: E731
            yield Opened(page, first, lambda: page.get_by_label("Token", exact=True), TOKEN, trained)


@contextmanager
def opened_view(browser: Browser, slow: float, server: LabServer, name: str) -> Iterator[Opened]:
    """A view of a notebook."""
    made, control, is_shown = VIEWS[name]
    code = f"lab = {made}(play=10**6, max_steps=10**6)\nlab.loop.pace = None\nlab"
    server.write("measure.ipynb", f"from moe_lessons.widgets import {made}", code)
    with closing(new_page(browser, slow)) as page:
        notebook = NotebookPage(page)
        notebook.open(server, "measure.ipynb")
        notebook.run_cell(0)
        start = time.monotonic()
        notebook.run_cell(1, wait=False)
        page.wait_for_function(FIRST)
        first, view = time.monotonic() - start, View(page)
        moved = lambda: view.button(control) if control == "Restart" else view.handle(control)  # noqa: E731
        cost = "[lab.loop.cost['training'], lab.loop.cost['training'] + lab.loop.cost['showing']]"
        yield Opened(page, first, moved, is_shown, lambda: server.ask("measure.ipynb", cost))
    server.end_kernels()


def new_page(browser: Browser, slow: float) -> Page:
    page = browser.new_page(viewport=SIZE)
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": slow})
    return page


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Processes that only loop, as long as it lasts."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()


def row(name: str, numbers: list[float]) -> str:
    first, pictures, steps, share, median, late = numbers
    steps_text = f"{steps:,.0f}" if steps >= 100 else f"{steps:.3g}"
    texts = f"{first:.1f} s", f"{pictures:.0f}", steps_text, f"{100 * share:.0f} %", f"{median:.0f}; {late:.0f} ms"
    return f"| {' | '.join([name, *texts])} |"


def main(argv: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser("python -m tools.measure", description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="run N busy processes beside it")
    parser.add_argument("--slow", type=float, default=1, metavar="N", help="slow the browser's page N times, no worker")
    parser.add_argument("--views", nargs="+", choices=["page", *VIEWS], default=["page", *VIEWS], help="only these")
    parser.add_argument("--seconds", type=float, default=10, help="that pictures are counted, and the key is pressed")
    options = parser.parse_args(argv)
    given = f", --busy {options.busy}" * bool(options.busy) + f", --slow {options.slow:g}" * (options.slow != 1)
    print(f"| {' | '.join(['view', *TITLES])} |\n|{'---|' * (1 + len(TITLES))}", flush=True)
    missing = []
    with (
        busy_processes(options.busy), running_chromium() as browser, TemporaryDirectory() as folder,
        closing(LabServer(Path(folder))) as server,
    ):  # fmt: skip
        for name in options.views:
            of_page = opened_page(browser, options.slow)
            with of_page if name == "page" else opened_view(browser, options.slow, server, name) as opened:
                numbers = figures(opened, options.seconds)
            print(row(name + given, numbers), flush=True)
            missing += [name] * (not all(number > 0 for number in numbers))
    if missing:
        print(f"a figure is missing of: {', '.join(missing)}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
