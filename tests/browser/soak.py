"""Whether memory stays flat while a playground trains: with its tab open, hidden, frozen and closed.

    python tests/browser/soak.py --minutes 10        # in each of these states

It prints, and asserts nothing. Megabytes: resident memory of the kernel and of the server, and the page's own heap. The
kernel keeps a record of every step, which is no leak: how large all of them are is said after each state.

A headless Chromium hides no tab, so a hidden one is made: it gets no animation frames. A frozen one is stopped.
"""

import argparse
import signal
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from conftest import LabServer, NotebookPage, View, running_chromium

EVERY = 10  # seconds between two readings
CELLS = (
    "from moe_lessons.widgets import Playground",
    "lab = Playground(max_steps=10**7)\nlab",
    "import sys\n"
    "def size(x): return sys.getsizeof(x) + (sum(map(size, x)) if isinstance(x, (list, tuple)) else 0)\n"
    "records = sum(size(run.records[-1]) * len(run.records) for run in lab.runs.values()) / 2**20\n"
    "sent, drawn = lab.canvas.frame, lab.canvas.answered\n"
    "print(f'{lab.step} steps, records {records:.1f} MB, pictures sent {sent}, drawn {drawn}')",
)
HIDE = """() => {
    window.waiting = [];
    window.frames = window.requestAnimationFrame;
    window.requestAnimationFrame = (action) => window.waiting.push(action);
}"""
SHOW = """() => {
    window.requestAnimationFrame = window.frames;
    window.waiting.forEach((action) => requestAnimationFrame(action));
}"""


def memory(server: LabServer) -> tuple[float, float]:
    """Megabytes of the kernel, and of all other processes of the server."""
    sizes = [0.0, 0.0]
    process = psutil.Process(server.process.pid)
    for one in (process, *process.children(recursive=True)):
        sizes["ipykernel_launcher" not in " ".join(one.cmdline())] += one.memory_info().rss / 2**20
    return sizes[0], sizes[1]


def watch(server: LabServer, state: str, minutes: float, client=None) -> None:
    """Print what the memory is, every `EVERY` seconds, and by how much it has grown after the first minute."""
    start, readings = time.monotonic(), []
    while (seconds := time.monotonic() - start) < 60 * minutes + 1:
        sizes = memory(server)
        if client:
            client.send("HeapProfiler.collectGarbage")
            sizes += (client.send("Runtime.getHeapUsage")["usedSize"] / 2**20,)
        readings.append(sizes)
        print(f"{state:8}{seconds:6.0f} s" + "".join(f"{size:10.1f}" for size in sizes), flush=True)
        time.sleep(EVERY)
    first = readings[min(60 // EVERY, len(readings) - 1)]
    print(f"{'grown by':16}" + "".join(f"{now - then:+10.1f}" for now, then in zip(readings[-1], first)), flush=True)


def signal_renderers(number: int) -> None:
    """Stop the processes that run pages, or have them go on."""
    for process in psutil.Process().children(recursive=True):
        if "--type=renderer" in process.cmdline():
            process.send_signal(number)


def soak(browser, server: LabServer, minutes: float) -> None:
    """The four states, one after the other, in one kernel that trains all the time."""
    server.write("soak.ipynb", *CELLS)
    notebook = NotebookPage(browser.new_context(viewport={"width": 1280, "height": 1000}).new_page())
    notebook.open(server, "soak.ipynb")
    notebook.run_all()
    View(notebook.page).button("Play").click()
    client = notebook.page.context.new_cdp_session(notebook.page)
    print("state     time     kernel    server      heap")
    watch(server, "open", minutes, client)
    print("→", notebook.run_cell(2).strip(), flush=True)
    notebook.page.evaluate(HIDE)
    watch(server, "hidden", minutes, client)
    notebook.page.evaluate(SHOW)
    print("→", notebook.run_cell(2).strip(), flush=True)
    signal_renderers(signal.SIGSTOP)
    watch(server, "frozen", minutes)
    signal_renderers(signal.SIGCONT)
    print("→", notebook.run_cell(2).strip(), flush=True)
    notebook.page.context.close()
    watch(server, "closed", minutes)
    notebook = NotebookPage(browser.new_context().new_page())
    notebook.open(server, "soak.ipynb", reset=False)
    print("→", notebook.run_cell(2).strip(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="in each of the four states")
    minutes = parser.parse_args().minutes
    with TemporaryDirectory() as folder, closing(LabServer(Path(folder))) as server, running_chromium() as browser:
        soak(browser, server, minutes)


if __name__ == "__main__":
    main()
