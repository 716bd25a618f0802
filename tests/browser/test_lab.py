"""``python -m moe_lessons lab`` opens the first lesson, and a notebook runs in it with this very Python."""

import sys

import pytest

SLIDER = "import ipywidgets\nipywidgets.IntSlider(description='top_k')"


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


@pytest.fixture(scope="module")
def notebook(open_notebook):
    notebook = open_notebook("small.ipynb", "import sys; print(sys.executable)", SLIDER, theme="dark", fresh=True)
    notebook.run_all()
    return notebook


def test_the_kernel_is_this_python(notebook):
    assert notebook.page.get_by_text(sys.executable, exact=True).is_visible()


def test_a_widget_is_drawn_without_errors_in_the_theme_that_was_asked_for(notebook):
    notebook.page.locator(".widget-slider", has_text="top_k").wait_for()
    assert notebook.cell_errors() == [] and notebook.errors == []
    assert notebook.page.locator("body").get_attribute("data-jp-theme-light") == "false"
