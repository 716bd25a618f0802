"""Lesson 00 in short, as a learner has it: a real JupyterLab in a real Chromium."""


def test_it_plays_changes_is_saved_and_is_seen_again(lab, open_notebook, view_of):
    lesson = open_notebook("00_welcome.ipynb")
    lesson.page.evaluate("jupyterapp.commands.execute('editmenu:clear-all')")  # what is not run is not trusted
    lesson.page.locator(".jp-CodeCell .cm-content").first.click()  # the playground's: what installs is folded
    lesson.page.evaluate("jupyterapp.commands.execute('notebook:run-all-above')")
    lesson.run_cell(1)
    assert lesson.cell_errors() == []
    first = view_of(lesson.page)
    first.wait_step(200)
    assert (first.view.locator("figure").count(), first.view.get_by_role("slider").count()) == (5, 4)
    first.handle("Experts E").focus()
    lesson.page.keyboard.press("ArrowLeft")
    first.wait_for(lambda: first.value("Experts E") == "7" and first.step == 0)
    first.button("Play").click()
    first.wait_step(20)
    first.pause()
    lesson.page.wait_for_timeout(2500)  # a still is made in a pause
    step, drawn = first.step, [first.in_colour(expert, "Territory")[0] for expert in range(7)]
    lesson.menu("File", "docmanager:save")
    lesson.page.wait_for_timeout(1500)

    lab.end_kernels()
    lesson.page.goto("about:blank")
    lesson.open(lab, "00_welcome.ipynb")
    again = view_of(lesson.page)
    assert again.step == step >= 20 and again.value("Experts E") == "7"
    assert [again.in_colour(expert, "Territory")[0] for expert in range(7)] == drawn and sum(drawn) > 100
    assert lesson.cell_errors() == []
