"""The printed address opens the first lesson, and every control of every lesson is moved by the mouse and by a key.
Of a lesson only the cells run that show something to operate, and those that they need; all run under nbval."""

import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest

from tests.cells import needed
from tests.jupyterlab import PATIENCE

BOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("[0-9]*.ipynb"))
VIEW = re.compile(r"\b(\w+(Lab|View|Map)|Playground|LiveRun|\w+Calculator|\w*Prediction|Quiz|Interview|CoursePage)\(")
KINDS = {  # a kind of control -> where it is inside an output, how a key moves it
    "slider": (".noUi-handle", "ArrowRight"),
    "choice": ("select", "ArrowDown"),
    "radio": ("legend + label > input[type=radio]", "ArrowDown"),  # of a question the first option
    "box": ("input[type=checkbox]", "Space"),
}
STATE = """element => element.matches('.noUi-handle') ? element.getAttribute('aria-valuetext')
    : element.matches('select') ? String(element.selectedIndex) : String(element.checked)"""


def view_cells(path) -> list[str]:
    """The sources of the cells that show a view, which does not train, and before each what it uses."""
    sources = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    places = needed(sources, {place for place, source in enumerate(sources) if VIEW.search(source)})
    return [re.sub(r"\bplay=\d+", "play=0", sources[place]) for place in places]


@pytest.fixture(params=BOOKS, ids=lambda path: path.stem)
def lesson(request, open_notebook):
    notebook = open_notebook(f"views_of_{request.param.name}", *view_cells(request.param))
    notebook.run_all()
    yield notebook
    open_notebook.close()


def operate(notebook) -> Counter[str]:
    """Move each control that can be moved, by the mouse and by a key. How many there were of each kind."""
    page, moved = notebook.page, Counter()
    for cell in page.locator(".jp-CodeCell:has(.jp-OutputArea-output)").all():
        cell.scroll_into_view_if_needed()
        for kind, (where, key) in KINDS.items():
            controls = cell.locator(".jp-OutputArea-output").locator(where)
            for place in range(controls.count()):
                moved[kind] += move(page, controls.nth(place), kind, key)
    return +moved  # without kinds of which none is in sight


def move(page, control, kind: str, key: str) -> bool:
    if not control.is_visible() or control.is_disabled() or control.get_attribute("aria-disabled") == "true":
        return False
    if control.evaluate("element => Boolean(element.closest('[disabled], .jupyter-widgets-disabled'))"):
        return False
    control.scroll_into_view_if_needed()
    before, states = control.evaluate(STATE), []
    if kind == "slider":  # a click on another place of its track
        track = control.locator("xpath=ancestor::*[contains(@class, 'noUi-target')]").bounding_box()
        at_left = control.bounding_box()["x"] < track["x"] + track["width"] / 2
        page.mouse.click(track["x"] + track["width"] * (0.8 if at_left else 0.2), track["y"] + track["height"] / 2)
    elif kind != "choice":  # the list of a select belongs to the system
        control.click()
    states.append(control.evaluate(STATE))
    control.focus()
    for press in dict.fromkeys((key, key.replace("Right", "Left").replace("Down", "Up"))):  # and back, as a box is too
        page.keyboard.press(press)
        states.append(control.evaluate(STATE))
    assert set(states) != {before}, f"{kind} {control.evaluate('e => e.closest(`.jupyter-widgets`).innerText')!r}"
    return True


def test_each_control_moves_by_mouse_and_by_key(lesson):
    lesson.page.wait_for_timeout(1000)  # the last views are drawn
    moved = operate(lesson)
    lesson.page.wait_for_timeout(500)
    lesson.wait_idle()
    assert set(moved) & {"radio", "choice"}, moved
    assert lesson.wrong() == []


def test_the_printed_address_opens_the_first_lesson_and_asks_no_other_host(lab, browser):
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(lab.first_page)
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for(timeout=PATIENCE)
    assert "00_welcome" in page.title()
    page.locator(".jp-StatusBar-TextItem", has_text="| Idle").first.wait_for(timeout=PATIENCE)
    page.wait_for_timeout(1000)  # a question about news or updates would come up by now
    assert page.locator(".Toastify__toast, .jp-Dialog").all_inner_texts() == []
    assert [url for url in asked if not url.startswith((lab.address, "data:", "blob:"))] == []
    page.close()
