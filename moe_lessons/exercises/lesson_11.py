"""Lesson 11: the times of an exchange and of the arithmetic, and the dispatch of an all-to-all, by hand."""

from collections.abc import Iterator

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise


def my_exchange_seconds(tokens, K, D, bytes, link):
    return tokens * K * D * bytes / link  # K rows of D numbers for each token


EXCHANGE_MISTAKES = [
    (lambda tokens, K, D, bytes, link: tokens * D * bytes / link, "A token has K experts: it sends a row to each."),
    (lambda tokens, K, D, bytes, link: tokens * K * D / link, "You counted numbers. The link is in bytes per second."),
    (lambda tokens, K, D, bytes, link: 2 * tokens * K * D * bytes / link,
     "`bytes` are those of both ways together. Do not count the way back twice."),
    (lambda tokens, K, D, bytes, link: 8 * tokens * K * D * bytes / link,
     "The link is in bytes per second, and not in bits."),
]  # fmt: skip


@exercise(1, my_exchange_seconds, EXCHANGE_MISTAKES, "the seconds")
def exchange_seconds() -> list[tuple]:
    return [(50, 2, 64, 4, 1e5), (8, 1, 16, 2, 1e3), (4096, 8, 7168, 3, 50e9)]


def my_compute_seconds(tokens, active, peak):
    return 2 * active * tokens / peak  # a multiplication and an addition for each active parameter


COMPUTE_MISTAKES = [
    (lambda tokens, active, peak: active * tokens / peak,
     "An active parameter takes two FLOPs, a multiplication and an addition."),
    (lambda tokens, active, peak: 6 * active * tokens / peak,
     "Six FLOPs per active parameter are those of forward and backward. Here is only the forward pass."),
    (lambda tokens, active, peak: 2 * active / peak, "These are the seconds of one token."),
]  # fmt: skip


@exercise(1, my_compute_seconds, COMPUTE_MISTAKES, "the seconds")
def compute_seconds() -> list[tuple]:
    return [(50, 1000, 1e5), (8, 12, 1e3), (4096, 37e9, 400e12)]


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
