"""`python -m tools.measure` finds each of its figures, of the page and of each view."""

import subprocess
import sys

from tools.measure import TITLES, VIEWS


def test_it_measures_the_page_and_every_view(browser, runtime):
    """Without `browser` there is nothing to measure with, and without `runtime` no page."""
    command = [sys.executable, "-m", "tools.measure", "--seconds", "2"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert made.returncode == 0, made.stdout + made.stderr
    rows = [line.strip("| ").split(" | ") for line in made.stdout.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["view", "page", *VIEWS] and {len(row) for row in rows} == {1 + len(TITLES)}
