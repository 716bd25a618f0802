"""The block, live: a click on another token, or a key, and the drawing has that token's numbers."""

import pytest

from moe_lessons.plots.panels.block import COLUMNS, HEIGHT, LOGITS, ORDER, RIGHT, STRIP, WIDTH, number

NAME = "block.ipynb"


@pytest.fixture(scope="module")
def notebook(open_notebook):
    sources = [
        "from moe_lessons.nn import MoE, seeded\nfrom moe_lessons.tasks import PlaneClassifier, PlaneTask\n"
        "from moe_lessons.training import Run\nfrom moe_lessons.widgets import LiveRun",
        "with seeded(0):\n    model = PlaneClassifier(MoE(16, 8, num_experts=8, top_k=2), num_classes=8)\n"
        "view = LiveRun(Run(model, PlaneTask('checker'), lr=0.02), ('territory', 'block'), play=40, columns=2)\nview",
    ]
    notebook = open_notebook(NAME, *sources)
    notebook.run_all()
    yield notebook
    assert notebook.errors == [] and notebook.cell_errors() == []


@pytest.fixture(scope="module")
def view(notebook, view_of):
    view = view_of(notebook.page)
    view.wait_step(40)
    return view


def point(view, x: float, y: float, click: bool = False) -> None:
    view.point("The block", x / WIDTH, (y + 8) / (HEIGHT + 8), click)


def is_of(view, token: int) -> bool:
    return f"The block, with the numbers of token {token}" in view.view.locator("figure b").all_inner_texts()


def logits(view) -> list[str]:
    """The router logits in the picture: what the page says of each, pointed at."""
    found = []
    for expert in range(8):
        point(view, COLUMNS + (expert + 0.5) * (RIGHT - COLUMNS) / 8, LOGITS)
        tip = view.view.locator(".moe-tip").inner_text().split()
        assert tip[0] == f"E{expert}" and tip[1:3] == ["router", "logit"], tip
        found.append(tip[3])
    return found


def of_the_model(lab, token: int) -> list[str]:
    return [number(x) for x in lab.ask(NAME, f"view.plane.routing.router_logits[{token}].tolist()")]


def picture(view) -> str:
    point(view, 4, 4)
    view.page.wait_for_timeout(400)  # what was pale comes back
    return view.panel("The block").evaluate("canvas => canvas.toDataURL()")


def test_a_click_on_another_token_changes_the_picture_and_its_numbers(view, lab):
    assert is_of(view, 0) and logits(view) == of_the_model(lab, 0)
    before = picture(view)
    point(view, STRIP + 7.5 * (RIGHT - STRIP) / 16, ORDER, click=True)
    view.wait_for(lambda: is_of(view, 7))
    assert picture(view) != before
    assert logits(view) == of_the_model(lab, 7) != of_the_model(lab, 0)


def test_keys_choose_a_token_in_the_strip_and_in_the_plane(view, lab):
    view.panel("The block").focus()
    for key in ("Home", "ArrowRight", "ArrowRight", "Enter"):
        view.page.keyboard.press(key)
    view.wait_for(lambda: is_of(view, 2))
    view.panel("Territory").focus()
    for key in ("ArrowRight", "End", "Enter"):
        view.page.keyboard.press(key)
    view.wait_for(lambda: is_of(view, 31))
    assert logits(view) == of_the_model(lab, 31)
