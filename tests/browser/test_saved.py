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
BROKEN = "links => links.filter((e) => getComputedStyle(e, '::before').display !== 'none').length"


def saved(lab, notebook) -> list[dict]:
    """Save the notebook; return the data of its outputs, by cell."""
    notebook.save()
    book = nbformat.read(lab.root / "notebooks" / NAME, 4)
    nbformat.validate(book)
    state = book.metadata["widgets"][STATE]["state"]  # GitHub refuses one without this key
    outputs = [cell.outputs[0] for cell in book.cells[1:]]
    assert all(output.data["application/vnd.jupyter.widget-view+json"]["model_id"] in state for output in outputs)
    return [{}, *(output.data for output in outputs)]


def seen(notebook, view_of) -> list:
    """The words of what trains, and what is chosen, drawn and said elsewhere."""
    words, steps = [], []
    for place in (0, 1):  # JupyterLab hides what is off the screen
        view = view_of(notebook.page, place)
        notebook.page.mouse.move(1, 1)
        notebook.page.wait_for_timeout(700)
        words.append(view.canvas.inner_text())
        steps.append(view.step)
    said = notebook.page.locator(".moe-question .moe-why, .moe-interview textarea, .moe-drawn")
    chosen = "all => all.map((e) => e.getAttribute('d') ?? e.value ?? e.textContent)"
    checked = notebook.page.locator(".moe-question input:checked + span").all_text_contents()
    return [*words, steps[0], checked, said.evaluate_all(chosen)]


def answer_all(page, cell) -> None:
    expect(cell.nth(7)).to_contain_text("Answer above, or skip")
    cell.nth(2).get_by_role("radio").nth(1).check()
    expect(cell.nth(7)).to_contain_text("As you predicted: some.")
    cell.nth(8).get_by_role("button", name="Hint").click()
    expect(cell.nth(8)).to_contain_text("Hint 1 of 2")
    cell.nth(3).get_by_role("slider").focus()
    for key in ("Home", "ArrowUp", "End", "ArrowUp", "Tab", "Enter"):
        page.keyboard.press(key)
    cell.nth(4).get_by_role("radio").first.check()
    cell.nth(6).locator("textarea").fill("No: 46.7.")


def test_it_is_seen_again_and_after_what_was_run_since(lab, open_notebook, view_of):
    notebook = open_notebook(NAME, *CELLS)
    notebook.run_all()
    page, view = notebook.page, view_of(notebook.page)
    view.wait_step(30)
    view.button("Play").wait_for()
    cell = page.locator(".jp-CodeCell")
    answer_all(page, cell)
    for place in (0, 1):
        view_of(page, place)
        page.wait_for_timeout(2500)  # a still is made in a pause
    before, data = seen(notebook, view_of), saved(lab, notebook)
    assert before[2] == 30 and len(before[3]) == 2
    words = "".join(data[2]["text/markdown"])  # where no widget is drawn
    assert "- some **← your answer**" in words and LINE in words and "- all\n" in words
    assert re.search("- 0.*your answer.*Not so.", "".join(data[4]["text/markdown"]), re.DOTALL)
    with Image.open(io.BytesIO(base64.b64decode(data[1]["image/png"]))) as still:
        assert still.width > 600 and (0, 114, 178) in {color[:3] for _, color in still.getcolors(10**6)}
    for is_run_again in (False, True):
        lab.end_kernels()
        page.goto("about:blank")
        notebook.open(lab, NAME)
        expect(page.get_by_text(LINE)).to_have_count(len(VIEWS))
        expect(cell.nth(7)).to_contain_text("As you predicted: some.")
        expect(cell.nth(8)).to_contain_text("Hint 1 of 2")
        assert page.locator(".jupyter-widgets-disconnected").evaluate_all(BROKEN) == 0
        # what the page first says of a widget is mended as soon as that is there
        assert [error for error in notebook.wrong() if "widget model not found" not in error] == []
        notebook.errors.clear()
        if not is_run_again:
            assert seen(notebook, view_of) == before and saved(lab, notebook) == data
            view = view_of(page)
            view.point("Load of each", 0.8, 0.8)
            expect(view.view.locator(".moe-tip")).to_have_text(re.compile("share of assignments"))
            expect(view.view.locator(".moe-controls")).to_have_attribute("inert", "")
            expect(cell.nth(2).get_by_role("radio").first).to_be_disabled()
            notebook.run_cell(0)
            notebook.run_cell(2)
            expect(page.get_by_text(LINE)).to_have_count(len(VIEWS) - 1)
            saved(lab, notebook)
    notebook.restart()
    notebook.run_all()
    expect(page.get_by_text(LINE)).to_have_count(0)
    view_of(page).wait_step(30)
    assert notebook.wrong() == []
