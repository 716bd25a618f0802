"""The balancing laboratory in a real browser: it trains, answers, and says what it refuses."""

import re

import pytest
from playwright.sync_api import expect


@pytest.fixture(scope="module")
def notebook(open_notebook):
    """A notebook with a small laboratory."""
    source = "from moe_lessons.widgets import BalancingLab\nBalancingLab(('nothing', 'auxiliary loss'), seeds=2)"
    notebook = open_notebook("laboratory.ipynb", source)
    notebook.run_all()
    yield notebook
    assert notebook.errors == [] and notebook.cell_errors() == []


def test_a_strength_is_answered_while_the_tiles_train(notebook, view_of):
    view = view_of(notebook.page)
    view.button("Play").click()
    view.wait_step(5)
    view.handle("Auxiliary loss").focus()
    for _ in range(4):
        notebook.page.keyboard.press("ArrowRight")
    view.wait_for(lambda: view.value("Auxiliary loss") == "10")
    view.wait_for(lambda: "is minimised (10). Now:" in view.view.inner_text())
    step, picture = view.step, view.picture
    view.wait_step(step + 5)
    view.wait_for(lambda: view.picture != picture)  # it comes after the line that names the step
    view.pause()


def test_a_pair_is_added_catches_up_and_can_be_taken_away(notebook, view_of):
    view = view_of(notebook.page)
    step, panels = view.step, view.view.locator("figure").count()
    view.button("Add tile").click()
    box = view.view.get_by_role("checkbox", name="auxiliary loss + capacity")
    box.wait_for()
    view.wait_for(lambda: "limited number of places" in (box.get_attribute("aria-description") or ""))
    assert box.is_checked()
    view.wait_for(lambda: view.view.locator("figure").count() == panels + 1)
    view.wait_step(step, step + 1)  # a pause in the middle of a round leaves some tiles a step ahead
    view.button("Play").wait_for()
    box.focus()
    notebook.page.keyboard.press("Space")
    view.wait_for(lambda: view.view.locator("figure").count() == panels)
    assert not box.is_checked()


def test_a_click_on_a_tile_selects_it_and_so_do_the_keys_of_the_list(notebook, view_of):
    view = view_of(notebook.page)
    for name in ("nothing", "auxiliary loss"):
        view.point(name, 0.5, 0.5, click=True)
        view.view.locator(".moe-reading", has_text=re.compile(f"^{name}: ")).wait_for()
        view.view.locator("figure.moe-chosen", has_text=name).wait_for()
        expect(view.view.get_by_label("Highlight", exact=True).locator("option:checked")).to_have_text(name)
    view.view.get_by_label("Highlight", exact=True).focus()
    notebook.page.keyboard.press("ArrowUp")  # the list takes it, not the notebook
    view.view.locator(".moe-reading", has_text=re.compile("^nothing: ")).wait_for()


def test_remedies_that_clash_are_said_under_the_picture(notebook, view_of):
    view = view_of(notebook.page)
    view.view.get_by_label("Add", exact=True).select_option("bias update")
    view.view.get_by_label("and", exact=True).select_option("learned noise")
    view.button("Add tile").click()
    view.view.get_by_text("bias update and learned noise do not go together").wait_for()
    assert view.view.get_by_role("checkbox", name="bias update + learned noise").count() == 0
