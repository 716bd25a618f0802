"""Live views beside each other, interrupted, made again, and left alone."""

import re
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

LINE = "To go on, choose Run > Run All Above Selected Cell, then run this one."
SOURCES = (
    "import sys\nfrom moe_lessons.widgets import Playground\nprint(sys.executable)",
    "first = Playground(play=100000, max_steps=60)\nfirst.show_more()\nfirst",
    "second = Playground('collapse', max_steps=60)\nsecond.show_more()\nsecond",
    "print('noise', first.main_run.knobs.noise_std, 'running', first.running, second.running)",
)


@pytest.fixture(scope="module")
def notebook(open_notebook):
    notebook = open_notebook("two.ipynb", *SOURCES)
    notebook.run_all()
    return notebook


def test_the_last_value_of_a_slider_reaches_the_kernel_by_key_and_dragged_fast(lab, notebook, view_of):
    assert sys.executable in notebook.run_cell(0)
    first, mouse = view_of(notebook.page, 0), notebook.page.mouse
    first.handle("Noise").focus()
    for _ in range(4):
        notebook.page.keyboard.press("ArrowRight")
    first.wait_for(lambda: first.value("Noise") == "0.2")
    first.wait_for(lambda: "noise 0.2 running True False" in notebook.run_cell(3))
    first.handle("Auxiliary loss").scroll_into_view_if_needed()
    box = first.handle("Auxiliary loss").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse.move(x, y)
    mouse.down()
    for i in range(60):
        mouse.move(x - 60 + (i * 37) % 120, y)
        notebook.page.wait_for_timeout(20)
    mouse.move(x + 200, y)  # beyond the end
    mouse.up()
    first.wait_for(lambda: first.value("Auxiliary loss") == "10")
    first.wait_for(lambda: lab.ask("two.ipynb", "first.main_run.knobs.router_aux_loss_coef") == 10)
    first.button("Healthy").click()
    first.wait_for(lambda: first.value("Auxiliary loss") == "0.1")


def test_a_button_copies_a_program_or_saves_it(lab, notebook):
    page = notebook.page
    program = lab.ask("two.ipynb", "second.as_pytorch()")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button, given = page.get_by_role("button", name="Copy as PyTorch").nth(1), page.locator(".moe-given").nth(1)
    button.click()
    expect(given).to_contain_text("Copied: ")
    assert page.evaluate("navigator.clipboard.readText()") == program
    page.evaluate("() => void (navigator.clipboard.writeText = async () => Promise.reject('not allowed'))")
    with page.expect_download() as download:
        button.click()
    expect(given).to_contain_text("Saved: ")
    assert Path(download.value.path()).read_text("utf-8") == program


def test_interrupts_pause_what_trains_and_stop_what_a_cell_does_and_nothing_else(open_notebook, view_of):
    views = "a = Playground(play=10**6)\na", "b = Playground(play=20)\nb"
    long = "await b.finished()\nprint('waited', flush=True)\nwhile True:\n    pass"
    more = long, "await a.finished()", "print('alive', a.running, b.running)"
    both = open_notebook("both.ipynb", "from moe_lessons.widgets import Playground", *views, *more)
    both.run_all(wait=False)
    a = view_of(both.page, 0)
    both.page.get_by_text("waited", exact=True).wait_for()
    both.interrupt()  # of the endless loop
    both.page.get_by_text("KeyboardInterrupt").first.wait_for()
    both.run_cell(4, wait=False)
    a.is_drawn()
    a.wait_step(a.step + 20)  # it trains on
    both.interrupt()  # of a cell that waits
    a.button("Play").wait_for()
    a.view.get_by_text("Interrupted: the training is paused.").wait_for()
    assert "alive False False" in both.run_cell(5)
    assert both.errors == []


def test_a_control_moved_while_a_cell_waits_stays_alive(open_notebook, view_of):
    sources = ["from moe_lessons.widgets import Playground", "lab = Playground(play=400)\nlab", "await lab.finished()"]
    changed = "import ipykernel\nfrom ipykernel.comm.comm import BaseComm\n"  # by `widgets.kernel.prepare_kernel`
    changed += "print(ipykernel.version_info[:2] < (7, 4) or BaseComm._reply_subshell_for.__module__)"
    waiting = open_notebook("waiting.ipynb", *sources, "print('noise', lab.main_run.knobs.noise_std)", changed)
    waiting.run_all(wait=False)
    view = view_of(waiting.page)
    view.wait_step(50)
    view.handle("Noise").focus()
    for _ in range(4):
        waiting.page.keyboard.press("ArrowRight")
    waiting.wait_executed()
    view = view_of(waiting.page)
    view.handle("Noise").focus()
    for _ in range(4):
        waiting.page.keyboard.press("ArrowRight")
    view.wait_for(lambda: view.value("Noise") == "0.4")
    view.wait_for(lambda: "noise 0.4" in waiting.run_cell(3))
    assert waiting.errors == []
    assert waiting.run_cell(4).strip() in ("True", "moe_lessons.widgets.kernel")


def test_a_busy_kernel_is_said_and_what_is_asked_meanwhile_happens_once_or_is_taken_back(lab, open_notebook, view_of):
    wait = "import time\nfrom pathlib import Path\nwhile Path('busy').exists():\n    time.sleep(0.05)"
    flag = lab.root / "notebooks" / "busy"
    flag.unlink(missing_ok=True)
    busy = open_notebook("busy.ipynb", "from moe_lessons.widgets import Playground", "Playground(max_steps=60)", wait)
    busy.run_all()
    view = view_of(busy.page)
    notice, themes = view.view.locator(".moe-wait"), ("dark", "light")
    for is_taken_back in (True, False):
        flag.touch()
        busy.run_cell(2, wait=False)
        view.is_drawn()
        handle = view.handle("Experts E").bounding_box()
        busy.page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
        busy.page.mouse.down()
        busy.page.mouse.move(handle["x"] + 300, handle["y"], steps=5)
        busy.page.mouse.up()
        view.button("Play").click()
        view.button("Play").click()  # which would pause it
        expect(notice).to_have_text(re.compile("another cell is running. Asked: Experts E, Play"))
        before = view.pixels
        busy.set_theme(themes[not is_taken_back])  # the pictures follow without the kernel
        view.wait_for(lambda before=before: not set(view.pixels) & set(before))
        if is_taken_back:
            notice.get_by_role("button", name="Take back").click()
            view.wait_for(lambda: view.value("Experts E") == "8")
            flag.unlink()
            busy.wait_executed()
            busy.page.wait_for_timeout(700)
            assert view.step == 0 and view.button("Play").count() == 1
    flag.unlink()
    view.wait_step(60)
    assert view.value("Experts E") == "16" and view.view.locator(".moe-chips button").count() == 16
    expect(notice).to_have_count(0)
    assert busy.wrong() == []


def test_a_question_stays_while_the_kernel_is_busy_and_a_training_view_in_sight_while_a_cell_waits_for_it(
    lab, open_notebook, view_of
):
    flag = lab.root / "notebooks" / "long"
    flag.unlink(missing_ok=True)
    setup = "from moe_lessons.course import Prediction\nfrom moe_lessons.widgets import CollapseLab\nimport os, time"
    busy = "while os.path.exists('long'):\n    time.sleep(0.05)"
    asks = 'prediction = Prediction("Which one?", ("this one", "the other"))\nprediction'
    cells = asks, busy, "lab = CollapseLab(play=300)\nlab", "await lab.finished()", "#\n" * 60
    book = open_notebook("asks.ipynb", setup, *cells)
    book.run_all()
    question, held = book.page.locator(".moe-question"), book.page.locator(".moe-held")
    expect(held).to_have_count(0)
    flag.touch()
    book.run_cell(2, wait=False)
    book.run_cell(1, wait=False)
    expect(held.locator(".moe-question")).to_be_visible()
    flag.unlink()
    expect(held).to_have_count(0)
    expect(question).to_have_count(1)

    book.page.locator(".jp-CodeCell").nth(3).locator(".jp-InputPrompt").click()
    book.page.keyboard.press("Shift+Enter")
    view = view_of(book.page)
    view.wait_step(5)
    book.page.keyboard.press("Shift+Enter")
    view.wait_step(40)
    expect(view.canvas).to_be_in_viewport()
    assert view.step < 300
    assert book.wrong() == []


def test_a_view_ends_with_its_cell_and_after_a_restart_says_how_to_go_on(lab, notebook, view_of):
    running = "[each.running for each in (old, first, second)]"
    lab.ask("two.ipynb", "globals().update(old=first)")
    lab.ask("two.ipynb", "first.play(10**6)")
    notebook.run_cell(1)  # which makes another view
    view_of(notebook.page, 0).wait_step(10)
    assert lab.ask("two.ipynb", running) == [False, True, False]
    notebook.page.locator(".jp-CodeCell").nth(1).locator(".jp-InputPrompt").click()
    for key in "dd":
        notebook.page.keyboard.press(key)
    expect(notebook.page.locator(".jp-CodeCell")).to_have_count(3)
    notebook.run_cell(0)
    assert lab.ask("two.ipynb", running) == [False, False, False]
    assert notebook.wrong() == []
    notebook.restart()
    view = view_of(notebook.page, 0)
    view.view.get_by_text(LINE).wait_for()
    expect(view.view.locator(".moe-controls")).to_have_attribute("inert", "")
    view.chip(3).click()
    expect(view.chip(3)).to_have_attribute("aria-pressed", "true")  # what the page does by itself, it does
    notebook.page.evaluate("jupyterapp.commands.execute('notebook:undo-cell-action')")
    expect(notebook.page.locator(".jp-CodeCell")).to_have_count(4)
    notebook.run_all()
    fresh = view_of(notebook.page, 0)
    expect(fresh.view.get_by_text(LINE)).to_have_count(0)
    fresh.wait_step(20)
    fresh.pause()
