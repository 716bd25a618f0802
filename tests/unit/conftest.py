"""The devices of this machine, and modules that tests share."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # so that `import oracle` and `import live_tools` work

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES, scope="session")
def device(request) -> str:
    """Each device that this machine has: the test runs once on each."""
    return request.param


@pytest.fixture
def static(monkeypatch):
    """As on a page where nothing runs."""
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1")


@pytest.fixture
def on_a_page(monkeypatch):
    """As in a notebook, whatever the environment says."""
    monkeypatch.delenv("MOE_LESSONS_STATIC", raising=False)
