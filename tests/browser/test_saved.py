"""A notebook that was saved and is opened without its kernel shows what was seen and answered, and so does a page
that draws no widgets."""

import base64
import io
import re

import nbformat
from PIL import Image
from playwright.sync_api import expect

NAME, LINE = "saved.ipynb", "To go on, choose Run > Run All Above Selected Cell, then run this one."
STATE = "application/vnd.jupyter.widget-state+json"
CELLS = (
    "from moe_lessons.course import *\nfrom moe_lessons.hub import ConfigCalculator\nfrom moe_lessons.widgets import *",
    "Playground('collapse', play=30, panels=('territory', 'load', 'film', 'cost'))",
    "left = Prediction('How many experts are left?', ('all', 'some'), key='07.left')\nleft",
    "CurvePrediction('How does it fall?', ('experts', 1, 64), ('loss', 0, 4))",
    "Quiz('07')",
    "ConfigCalculator()",
    "Interview()",
    "left.compare('some')",
    "from moe_lessons.exercises import masked_weights\nmasked_weights.check()",
)
VIEWS = range(1, len(CELLS))


BROKEN = """links => links.filter((e) => getComputedStyle(e, '::before').display !== 'none').length"""


def saved(lab, notebook) -> list[dict]:
    """Save the notebook; return the data of its outputs, by cell."""
    notebook.menu("File", "docmanager:save")
    notebook.page.wait_for_timeout(1500)
    path = lab.root / "notebooks" / NAME
    assert path.stat().st_size < 2_000_000
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    state = book.metadata["widgets"][STATE]["state"]  # GitHub refuses one without this key
    outputs = [cell.outputs[0] for cell in book.cells[1:]]
    assert all(output.data["application/vnd.jupyter.widget-view+json"]["model_id"] in state for output in outputs)
    return [{}, *(output.data for output in outputs)]


def seen(notebook, view_of) -> list:
    """The pixels and the words of what trains, and what is chosen and said elsewhere."""
    views = [view_of(notebook.page, place) for place in (0, 1)]
    notebook.page.mouse.move(1, 1)
    notebook.page.wait_for_timeout(700)
    words = [view.canvas.locator("> .moe-words").text_content() for view in views]
    said = notebook.page.locator(".moe-question .moe-why, .moe-interview textarea, .moe-drawn")
    chosen = "all => all.map((e) => e.getAttribute('d') ?? e.value ?? e.textContent)"
    checked = notebook.page.locator(".moe-question input:checked + span").all_text_contents()
    pixels = views[0].in_colour(6, "Territory", "Load of each")
    return [views[0].step, words, pixels, checked, said.evaluate_all(chosen)]


def still_of(data: dict) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data["image/png"])))


def test_it_is_seen_again_and_after_what_was_run_since(lab, open_notebook, view_of):
    notebook = open_notebook(NAME, *CELLS)
    notebook.run_all()
    page, view = notebook.page, view_of(notebook.page)
    view.wait_step(30)
    view.button("Play").wait_for()
    cell = page.locator(".jp-CodeCell")
    expect(cell.nth(7)).to_contain_text("Answer above, or skip")
    cell.nth(2).get_by_role("radio").nth(1).check()
    expect(cell.nth(7)).to_contain_text("As you predicted: some.")
    cell.nth(8).get_by_role("button", name="Hint").click()
    expect(cell.nth(8)).to_contain_text("Hint 1 of 2")
    cell.nth(3).get_by_role("slider").focus()
    for key in ("Home", "ArrowUp", "End", "ArrowUp"):
        page.keyboard.press(key)
    cell.nth(4).get_by_role("radio").first.check()
    cell.nth(6).locator("textarea").fill("No: 46.7.")
    for place in (0, 1):
        view_of(page, place)
        page.wait_for_timeout(2500)  # a still is made in a pause
    before, data = seen(notebook, view_of), saved(lab, notebook)
    assert before[0] == 30 and min(before[2]) > 100 and len(before[3]) == 2
    words = "".join(data[2]["text/markdown"])
    assert "- some **← your answer**" in words and LINE in words and "- all\n" in words
    words = "".join(data[4]["text/markdown"])
    assert re.search("- 0.*your answer.*Not so. It was not chosen", words, re.DOTALL)
    with still_of(data[1]) as still:
        assert still.width > 600 and (0, 114, 178) in {color[:3] for _, color in still.getcolors(10**6)}
    for round in ("the next day", "after a part was run again and all was saved"):
        lab.end_kernels()
        page.goto("about:blank")
        notebook.open(lab, NAME)
        expect(page.get_by_text(LINE)).to_have_count(len(VIEWS), timeout=30_000)
        expect(cell.nth(7)).to_contain_text("As you predicted: some.")
        expect(cell.nth(8)).to_contain_text("Hint 1 of 2")
        expect(cell.nth(8).get_by_role("button", name="Hint")).to_be_disabled()
        assert page.locator(".jupyter-widgets-disconnected").evaluate_all(BROKEN) == 0
        late = [
            error for error in notebook.errors if "widget model not found" in error
        ]  # mended as soon as it is there
        assert notebook.cell_errors() == [] and notebook.errors == late, round
        notebook.errors.clear()
        if round == "the next day":
            assert seen(notebook, view_of) == before and saved(lab, notebook) == data
            view = view_of(page)
            view.point("Load of each", 0.8, 0.8)
            expect(view.view.locator(".moe-tip")).to_have_text(re.compile("share of assignments"))
            for name in (".moe-bar", ".moe-controls"):
                expect(view.view.locator(name).first).to_have_attribute("inert", "")
            expect(cell.nth(2).get_by_role("radio").first).to_be_disabled()
            notebook.run_cell(0)
            notebook.run_cell(2)
            expect(page.get_by_text(LINE)).to_have_count(len(VIEWS) - 1)
            saved(lab, notebook)
    notebook.restart()
    notebook.run_all()
    expect(page.get_by_text(LINE)).to_have_count(0)
    view = view_of(page)
    view.wait_step(30)
    assert notebook.cell_errors() == [] and notebook.errors == []
