"""Live views beside each other, made again, and left alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect


@pytest.fixture(scope="module")
def notebook(open_notebook):
    sources = [
        "from moe_lessons.widgets import Playground\nfrom moe_lessons.widgets.live import _views",
        "first = Playground(play=100000, max_steps=60)\nfirst.show_more()\nfirst",
        "second = Playground('collapse', max_steps=60)\nsecond.show_more()\nsecond",
        "print('noise', first.main_run.knobs.noise_std, 'running', first.running, second.running)",
        "views = sum(_views.values(), [])\n"
        "print(sum(view.running for view in views), 'running of', len(views), 'views')",
    ]
    notebook = open_notebook("two.ipynb", *sources)
    notebook.run_all()
    return notebook


def test_the_last_value_reaches_the_kernel(notebook, view_of):
    first = view_of(notebook.page, 0)
    first.handle("Noise").focus()
    for _ in range(4):
        notebook.page.keyboard.press("ArrowRight")
    first.wait_for(lambda: first.value("Noise") == "0.2")
    first.wait_for(lambda: "noise 0.2 running True False" in notebook.run_cell(3))


def test_a_slider_dragged_fast_while_it_trains_leaves_its_last_value(lab, notebook, view_of):
    first, mouse = view_of(notebook.page, 0), notebook.page.mouse
    lab.ask("two.ipynb", "first.play(100000)")
    first.handle("Auxiliary loss").scroll_into_view_if_needed()
    box = first.handle("Auxiliary loss").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse.move(x, y)
    mouse.down()
    for i in range(60):
        mouse.move(x - 60 + (i * 37) % 120, y)
        notebook.page.wait_for_timeout(50)
    mouse.move(x + 200, y)  # beyond the end
    mouse.up()
    first.wait_for(lambda: first.value("Auxiliary loss") == "10")
    first.pause()
    first.button("healthy").click()
    first.wait_for(lambda: first.value("Auxiliary loss") == "0.1")


def test_a_button_copies_a_program_or_saves_it(lab, notebook):
    page = notebook.page
    program = lab.ask("two.ipynb", "second.as_pytorch()")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = page.get_by_role("button", name="Copy as PyTorch").nth(1)
    button.click()
    given = page.locator(".moe-given").nth(1)
    expect(given).to_contain_text("Copied: ")
    assert page.evaluate("navigator.clipboard.readText()") == program
    page.evaluate("() => void (navigator.clipboard.writeText = async () => Promise.reject('not allowed'))")
    with page.expect_download() as download:
        button.click()
    expect(given).to_contain_text("Saved: ")
    assert download.value.suggested_filename == "moe_plane.py"
    assert Path(download.value.path()).read_text("utf-8") == program


def test_an_interrupt_leaves_a_paused_usable_view(lab, notebook, view_of):
    view = view_of(notebook.page, 0)
    lab.ask("two.ipynb", "first.play(100000)")
    view.wait_step(view.step + 20)
    notebook.interrupt()
    view.button("Play").wait_for()
    view.view.get_by_text("Interrupted: the training is paused.").wait_for()
    step = view.step
    view.button("Play").click()
    view.wait_step(step + 20)


def test_an_interrupt_stops_what_a_cell_does_after_it_has_waited(lab, open_notebook):
    sources = "from moe_lessons.widgets import Playground", "lab = Playground(play=5)\nlab"
    long = "await lab.finished()\nprint('waited', flush=True)\nwhile True:\n    lab.main_run.step()"
    cells = open_notebook("after.ipynb", *sources, long, "print('alive')")
    cells.run_all(wait=False)
    cells.page.get_by_text("waited", exact=True).wait_for()
    cells.page.wait_for_timeout(500)
    cells.interrupt()
    cells.page.get_by_text("KeyboardInterrupt").first.wait_for(timeout=20_000)
    assert "alive" in cells.run_cell(3)


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
    cells = "from moe_lessons.widgets import Playground", "Playground(max_steps=60)", wait
    flag = lab.root / "notebooks" / "busy"
    flag.unlink(missing_ok=True)
    busy = open_notebook("busy.ipynb", *cells, fresh=True)
    busy.run_all()
    view = view_of(busy.page)
    notice = view.view.locator(".moe-wait")
    for taken_back in (True, False):
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
        if taken_back:
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
    # a timer that is late: the page is busy, and the answer is there before it
    busy.page.evaluate("const { setTimeout: own } = window; window.setTimeout = (act, ms) => own(act, ms + 400)")
    view.handle("Top-k").focus()
    busy.page.keyboard.press("ArrowRight")
    view.wait_for(lambda: view.value("Top-k") == "3" and view.step == 0)
    busy.page.wait_for_timeout(2000)
    expect(notice).to_have_count(0)
    view.button("More").click()
    for ask in (view.button("Reset"), view.button("+50"), view.button("collapse")):  # answered in time
        ask.click()
        busy.page.wait_for_timeout(100)
    expect(notice).to_have_count(0)
    assert busy.errors == []


def test_running_a_cell_again_ends_its_earlier_view(notebook, view_of):
    notebook.run_cell(1)
    view_of(notebook.page, 0).wait_step(10)
    assert "1 running of 2 views" in notebook.run_cell(4)
    view_of(notebook.page, 0).pause()


def test_a_page_that_does_not_draw_gets_no_pictures_and_then_a_fresh_one(lab, notebook, view_of):
    def known() -> tuple[int, int]:
        """Pictures and steps, as the kernel counts them."""
        return lab.ask("two.ipynb", "(first.canvas.frame, first.step)")

    view, device = view_of(notebook.page, 0), notebook.page.context.new_cdp_session(notebook.page)
    lab.ask("two.ipynb", "first.play(100000)")
    view.wait_step(view.step + 5)
    device.send("Debugger.enable")
    device.send("Debugger.pause")  # nothing runs in the page, as if it were hidden or frozen
    frame, step = known()
    view.wait_for(lambda: known()[1] >= step + 300)
    assert known()[0] - frame <= 20
    device.send("Debugger.disable")
    view.wait_step(step + 300)
    view.pause()


def test_an_interrupt_while_two_views_are_awaited_pauses_both(open_notebook, view_of):
    sources = [
        "import asyncio\n\nfrom moe_lessons.widgets import Playground",
        "a = Playground(play=100000)\na",
        "b = Playground(play=100000)\nb",
        "await asyncio.gather(a.finished(), b.finished())",
        "print('alive', a.running, b.running)",
    ]
    both = open_notebook("both.ipynb", *sources)
    both.run_all(wait=False)
    for place in (0, 1):
        view_of(both.page, place).wait_step(10)
    both.interrupt()
    for place in (0, 1):
        view = view_of(both.page, place)
        view.button("Play").wait_for()
        view.view.get_by_text("Interrupted: the training is paused.").wait_for()
    expect(both.page.locator(".jp-CodeCell .jp-InputPrompt").nth(4)).to_have_text("[ ]:")  # what waited, is given up
    assert "alive False False" in both.run_cell(4)
    assert both.errors == []


def test_after_a_restart_a_stale_view_says_so_and_its_cell_makes_a_live_one(notebook, view_of):
    notebook.restart()
    view = view_of(notebook.page, 0)
    view.view.get_by_text("To go on, choose Run > Run All Above Selected Cell, then run this one.").wait_for()
    expect(view.view.locator(".moe-controls")).to_have_attribute("inert", "")
    view.button("Play").click(force=True)
    view.slider("Noise").click(force=True)
    view.point("Router probabilities", 0.5, 0.5, click=True)
    view.chip(3).click()
    expect(view.chip(3)).to_have_attribute("aria-pressed", "true")  # what the page does by itself, it does
    notebook.run_all()
    fresh = view_of(notebook.page, 0)
    expect(
        fresh.view.get_by_text("To go on, choose Run > Run All Above Selected Cell, then run this one.")
    ).to_have_count(0)
    fresh.wait_step(20)
    fresh.pause()


def test_a_view_whose_cell_was_deleted_ends_when_the_next_cell_runs(lab, notebook, view_of):
    lab.ask("two.ipynb", "first.play(100000)")
    assert "1 running of 2 views" in notebook.run_cell(4)
    notebook.page.locator(".jp-CodeCell").nth(1).locator(".jp-InputPrompt").click()
    notebook.page.keyboard.press("d")
    notebook.page.keyboard.press("d")
    expect(notebook.page.locator(".jp-CodeCell")).to_have_count(4)
    notebook.run_cell(3)
    assert "0 running of 1 views" in notebook.run_cell(3)


def test_no_error_in_the_console(notebook):
    assert notebook.errors == [] and notebook.cell_errors() == []


def test_what_measures_views_still_finds_what_it_waits_for(browser):
    """Without `browser` there is nothing to measure with."""
    command = [sys.executable, Path(__file__).with_name("measure.py"), "--seconds", "1", "--keys", "7"]
    made = subprocess.run([*command, "--views", "balancing laboratory"], capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stdout + made.stderr
    assert re.search(r"pictures a second seen in the browser +\d+\.\d", made.stdout)
    assert len(re.findall(r"key to new pixels, (?:training|paused) +median \d+ ms", made.stdout)) == 2


TRACKS = """sliders => sliders.map((slider) => {
    const label = slider.querySelector('.widget-label');
    return slider.querySelector('.noUi-base').clientWidth >= 80 && label.scrollWidth <= label.clientWidth;
})"""


def test_each_slider_in_a_bar_has_a_track_and_its_whole_label(open_notebook):
    shape = "TransformerShape(256, 512, 2, 8, 4, 64, 1024, num_experts=16, top_k=2)"
    notebook = open_notebook(
        "bar.ipynb",
        "from moe_lessons.analysis.counting import TransformerShape\n"
        f"from moe_lessons.widgets import StreamView\nStreamView({shape})",
    )
    notebook.run_cell(0)
    notebook.page.locator(".moe-bar .noUi-base").nth(1).wait_for()
    for width in (700, 1280):
        notebook.page.set_viewport_size({"width": width, "height": 900})
        assert notebook.page.locator(".moe-bar .widget-inline-hbox:has(.noUi-base)").evaluate_all(TRACKS) == [True] * 2
