"""The mock interview: an answer first, then ours beside it, by mouse and by keys; and all of it is kept."""

CELLS = ("from moe_lessons.course import progress\nfrom moe_lessons.course import Interview\nInterview()",
         "print(progress.read()['quiz']['12.memory'])")  # fmt: skip

SCROLLBARS = """view => [...view.querySelectorAll('div')].filter((box) => {
    const { overflowX, overflowY } = getComputedStyle(box);
    const isLarger = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight;
    return isLarger && [overflowX, overflowY].includes('auto');
}).map((box) => box.className)"""


def test_an_answer_comes_first_and_what_was_said_is_kept(open_notebook):
    notebook = open_notebook("interview.ipynb", *CELLS)
    notebook.run_cell(0)
    page = notebook.page
    show = page.get_by_role("button", name="Show our answer")
    show.wait_for()
    assert show.is_disabled()
    page.locator("textarea").press_sequentially("The next token may want any.")
    show.click()
    ticks = page.locator(".moe-point input")
    ticks.first.wait_for()
    ticks.first.focus()
    page.keyboard.press("Space")
    ticks.nth(2).click()
    assert page.locator(".moe-interview").evaluate(SCROLLBARS) == []
    page.get_by_role("button", name="Next question").click()
    page.get_by_text("Question 2 of").wait_for()
    assert ticks.count() == 0 and page.locator("textarea").input_value() == ""
    page.get_by_role("button", name="Back").click()
    page.get_by_text("Question 1 of").wait_for()
    ticks.first.wait_for()
    assert page.locator("textarea").input_value() == "The next token may want any."
    assert [tick.is_checked() for tick in ticks.all()] == [True, False, True, False]
    printed = notebook.run_cell(1)
    assert "'said': [True, False, True, False]" in printed and "may want any" in printed
    assert notebook.errors == [] and notebook.cell_errors() == []
