"""Lesson 00 in short, as a learner has it: a real JupyterLab in a real Chromium."""

import pytest
from playwright.sync_api import expect

# What is seen of the first view, or of its earlier picture until it is there: whether it is in sight, and its step; and
# whether anything was seen of the text below a result that a prediction hides.
WATCH = """() => {
  [window.seen, window.told] = [[], false];
  setInterval(() => {
    const text = [...document.querySelectorAll('p')].find((each) => each.textContent.includes('Equal bands would end'));
    told ||= text.checkVisibility();
    const held = document.querySelector('.moe-held:has(.moe-canvas, img)');
    const shown = held ?? document.querySelector('.moe-canvas[data-step]');
    const { top, bottom } = shown?.getBoundingClientRect() ?? {};
    if (shown) seen.push([top < innerHeight && bottom > 0, Number(shown.dataset.step ?? -1)]);
  }, 20);
}"""


@pytest.mark.slow
def test_after_run_all_the_first_view_is_seen_training_and_nothing_answers_a_prediction(lab, open_notebook, view_of):
    lesson = open_notebook("00_welcome.ipynb")
    page, note = lesson.page, lesson.page.locator("p", has_text="Equal bands would end")
    expect(page.locator(".jp-OutputPlaceholder")).to_have_count(3)  # what is stored of predictions is hidden
    expect(note).to_be_hidden()
    lesson.set_theme("dark")
    for shown, hidden in zip(page.locator(".moe-dark").all(), page.locator(".jp-RenderedImage :not(.moe-dark)").all()):
        expect(shown).to_be_visible()
        expect(hidden).to_be_hidden()
    page.evaluate(WATCH)
    lesson.run_all()
    seen = page.evaluate("seen")
    assert all(is_in_sight for is_in_sight, _ in seen), seen[:20]
    assert seen[0][1] == -1 and len({step for _, step in seen}) > 4
    assert lab.ask("00_welcome.ipynb", "collapse.step") == 200  # a cell waited for it
    views = page.locator(".moe-canvas")
    count = views.count()
    expect(note).to_be_hidden()
    assert page.evaluate("told") is False
    page.locator(".moe-question", has_text="200 steps without").get_by_role("radio").nth(1).check()
    said = page.get_by_text("You predicted: some are not, and the accuracy is more than 5 points lower.")
    expect(said).to_have_count(1)  # with the result
    expect(note).to_be_visible()
    expect(views).to_have_count(count + 1)
    view_of(page, count).wait_step(200)
    expect(page.get_by_text("Error displaying widget")).to_have_count(0)  # as of a bar that is gone
    assert lesson.wrong() == []


def test_it_plays_changes_is_saved_and_is_seen_again(lab, open_notebook, view_of):
    lesson = open_notebook("00_welcome.ipynb")
    lesson.page.evaluate("jupyterapp.commands.execute('editmenu:clear-all')")  # what is not run is not trusted
    lesson.page.locator(".jp-CodeCell .cm-content").first.click()  # the playground's: what installs is folded
    lesson.page.evaluate("jupyterapp.commands.execute('notebook:run-all-above')")
    lesson.run_cell(1)
    assert lesson.wrong() == []
    first = view_of(lesson.page)
    first.wait_step(200)
    first.handle("Experts E").focus()
    lesson.page.keyboard.press("ArrowLeft")
    first.wait_for(lambda: first.value("Experts E") == "7" and first.step < 200)  # afresh, and it trains on
    first.wait_step(20)
    first.pause()
    expect(first.canvas).not_to_contain_text("Started afresh")  # which is said for some seconds
    lesson.page.wait_for_timeout(2500)  # a still is made in a pause
    step, words = first.step, first.canvas.inner_text()
    lesson.save()

    lab.end_kernels()
    lesson.page.goto("about:blank")
    lesson.open(lab, "00_welcome.ipynb")
    again = view_of(lesson.page)
    assert again.step == step >= 20 and again.value("Experts E") == "7" and again.canvas.inner_text() == words
    assert lesson.wrong() == []
