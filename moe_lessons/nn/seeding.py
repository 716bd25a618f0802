"""The random state, the number of threads and the mode of a model, on which a result depends."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from moe_lessons.support.errors import check_positive_int


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it torch's global random state starts from `seed`; after it that state is as it was before.

    >>> with seeded(0):
    ...     print(torch.rand(1))
    tensor([0.4963])
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Within it torch computes with `threads` threads; after it with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(check_positive_int("threads", threads))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Within it the models are in eval mode; after it each of their modules is in training or not, as before."""
    before = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, was_training in before:
            module.training = was_training
