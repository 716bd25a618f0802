"""Claims are measured from shifted seeds, and from first weights with noise, where the environment asks for it."""

import os
import sys
from pathlib import Path

import pytest
import torch

from moe_lessons.training import Run

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # so that `from everywhere import seeds` works

from everywhere import NOISE  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def noise_in_the_first_weights():
    """Multiply every weight that a run begins with by 1 + MOE_LESSONS_NOISE · N(0, 1)."""
    size, start = float(os.environ.get(NOISE, 0)), Run.__init__

    def with_noise(run, model, *args, **kwargs):
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for weight in model.parameters() if size else ():
                weight.mul_(1 + size * torch.randn(weight.shape, generator=generator))
        start(run, model, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "__init__", with_noise)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE and item.path.name.startswith("test_lesson"):
            item.add_marker("slow")
