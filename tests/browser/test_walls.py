"""Facts by heart in a real browser: the lamps light, a lamp is named, and another number of entries starts afresh."""

import pytest

from moe_lessons.plots.theme import LIGHT, RED

NAMES = ("MoE", "equal-active twin", "equal-total twin")


def pixels(view, name: str, color: str) -> int:
    """How many pixels of a model's wall have a colour."""
    return view.pixels(f"{name}: ", [int(color[i : i + 2], 16) for i in (1, 3, 5)])


@pytest.fixture(scope="module")
def notebook(open_notebook):
    """A notebook with a small wall of facts."""
    source = "from moe_lessons.widgets import FactsLab\nlab = FactsLab(4, num_entries=8, lr=0.01)\nlab"
    notebook = open_notebook("facts.ipynb", source)
    notebook.run_all()
    yield notebook
    assert notebook.errors == [] and notebook.cell_errors() == []


def test_lamps_light_in_the_ink_of_their_model_while_it_trains(notebook, view_of):
    view = view_of(notebook.page)
    assert [pixels(view, name, ink) for name, ink in zip(NAMES, LIGHT.lines)] == [0, 0, 0]
    view.button("Play").click()
    view.wait_for(lambda: pixels(view, NAMES[2], LIGHT.lines[2]) > 0, seconds=60)
    view.wait_for(lambda: "knows 8 of 8 entries" in view.view.inner_text(), seconds=60)
    view.pause()
    view.wait_for(lambda: all(pixels(view, name, ink) for name, ink in zip(NAMES, LIGHT.lines)))


def test_a_lamp_that_is_pointed_at_is_named_and_framed_in_every_wall(notebook, view_of):
    view = view_of(notebook.page)
    view.point("MoE: ", 0.5, 0.5)
    tip = view.view.locator(".moe-tip", has_text="known")
    tip.wait_for()
    assert len(tip.inner_text().split(":")[0].strip()) == 4
    view.wait_for(lambda: all(pixels(view, name, RED) > 0 for name in NAMES))


def test_another_number_of_entries_starts_afresh(notebook, view_of):
    view = view_of(notebook.page)
    assert view.step > 0
    view.handle("Entries N").focus()
    notebook.page.keyboard.press("ArrowRight")
    view.view.locator("figure", has_text="MoE: 0 of 250").wait_for()
    view.wait_for(lambda: view.step == 0)
