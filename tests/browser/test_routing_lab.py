"""The routing laboratory in a real browser, on a dark page: it trains, answers, and starts afresh."""

import pytest

SOURCES = (
    "from moe_lessons.widgets import RoutingLab",
    "lab = RoutingLab(('code', 'json'), panels=('loss', 'domains', 'text'), num_layers=2, d_model=16, num_heads=2,\n"
    "                 batch_size=4, threads=1, max_steps=5000)\nlab",
)


@pytest.fixture(scope="module")
def notebook(open_notebook):
    notebook = open_notebook("routing.ipynb", *SOURCES, theme="dark")
    notebook.run_all()
    yield notebook
    assert notebook.errors == [] and notebook.cell_errors() == []


def test_a_knob_is_turned_while_it_trains(notebook, view_of):
    view = view_of(notebook.page)
    view.button("Play").click()
    view.wait_step(5)
    view.handle("Auxiliary loss").focus()
    for _ in range(2):
        notebook.page.keyboard.press("ArrowRight")
    view.wait_for(lambda: view.value("Auxiliary loss") == "0.1")
    step, picture = view.step, view.picture
    view.wait_step(step + 5)
    view.wait_for(lambda: view.picture != picture)  # it comes after the line that names the step


def test_the_layer_is_switched(notebook, view_of):
    view = view_of(notebook.page)
    before = view.view.locator(".moe-reading").inner_text()
    assert "Layer 0: " in view.view.locator(".moe-words").inner_text()
    view.handle("Layer").focus()
    notebook.page.keyboard.press("ArrowRight")
    view.wait_for(lambda: "Layer 1: " in view.view.locator(".moe-words").inner_text())
    assert view.view.locator(".moe-reading").inner_text() != before


def test_more_experts_start_afresh_and_a_router_says_what_it_has_no_use_for(notebook, view_of):
    view = view_of(notebook.page)
    step = view.pause()
    view.handle("Experts E").focus()
    notebook.page.keyboard.press("ArrowRight")
    view.wait_for(lambda: view.step == 0)
    assert step > 0 and view.value("Experts E") == "16"
    chips = view.view.locator(".moe-chips button i")
    assert len(set(chips.evaluate_all("chips => chips.map(chip => getComputedStyle(chip).background)"))) == 16
    view.view.get_by_label("Router", exact=True).select_option("sigmoid")
    view.view.get_by_text("Off: the noise needs a top-k router.").wait_for()


def test_the_last_domain_stays(notebook, view_of):
    view = view_of(notebook.page)
    for name in ("code", "json"):
        view.view.get_by_role("checkbox", name=name).uncheck()
    view.view.get_by_text("domains must be one of 'english'").wait_for()
    view.wait_for(lambda: view.view.get_by_role("checkbox", name="json").is_checked())
