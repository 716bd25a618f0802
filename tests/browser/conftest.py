"""One JupyterLab and one Chromium serve all tests. To load JupyterLab takes longer than most tests, so a page that a
test file leaves shows the notebooks of the next."""

import contextlib

import pytest
from playwright.sync_api import Error

from tests.jupyterlab import VIEWPORT, LabServer, NotebookPage, View


class Notebooks:
    """What opens notebooks, in idle pages as long as there are some."""

    def __init__(self, lab: LabServer, browser, idle: list[NotebookPage]):
        self.lab, self.browser, self.idle, self.opened = lab, browser, idle, []

    def __call__(self, name: str, *sources: str) -> NotebookPage:
        self.lab.end_kernels(name)  # a test that failed may have left it, busy for ever
        if sources:
            self.lab.write(name, *sources)
        is_here = bool(self.idle)
        notebook = self.idle.pop() if is_here else NotebookPage(self.browser.new_context(viewport=VIEWPORT).new_page())
        self.opened.append(notebook)
        notebook.open_here(name) if is_here else notebook.open(self.lab, name)
        return notebook

    def close(self) -> None:
        """Leave all pages and end their kernels."""
        while self.opened:
            notebook = self.opened.pop()
            try:
                notebook.set_theme("light")
                notebook.leave()
                self.idle.append(notebook)
            except Error:  # it crashed, or shows something else
                notebook.page.context.close()
        self.lab.end_kernels()


@pytest.fixture(scope="session")
def view_of():
    """Return the class View: view_of(page, place)."""
    return View


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory):
    """The running LabServer. Its `root` is a copy of the course, where a test may write its own notebooks."""
    with contextlib.closing(LabServer(tmp_path_factory.mktemp("lab"))) as server:
        yield server


@pytest.fixture(scope="session")
def idle_pages() -> list[NotebookPage]:
    """Pages of JupyterLab that no test uses now."""
    return []


@pytest.fixture(scope="module")
def open_notebook(lab, browser, idle_pages):
    """open_notebook(name): a notebook of the course; open_notebook(name, *cells): one of these cells. All notebooks and
    kernels of a test file end with it, or by open_notebook.close()."""
    for file in lab.home.glob("progress*"):  # what other test files have answered
        file.unlink()
    with contextlib.closing(Notebooks(lab, browser, idle_pages)) as notebooks:
        yield notebooks
