"""The collapse laboratory in a real browser: it trains, answers, and says what it refuses."""

import nbformat
import pytest


@pytest.fixture(scope="module")
def notebook(lab, open_notebook):
    """A notebook with a small laboratory."""
    source = "from moe_lessons.widgets import BalancingLab\nBalancingLab(('nothing', 'auxiliary loss'), seeds=2)"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    book.metadata["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nbformat.write(book, lab.root / "notebooks" / "laboratory.ipynb")
    notebook = open_notebook("laboratory.ipynb")
    notebook.run_all()
    return notebook


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
    step, height = view.step, view.view.locator("img").bounding_box()["height"]
    view.button("Add tile").click()
    box = view.view.get_by_role("checkbox", name="auxiliary loss + capacity")
    box.wait_for()
    view.wait_for(lambda: "limited number of places" in (box.get_attribute("aria-description") or ""))
    assert box.is_checked()
    view.wait_step(step, step + 1)  # a pause in the middle of a round leaves some tiles a step ahead
    view.button("Play").wait_for()
    box.focus()
    notebook.page.keyboard.press("Space")
    view.wait_for(lambda: "catches up" not in view.view.inner_text())
    assert not box.is_checked() and view.view.locator("img").bounding_box()["height"] == pytest.approx(height, abs=1)


def test_remedies_that_clash_are_said_under_the_picture(notebook, view_of):
    view = view_of(notebook.page)
    view.view.get_by_label("Add", exact=True).select_option("bias update")
    view.view.get_by_label("and", exact=True).select_option("learned noise")
    view.button("Add tile").click()
    view.view.get_by_text("bias update and learned noise do not go together").wait_for()
    assert view.view.get_by_role("checkbox", name="bias update + learned noise").count() == 0


def test_no_error_in_the_console(notebook):
    assert notebook.errors == [] and notebook.cell_errors() == []
