"""The devices of this machine, and the oracles that tests compare with."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # so that `import oracle` works

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES, scope="session")
def device(request) -> str:
    """Each device that this machine has: the test runs once on each."""
    return request.param
