"""The laboratories in a real browser, on a dark page: they train, answer, start afresh and say what they refuse."""

import re

import pytest
from playwright.sync_api import expect

from moe_lessons.plots.theme import DARK_LINES, RED

SOURCES = (
    "from moe_lessons.widgets import BalancingLab, FactsLab, RoutingLab, WallRecording",
    "RoutingLab(('code', 'json'), panels=('loss', 'domains', 'text'), num_layers=2, d_model=16, num_heads=2,\n"
    "           batch_size=4, max_steps=5000)",
    "BalancingLab(('nothing', 'auxiliary loss'), seeds=2)",
    "FactsLab(4, num_entries=8, lr=0.01)",
    "WallRecording()",
)
WALLS = ("MoE", "dense, same active", "dense, same total")


@pytest.fixture(scope="module")
def notebook(open_notebook):
    notebook = open_notebook("labs.ipynb", *SOURCES, theme="dark")
    notebook.run_all()
    yield notebook
    assert notebook.errors == [] and notebook.cell_errors() == []


@pytest.fixture
def view(request, notebook, view_of):
    """The laboratory that the name of the test begins with; it is left paused."""
    places = {"routing": 0, "balancing": 1, "facts": 2}
    view = view_of(notebook.page, places[request.node.name.split("_")[1]])
    yield view
    view.pause()


@pytest.mark.parametrize("place, says", [(0, None), (1, "is minimised (0.1). Now:")])
def test_a_knob_is_turned_while_it_trains(notebook, view_of, place, says):
    view = view_of(notebook.page, place)
    view.button("Play").click()
    view.wait_step(5)
    view.handle("Auxiliary loss").focus()
    while view.value("Auxiliary loss") != "0.1":
        notebook.page.keyboard.press("ArrowRight" if place == 0 else "ArrowLeft")
    view.wait_for(lambda: says is None or says in view.view.inner_text())
    step, picture = view.step, view.picture
    view.wait_step(step + 5)
    view.wait_for(lambda: view.picture != picture)  # it comes after the line that names the step
    view.pause()


def test_routing_starts_afresh_with_more_experts_and_says_what_a_router_has_no_use_for(notebook, view):
    step = view.step
    view.handle("Experts E").focus()
    notebook.page.keyboard.press("ArrowRight")
    view.wait_for(lambda: view.step == 0)
    assert step > 0 and view.value("Experts E") == "16"
    chips = view.view.locator(".moe-chips button i")
    assert len(set(chips.evaluate_all("chips => chips.map(chip => getComputedStyle(chip).background)"))) == 16
    view.view.get_by_label("Router", exact=True).select_option("sigmoid")
    view.view.get_by_text("Off: the noise needs a top-k router.").wait_for()


def test_balancing_adds_a_pair_which_catches_up_and_can_be_taken_away(notebook, view):
    box = view.view.get_by_role("checkbox", name="auxiliary loss + capacity")
    if box.count() and box.is_checked():  # the test is run again
        box.press("Space")
        view.view.locator("figure", has_text="auxiliary loss + capacity").wait_for(state="detached")
    step, panels = view.step, view.view.locator("figure").count()
    view.button("Add tile").click()
    box.wait_for()
    view.wait_for(lambda: "limited number of places" in (box.get_attribute("aria-description") or ""))
    assert box.is_checked()
    view.wait_for(lambda: view.view.locator("figure").count() == panels + 1)
    view.wait_step(step, step + 1)  # a pause in the middle of a round leaves some tiles a step ahead
    view.button("Play").wait_for()
    box.press("Space")
    view.wait_for(lambda: view.view.locator("figure").count() == panels)
    assert not box.is_checked()


def test_balancing_selects_a_tile_by_a_click_and_by_the_keys_of_the_list(notebook, view):
    highlight = view.view.get_by_label("Highlight", exact=True)
    for name in ("nothing", "auxiliary loss"):
        view.point(name, 0.5, 0.5, click=True)
        view.view.locator(".moe-reading", has_text=re.compile(f"^{name}: ")).wait_for()
        view.view.locator("figure.moe-chosen", has_text=name).wait_for()
        expect(highlight.locator("option:checked")).to_have_text(name)
    highlight.focus()
    notebook.page.keyboard.press("ArrowUp")  # the list takes it, not the notebook
    view.view.locator(".moe-reading", has_text=re.compile("^nothing: ")).wait_for()


def lit(view, name: str, color: str) -> int:
    return view.pixels(f"{name}: ", [int(color[i : i + 2], 16) for i in (1, 3, 5)])


def test_facts_light_lamps_in_the_ink_of_their_model_and_name_them(view):
    assert [lit(view, name, ink) for name, ink in zip(WALLS, DARK_LINES)] == [0, 0, 0]
    view.button("Play").click()
    view.wait_for(lambda: "knows 8 of 8 entries" in view.view.inner_text(), seconds=60)
    view.pause()
    view.wait_for(lambda: all(lit(view, name, ink) for name, ink in zip(WALLS, DARK_LINES)))
    view.point("MoE: ", 0.5, 0.5)
    tip = view.view.locator(".moe-tip", has_text="MoE ")
    tip.wait_for()
    assert len(tip.inner_text().split(":")[0].strip()) == 4
    view.wait_for(lambda: all(lit(view, name, RED) > 0 for name in WALLS))


def test_a_recording_plays_from_its_begin_to_its_end(notebook, view_of):
    view = view_of(notebook.page, 3)
    handle, picture = view.handle("Measurement"), view.picture
    handle.focus()
    notebook.page.keyboard.press("Home")
    view.wait_for(lambda: "Step 150 of 6,000" in view.view.inner_text() and view.picture != picture)
    view.button("Play").click()
    view.wait_for(lambda: "Step 6,000 of 6,000" in view.view.inner_text() and view.picture == picture)
