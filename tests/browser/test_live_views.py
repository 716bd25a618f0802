"""Live views beside each other, made again, and left alone."""

import nbformat
import pytest


@pytest.fixture(scope="module")
def notebook(lab, open_notebook):
    """A notebook with two playgrounds and cells that print what the kernel knows of them."""
    sources = [
        "from moe_lessons.widgets import Playground\nfrom moe_lessons.widgets.live import _views",
        "first = Playground(play=100000, max_steps=60)\nfirst",
        "second = Playground('collapse', max_steps=60)\nsecond",
        "print('noise', first.main_run.knobs.noise_std, 'running', first.running, second.running)",
        "views = sum((made for _, made in _views.values()), [])\n"
        "print(sum(view.running for view in views), 'running of', len(views), 'views')",
    ]
    write(lab, "two.ipynb", sources)
    notebook = open_notebook("two.ipynb")
    notebook.run_all()
    return notebook


def write(lab, name: str, sources: list[str]) -> None:
    """Write a notebook of code cells into the course that the server shows."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    book.metadata["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nbformat.write(book, lab.root / "notebooks" / name)


def run_cell(notebook, place: int) -> str:
    """Run one cell and return what it prints."""
    cell = notebook.page.locator(".jp-CodeCell").nth(place)
    cell.evaluate("cell => cell.scrollIntoView()")
    before = cell.locator(".jp-InputPrompt").text_content()
    cell.locator(".cm-content").click()
    notebook.page.keyboard.press("Control+Enter")
    for _ in range(600):
        prompt = cell.locator(".jp-InputPrompt").text_content()
        if prompt != before and any(map(str.isdigit, prompt)):
            break
        notebook.page.wait_for_timeout(50)
    return " ".join(cell.locator(".jp-OutputArea-output").all_text_contents())


def test_two_playgrounds_train_at_once(notebook, view_of):
    first, second = view_of(notebook.page, 0), view_of(notebook.page, 1)
    second.button("Play").click()
    first.wait_step(first.step + 20)
    second.wait_step(20)


def test_a_view_stops_by_itself(notebook, view_of):
    second = view_of(notebook.page, 1)
    second.wait_for(lambda: "paused after 60 steps" in second.view.inner_text())
    assert second.step == 60


def test_the_last_value_reaches_the_kernel(notebook, view_of):
    first = view_of(notebook.page, 0)
    first.handle("Noise").focus()
    for _ in range(4):
        notebook.page.keyboard.press("ArrowRight")
    first.wait_for(lambda: first.value("Noise") == "0.20")
    first.wait_for(lambda: "noise 0.2 running True False" in run_cell(notebook, 3))


def test_a_control_moved_while_a_cell_waits_stays_alive(lab, open_notebook, view_of):
    sources = ["from moe_lessons.widgets import Playground", "lab = Playground(play=1200)\nlab", "await lab.finished()"]
    write(lab, "waiting.ipynb", [*sources, "print('noise', lab.main_run.knobs.noise_std)"])
    waiting = open_notebook("waiting.ipynb")
    waiting.run_all(wait=False)
    view = view_of(waiting.page)
    view.wait_step(50)
    view.handle("Noise").focus()
    for _ in range(4):
        waiting.page.keyboard.press("ArrowRight")
    waiting.wait_executed()
    view = view_of(waiting.page)
    view.handle("Noise").focus()
    for _ in range(4):
        waiting.page.keyboard.press("ArrowRight")
    view.wait_for(lambda: view.value("Noise") == "0.40")
    view.wait_for(lambda: "noise 0.4" in run_cell(waiting, 3))
    assert waiting.errors == []


def test_running_a_cell_again_ends_its_earlier_view(notebook, view_of):
    run_cell(notebook, 1)
    view_of(notebook.page, 0).wait_step(10)
    assert "1 running of 2 views" in run_cell(notebook, 4)
    view_of(notebook.page, 0).pause()


def corner(picture) -> int:
    """How bright the first pixel of a picture is, 0 to 255."""
    return picture.evaluate(
        """async (image) => {
            const bitmap = await createImageBitmap(await (await fetch(image.src)).blob());
            const canvas = new OffscreenCanvas(1, 1), context = canvas.getContext('2d');
            context.drawImage(bitmap, 0, 0);
            return context.getImageData(0, 0, 1, 1).data[0];
        }"""
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_narrow_pages_in_both_themes(lab, open_notebook, view_of, theme):
    write(lab, f"{theme}.ipynb", ["from moe_lessons.widgets import Playground", "Playground()"])
    narrow = open_notebook(f"{theme}.ipynb", theme=theme, width=900)
    narrow.run_all()
    view = view_of(narrow.page, 0)
    view.pause()
    controls, picture = view.view.locator(".moe-controls"), view.view.locator("img")
    assert controls.bounding_box()["y"] > picture.bounding_box()["y"] + picture.bounding_box()["height"] - 1
    assert picture.bounding_box()["width"] > 600
    view.wait_for(lambda: (corner(picture) < 64) == (theme == "dark"))
    assert narrow.errors == []


def test_no_error_in_the_console(notebook):
    assert notebook.errors == [] and notebook.cell_errors() == []
