"""What nbval does not compare, beside pictures."""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collectstart(collector) -> None:
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("text/html",)  # where a notebook is live, a picture is HTML too; tables are text too
