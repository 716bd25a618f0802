"""Views in a page of JupyterLab of any width: their pictures, and what stands around them."""

import re

import pytest
from playwright.sync_api import expect

SOURCES = (
    "from moe_lessons.widgets import *",
    "playground = Playground(play=60)\nplayground.show_more()\nplayground",
    "BalancingLab(('no balancing', 'auxiliary loss'), seeds=2, play=10)",
    "FactsLab(4, num_entries=8, lr=0.01)",
)


@pytest.fixture(scope="module")
def notebook(open_notebook):
    notebook = open_notebook("pictures.ipynb", *SOURCES)
    notebook.run_all()
    yield notebook
    assert notebook.wrong() == []


def test_tab_and_enter_come_from_play_to_the_pictures_and_tab_to_the_controls(notebook, view_of):
    keyboard, playground = notebook.page.keyboard, view_of(notebook.page)
    playground.wait_for(lambda: playground.step == 60)
    playground.button("Play").focus()
    for key in ("Tab", "Enter", "ArrowRight"):
        keyboard.press(key)
    expect(playground.panel("Territory")).to_be_focused()
    expect(playground.view.locator(".moe-tip")).to_have_text(re.compile(r"^Token \d+E\d"))
    keyboard.press("Escape")
    playground.button("Play").focus()
    for _ in range(20):
        if notebook.page.evaluate("document.activeElement.textContent.trim()") == "top-1 collapse":
            return
        keyboard.press("Tab")
    pytest.fail("no Tab comes to the presets")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_pictures_and_controls_are_seen_together_at_any_width(notebook, view_of, place):
    view = view_of(notebook.page, place)
    controls, pictures = view.view.locator(".moe-controls"), view.view.locator("canvas")
    for width in (390, 700):
        notebook.page.set_viewport_size({"width": width, "height": 900})
        view.wait_for(view.is_drawn)
        box, picture = controls.bounding_box(), pictures.first.bounding_box()
        assert view.view.evaluate("view => view.scrollWidth <= view.clientWidth")
        if width == 390:  # a phone
            assert picture["y"] < box["y"]
        else:
            assert box["x"] + box["width"] <= picture["x"] and picture["width"] > 200
    for picture in (pictures.first, pictures.last):
        picture.scroll_into_view_if_needed()
        expect(controls).to_be_in_viewport(ratio=0.8)
        expect(picture).to_be_in_viewport(ratio=0.8)
    notebook.page.set_viewport_size({"width": 1280, "height": 900})


def test_facts_that_are_memorised_are_seen_and_named(notebook, view_of):
    view = view_of(notebook.page, 2)
    dark = view.pixels
    view.button("Play").click()
    view.wait_for(lambda: "memorised 8 of 8 facts" in view.view.inner_text(), seconds=60)
    view.pause()
    assert not set(dark) & set(view.pixels)
    view.point("MoE: ", 0.5, 0.5)
    view.view.locator(".moe-tip", has_text="MoE ").wait_for()
