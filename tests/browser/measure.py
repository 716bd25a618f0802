"""How fast the playground is in a real browser: frames a second, slider to pixels, and the share of training.

Run it on an otherwise idle machine: `python tests/browser/measure.py`. It prints, and asserts nothing.
"""

import shutil
import tempfile
import time
from pathlib import Path

import nbformat
from conftest import CHROMIUM_ARGUMENTS, ROOT, LabServer, NotebookPage, View
from playwright.sync_api import sync_playwright

from moe_lessons.doctor import find_chromium

SECONDS, KEYS = 10, 60
CELLS = (
    "from moe_lessons.widgets import Playground",
    "lab = Playground(max_steps=10**6)\nlab",
    "cost = lab.loop.cost\nprint(f\"{cost['training'] / (cost['training'] + cost['showing']):.1%}\")",
)
# Notes when the first picture arrives that shows the token that a key has selected.
WATCH = """() => {
    const canvas = document.querySelector('.moe-canvas');
    new MutationObserver(() => {
        if (window.wanted !== null && canvas.dataset.token === String(window.wanted)) {
            window.arrived = performance.now();
            window.wanted = null;
        }
    }).observe(canvas, { attributes: true, attributeFilter: ['data-token', 'data-frames'] });
}"""
FRAMES = "Number(document.querySelector('.moe-canvas').dataset.frames)"
EXPECT = """(token) => {
    window.wanted = token; window.arrived = null; window.pressed = null;
    const press = () => { window.pressed = performance.now(); };
    document.addEventListener('keydown', press, { once: true, capture: true });
}"""


def latencies(page, view: View) -> list[float]:
    """Milliseconds from a key on the slider 'Token' to the picture that shows its effect, sorted."""
    view.handle("Token").focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(1000)
    taken = []
    for i in range(KEYS):
        forth = i // 30 % 2 == 0
        page.evaluate(EXPECT, i % 30 + 1 if forth else 29 - i % 30)
        page.keyboard.press("ArrowRight" if forth else "ArrowLeft")
        page.wait_for_function("() => window.arrived")
        taken.append(page.evaluate("window.arrived - window.pressed"))
        page.wait_for_timeout(100)
    return sorted(taken)


def fresh_starts(page, view: View) -> list[float]:
    """Milliseconds from a click on Reset, while it trains, to the picture of the new start, sorted."""
    taken = []
    for _ in range(11):
        page.wait_for_timeout(600)
        start = time.monotonic()
        view.button("Reset").click()
        page.wait_for_function("() => document.querySelector('[data-step]').dataset.step < 30", polling=5)
        taken.append(1000 * (time.monotonic() - start))
    return sorted(taken)


def measure(notebook: NotebookPage) -> None:
    page = notebook.page
    notebook.run_all()
    view = View(page)
    page.evaluate(WATCH)
    view.button("Play").click()
    page.wait_for_timeout(3000)
    frames, steps, start = page.evaluate(FRAMES), view.step, time.monotonic()
    page.wait_for_timeout(1000 * SECONDS)
    seconds = time.monotonic() - start
    print(f"frames a second seen in the browser   {(page.evaluate(FRAMES) - frames) / seconds:.1f}")
    print(f"steps a second, three models          {(view.step - steps) / seconds:.0f}")
    cell = page.locator(".jp-CodeCell").nth(2)
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    page.wait_for_timeout(1500)
    print("training's share of the loop's CPU    " + cell.locator(".jp-OutputArea-output").first.text_content().strip())
    print(f"click on Reset to the new start       median {fresh_starts(page, view)[5]:.0f} ms, the click included")
    for state in ("training", "paused"):
        taken = latencies(page, view)
        middle, late = taken[KEYS // 2], taken[int(0.95 * KEYS)]
        print(f"slider key to new pixels, {state:8}    median {middle:.0f} ms, 95th percentile {late:.0f} ms")
        if state == "training":
            view.pause()


def main() -> None:
    root, home = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    book.metadata["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nbformat.write(book, root / "notebooks" / "measure.ipynb")
    server = LabServer(root, home)
    server.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_ARGUMENTS)
            notebook = NotebookPage(browser.new_context(viewport={"width": 1280, "height": 1000}).new_page())
            notebook.open(f"{server.address}/doc/tree/notebooks/measure.ipynb?token={server.token}&reset")
            measure(notebook)
            browser.close()
    finally:
        server.stop()


if __name__ == "__main__":
    main()
