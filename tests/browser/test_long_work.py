"""Long work shows a bar with the time left, and the stop button of the notebook ends it and keeps what there is."""

CELLS = (
    "import time\nfrom moe_lessons.training import bar\ndone = []",
    "for n in bar(range(300), 'steps'):\n    time.sleep(0.1)\n    done.append(n)",
    "print('kept', len(done) > 5)",
)


def test_a_bar_is_shown_and_the_interrupt_keeps_what_there_is(open_notebook):
    notebook = open_notebook("long.ipynb", *CELLS)
    page = notebook.page
    notebook.run_all(wait=False)
    shown = page.locator(".jp-OutputArea .widget-html", has_text="steps")
    shown.wait_for()
    text = " ".join(page.locator(".jp-OutputArea .widget-html").all_inner_texts())
    assert "/300" in text and "<" in text  # done of all, time so far < time left
    assert page.locator(".jp-OutputArea .progress").count() > 0
    notebook.interrupt()
    notebook.wait_executed()
    assert page.get_by_text("of 300: what there is, is kept.").is_visible()
    assert page.get_by_text("kept True").is_visible()
    assert shown.count() == 0 and notebook.cell_errors() == [] and notebook.errors == []
