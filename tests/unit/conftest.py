"""The devices of this machine, and modules that tests share."""

import signal
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


@pytest.fixture
def own_progress(on_a_page, monkeypatch, tmp_path) -> Path:
    """A file in which progress is kept, as on a page."""
    monkeypatch.setenv("MOE_LESSONS_PROGRESS", str(tmp_path / "progress.json"))
    return tmp_path / "progress.json"


@pytest.fixture
def interruptible():
    """Set what an interrupt does: a program that was begun in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
