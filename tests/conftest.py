"""What all tests share."""

import os

import matplotlib
import pytest
from hypothesis import settings

from moe_lessons.support import progress
from tests.chromium import browser, violations  # noqa: F401

matplotlib.use("agg")
os.environ["MOE_LESSONS_PROGRESS"] = "off"  # no test touches the progress of whoever runs it


@pytest.fixture(autouse=True)
def new_session(monkeypatch):
    """No test sees what another one has recorded. Returns a function that forgets, as a restart of the kernel does."""

    def forget():
        monkeypatch.setattr(progress, "_session", {})

    forget()
    return forget


# The same examples on every run and every machine, and no deadline: a busy machine is not a bug. EXAMPLES=1000: more.
settings.register_profile("course", deadline=None, derandomize=True, max_examples=int(os.environ.get("EXAMPLES", 25)))
settings.load_profile("course")
