"""Whether memory stays flat while a playground trains: with its tab open, hidden, frozen and closed.

    python tests/browser/soak.py --minutes 10        # in each of these states

It prints, and asserts nothing. Megabytes: resident memory of the kernel and of the server, and the page's own heap. The
kernel keeps a record of every step, which is no leak: how large all of them are is said after each state.

A headless Chromium hides no tab, so a hidden one is made: it gets no animation frames. A frozen one is stopped.
"""

import argparse
import shutil
import signal
import tempfile
import time
from pathlib import Path

import nbformat
import psutil
from conftest import CHROMIUM_ARGUMENTS, ROOT, LabServer, NotebookPage, View
from playwright.sync_api import sync_playwright

from moe_lessons.doctor import find_chromium

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


def tell(notebook: NotebookPage) -> None:
    """Print what the kernel says of steps, records and pictures."""
    cell = notebook.page.locator(".jp-CodeCell").nth(2)
    cell.locator(".cm-content").click()
    notebook.page.keyboard.press("Control+Enter")
    notebook.page.wait_for_timeout(3000)
    print("→", cell.locator(".jp-OutputArea-output").first.text_content().strip(), flush=True)


def signal_renderers(number: int) -> None:
    """Stop the processes that run pages, or have them go on."""
    for process in psutil.Process().children(recursive=True):
        if "--type=renderer" in process.cmdline():
            process.send_signal(number)


def soak(browser, server: LabServer, minutes: float) -> None:
    """The four states, one after the other, in one kernel that trains all the time."""
    address = f"{server.address}/doc/tree/notebooks/soak.ipynb?token={server.token}"
    notebook = NotebookPage(browser.new_context(viewport={"width": 1280, "height": 1000}).new_page())
    notebook.open(f"{address}&reset")
    notebook.run_all()
    View(notebook.page).button("Play").click()
    client = notebook.page.context.new_cdp_session(notebook.page)
    print("state     time     kernel    server      heap")
    watch(server, "open", minutes, client)
    tell(notebook)
    notebook.page.evaluate(HIDE)
    watch(server, "hidden", minutes, client)
    notebook.page.evaluate(SHOW)
    tell(notebook)
    signal_renderers(signal.SIGSTOP)
    watch(server, "frozen", minutes)
    signal_renderers(signal.SIGCONT)
    tell(notebook)
    notebook.page.context.close()
    watch(server, "closed", minutes)
    notebook = NotebookPage(browser.new_context().new_page())
    notebook.open(address)
    tell(notebook)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="in each of the four states")
    minutes = parser.parse_args().minutes
    root, home = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    book.metadata["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nbformat.write(book, root / "notebooks" / "soak.ipynb")
    server = LabServer(root, home)
    server.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_ARGUMENTS)
            soak(browser, server, minutes)
            browser.close()
    finally:
        server.stop()
        for folder in (root, home):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
