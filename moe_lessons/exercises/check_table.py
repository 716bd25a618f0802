"""Lesson 04: read a routing table against the even share."""

import torch
from torch import Tensor

from moe_lessons.exercises.compare import Comparison
from moe_lessons.exercises.exercise import Exercise


def times_even_by_loops(counts: Tensor) -> list[list[float]]:
    """counts (domains, E) -> how many times the even share of its domain each expert has."""
    return [[number / (sum(row) / len(row)) for number in row] for row in counts.tolist()]


def table_cases() -> list[tuple]:
    """Domains of different sizes: each has more tokens than the one before."""
    sizes = (3, 8), (5, 4), (1, 6), (2, 2)
    return [(torch.randint(1, 100, (rows, E)) * torch.arange(1.0, rows + 1)[:, None],) for rows, E in sizes]


def my_times_even(counts):
    shares = counts / counts.sum(dim=1, keepdim=True)  # of the tokens of its domain: each row sums to 1
    return shares * counts.shape[1]  # divided by the even share, 1 / E


COLUMN = (
    "You divided each column by its sum: of the tokens of an expert, how many are code? Asked is the row: of the "
    "tokens of code, how many go to this expert?"
)
MISTAKES = {
    lambda c: (
        c / c.sum(1, keepdim=True)
    ): "These are shares, and a row sums to 1. Divide them by the even share, 1 / E.",
    lambda c: 100 * c / c.sum(1, keepdim=True): (
        "These are percents, as on the map. Here 1 is to be the even share: divide the shares by 1 / E."
    ),
    lambda c: c / c.sum(1, keepdim=True) / c.shape[1]: (
        "You multiplied by the even share. Divide by it: 1/2 of the tokens is 4 times the even share of 8 experts."
    ),
    lambda c: c / c.sum(1, keepdim=True) - 1 / c.shape[1]: (
        "You subtracted the even share. Divide by it: how many times as much?"
    ),
    lambda c: c / c.sum(0) * c.shape[1]: COLUMN,
    lambda c: c / c.sum(0) * c.shape[0]: COLUMN,
    lambda c: c / c.sum() * c.numel(): (
        "You divided by all tokens, so a large domain has large numbers everywhere. Divide each row by its own sum."
    ),
    lambda c: c / c.sum(1, keepdim=True) * c.shape[0]: (
        "You took the number of domains for that of experts. The even share is one of E, the columns."
    ),
}

times_even = Exercise(
    "times_even",
    lesson="04",
    stars=1,
    check=Comparison(times_even_by_loops, "the table", table_cases, MISTAKES, axes=("domain", "expert")),
    hints=(
        "First the shares: which part of the tokens of a domain goes to each expert? Then: what would be even?",
        "`counts / counts.sum(dim=1, keepdim=True)` are the shares. The even share is `1 / counts.shape[1]`.",
    ),
    solution=my_times_even,
)
