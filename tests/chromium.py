"""The Chromium of this machine, one for all tests that a process runs: Playwright starts but once in each."""

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                      "--disable-component-update", "--disable-sync"]  # fmt: skip
expect.set_options(timeout=30_000)  # milliseconds; on a busy machine a page is late, and only what fails waits so long
CODE = ".jp-RenderedMarkdown code span"  # JupyterLab's own colours of highlighted code


def find_chromium() -> str | None:
    """The Chromium to test with: MOE_LESSONS_CHROMIUM, or the first of the usual names on PATH."""
    named = os.environ.get("MOE_LESSONS_CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


@contextlib.contextmanager
def running_chromium() -> Iterator:
    """Playwright's Browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


def skip(reason: str) -> None:
    """Skip what needs something that is missing, or fail where a browser is required."""
    if os.environ.get("MOE_LESSONS_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{reason}, and MOE_LESSONS_REQUIRE_BROWSER is 1", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser():
    """The Chromium of this machine."""
    if find_chromium() is None:
        skip("no Chromium on PATH (chromium, google-chrome) and MOE_LESSONS_CHROMIUM names none")
    with running_chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def violations():
    """violations(page, "css selector"): what axe-core finds wrong by WCAG 2.1 AA, or by other rules, in these parts."""
    axe = Axe()

    def scan(page, parts: str = "html", rules: tuple[str, ...] = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa")):
        options = {"runOnly": rules, "resultTypes": ["violations"], "preload": False}
        # Else what scrolls counts as hidden, and what fades after a change of theme as pale.
        style = page.add_style_tag(content="body { overflow: visible !important } * { transition: none !important }")
        answer = axe.run(page, {"include": [parts], "exclude": [CODE]}, options).response
        style.evaluate("style => style.remove()")
        assert answer["passes"], parts
        nodes = [(rule["id"], node) for rule in answer["violations"] for node in rule["nodes"]]
        return [f"{rule}: {node['html'][:200]} ({node['failureSummary']})" for rule, node in nodes]

    return scan
