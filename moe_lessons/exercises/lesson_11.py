"""Lesson 11: the dispatch of an all-to-all, by hand."""

from collections.abc import Iterator

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise


def my_dispatch(x, chosen, num_experts):
    owner = (chosen // (num_experts // len(x))).flatten()  # (N * T,): the rank of each token's expert
    received = owner.bincount(minlength=len(x))  # (N,)
    order = owner.argsort(stable=True)  # (N * T,) by rank; stable: then by source and token
    return received, x.flatten(0, 1)[order]


def dealt(x: Tensor, chosen: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Dispatch as if expert e were on rank e % N."""
    return my_dispatch(x, chosen % len(x), len(x))


def without_own(x: Tensor, chosen: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Dispatch where what a rank receives lacks its own tokens."""
    owner, here = chosen // (num_experts // len(x)), torch.arange(len(x))[:, None]
    rows = [x[owner.eq(rank) & here.ne(rank)] for rank in range(len(x))]
    return torch.tensor(list(map(len, rows))), torch.cat(rows)


def sent(x: Tensor, chosen: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    return torch.full((len(x),), x.shape[1]), my_dispatch(x, chosen, num_experts)[1]


def by_expert(x: Tensor, chosen: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    order = chosen.flatten().argsort(stable=True)
    return my_dispatch(x, chosen, num_experts)[0], x.flatten(0, 1)[order]


def unsorted(x: Tensor, chosen: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    return my_dispatch(x, chosen, num_experts)[0], x.flatten(0, 1)


DISPATCH_MISTAKES = [
    (dealt, "You assigned the experts in turn, e % N. They are in blocks: expert e is on rank e // (E / N)."),
    (without_own,
     "A rank's own tokens are missing in what it receives. They need not travel, but its experts process them, too."),
    (sent, "You counted the rows that each rank sends. Count those that it receives."),
    (by_expert, "You sorted the rows by expert. Sort them by rank, and keep their order among the rows for one rank."),
    (unsorted, "The counts are right. The rows are still in the order of their sources: sort them by receiving rank."),
]  # fmt: skip


@exercise(2, my_dispatch, DISPATCH_MISTAKES, ("received", "dispatched"))
def dispatch() -> Iterator[tuple]:
    sizes = (3, 5, 6, 6), (2, 7, 3, 6), (4, 5, 2, 8), (1, 4, 3, 2)  # ranks N, tokens of each T, D, experts E
    for N, T, D, E in sizes:
        yield torch.randn(N, T, D), torch.randint(E, (N, T)), E
