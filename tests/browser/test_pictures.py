"""What the page of JupyterLab does with the pictures of live views and what stands around them."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

SOURCES = (
    "from pathlib import Path\nfrom time import sleep\n\nfrom moe_lessons.widgets import *",
    "playground = Playground(play=60)\nplayground.show_more()\nplayground",
    "BalancingLab(seeds=1, play=10)",
    "RoutingLab(('code', 'greek'), num_layers=2, d_model=16, num_heads=2, batch_size=4, play=5)",
    "while Path('busy').exists():\n    sleep(0.05)",
)


@pytest.fixture(scope="module")
def notebook(open_notebook):
    notebook = open_notebook("pictures.ipynb", *SOURCES)
    notebook.run_all()
    yield notebook
    assert notebook.errors == [] and notebook.cell_errors() == []


@pytest.fixture
def playground(notebook, view_of):
    notebook.page.set_viewport_size({"width": 1280, "height": 900})
    notebook.page.mouse.move(1, 1)
    playground = view_of(notebook.page)
    playground.wait_for(lambda: playground.step == 60)
    return playground


def test_tab_and_enter_come_from_play_to_the_pictures_whose_first_arrow_says_something(playground):
    keyboard = playground.page.keyboard
    playground.button("Play").focus()
    for key in ("Tab", "Enter", "ArrowRight"):
        keyboard.press(key)
    expect(playground.panel("Territory")).to_be_focused()
    expect(playground.view.locator(".moe-tip")).to_have_text(re.compile(r"^Token \d+E\d"))
    keyboard.press("Escape")
    playground.button("Play").focus()
    stops = 0
    while playground.page.evaluate("document.activeElement.textContent.trim()") != "healthy":
        keyboard.press("Tab")
        stops += 1
    assert stops == 9 and playground.view.locator(".widget-readout:not([tabindex='-1'])").count() == 0


@pytest.mark.parametrize("place", [0, 1, 2])
def test_on_a_phone_a_picture_comes_before_the_controls(notebook, view_of, place):
    notebook.page.set_viewport_size({"width": 390, "height": 900})
    view = view_of(notebook.page, place)
    picture, controls = view.view.locator("canvas").first, view.view.locator(".moe-controls")
    assert picture.bounding_box()["y"] < controls.bounding_box()["y"]
    assert view.view.evaluate("view => view.scrollWidth <= view.clientWidth")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_controls_stand_beside_the_pictures_of_a_narrow_page(notebook, view_of, place):
    notebook.page.set_viewport_size({"width": 700, "height": 900})
    view = view_of(notebook.page, place)
    controls = view.view.locator(".moe-controls")
    box, picture = controls.bounding_box(), view.view.locator("canvas").first.bounding_box()
    assert box["x"] + box["width"] <= picture["x"] and picture["width"] > 200
    assert min(box["y"] + box["height"], picture["y"] + picture["height"]) - max(box["y"], picture["y"]) > 100
    for picture in (view.view.locator("canvas").first, view.view.locator("canvas").last):
        picture.scroll_into_view_if_needed()
        expect(controls).to_be_in_viewport(ratio=0.8)
        expect(picture).to_be_in_viewport(ratio=0.8)


def test_the_theme_is_followed_while_the_kernel_is_busy(lab, notebook, playground):
    def papers() -> set[tuple[int, ...]]:
        script = "all => all.map(c => c.getContext('2d').getImageData(c.width - 1, 0, 1, 1).data.slice(0, 3).join())"
        return set(playground.view.locator("canvas").evaluate_all(script))

    page, busy = notebook.page, Path(lab.root / "notebooks" / "busy")
    assert papers() == {"255,255,255"}
    busy.touch()
    notebook.run_cell(len(SOURCES) - 1, wait=False)
    playground.is_drawn()
    try:
        for theme, paper in (("dark", "17,17,17"), ("light", "255,255,255")):
            notebook.set_theme(theme)
            playground.wait_for(lambda paper=paper: papers() == {paper})
        assert page.locator(".jp-InputPrompt", has_text="[*]").count() == 1
    finally:
        busy.unlink()
