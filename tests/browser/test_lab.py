"""``python -m moe_lessons lab`` opens the first lesson, and a notebook runs in it with this very Python."""

import sys


def test_the_printed_address_opens_the_first_lesson(lab, browser):
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(lab.first_page)
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for(timeout=60_000)
    assert "00_welcome" in page.title()
    page.locator(".jp-StatusBar-TextItem", has_text="| Idle").first.wait_for(timeout=60_000)
    page.wait_for_timeout(1000)  # a question about news or updates would come up by now
    assert page.locator(".Toastify__toast, .jp-Dialog").all_inner_texts() == []
    assert [url for url in asked if not url.startswith((lab.address, "data:", "blob:"))] == []
    assert [url for url in asked if "/lab/api/news" in url or "/lab/api/update" in url] == []
    page.close()


def test_the_kernel_is_this_python(open_notebook):
    notebook = open_notebook("small.ipynb", "import sys; print(sys.executable)")
    notebook.run_cell(0)
    notebook.page.get_by_text(sys.executable, exact=True).wait_for()
