"""The laboratories in a real browser, on a dark page: they train, a tile catches up, lamps light."""

import pytest

from moe_lessons.plots.theme import DARK_LINES, RED

SOURCES = (
    "from moe_lessons.widgets import BalancingLab, FactsLab",
    "BalancingLab(('nothing', 'auxiliary loss'), seeds=2)",
    "FactsLab(4, num_entries=8, lr=0.01)",
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
    places = {"balancing": 0, "facts": 1}
    view = view_of(notebook.page, places[request.node.name.split("_")[1]])
    yield view
    view.pause()


def test_balancing_adds_a_pair_which_catches_up_and_can_be_taken_away(notebook, view):
    box = view.view.get_by_role("checkbox", name="auxiliary loss + capacity")
    if box.count() and box.is_checked():  # the test is run again
        box.press("Space")
        view.view.locator("figure", has_text="auxiliary loss + capacity").wait_for(state="detached")
    view.button("Play").click()
    view.wait_step(5)
    step, panels = view.pause(), view.view.locator("figure").count()
    view.button("Add tile").click()
    box.wait_for()
    view.wait_for(lambda: "each expert has a capacity" in (box.get_attribute("aria-description") or ""))
    assert box.is_checked()
    view.wait_for(lambda: view.view.locator("figure").count() == panels + 1)
    view.wait_step(step, step + 1)  # a pause in the middle of a round leaves some tiles a step ahead
    view.button("Play").wait_for()
    box.press("Space")
    view.wait_for(lambda: view.view.locator("figure").count() == panels)
    assert not box.is_checked()


def lit(view, name: str, color: str) -> int:
    return view.pixels(f"{name}: ", [int(color[i : i + 2], 16) for i in (1, 3, 5)])


def test_facts_light_lamps_in_the_ink_of_their_model_and_name_them(view):
    assert [lit(view, name, ink) for name, ink in zip(WALLS, DARK_LINES)] == [0, 0, 0]
    view.button("Play").click()
    view.wait_for(lambda: "memorised 8 of 8 facts" in view.view.inner_text(), seconds=60)
    view.pause()
    view.wait_for(lambda: all(lit(view, name, ink) for name, ink in zip(WALLS, DARK_LINES)))
    view.point("MoE: ", 0.5, 0.5)
    tip = view.view.locator(".moe-tip", has_text="MoE ")
    tip.wait_for()
    assert len(tip.inner_text().split(":")[0].strip()) == 4
    view.wait_for(lambda: all(lit(view, name, RED) > 0 for name in WALLS))
