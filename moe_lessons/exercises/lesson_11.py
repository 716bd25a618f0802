"""Lesson 11: all-to-all dispatch and combine, by hand."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise


def my_all_to_all(x, chosen, weights, experts):
    num_ranks, num_tokens, _ = x.shape
    owner = chosen // (len(experts) // num_ranks)  # (N, T): the rank of each token's expert
    received = owner.flatten().bincount(minlength=num_ranks)  # (N,)
    order = owner.flatten().argsort(stable=True)  # (N * T,) by rank; stable: then by source and token
    source, token = order // num_tokens, order % num_tokens  # kept: the addresses of the combine
    dispatched = x[source, token]  # (N * T, D)
    y = torch.zeros_like(x)
    for row, s, t in zip(dispatched, source, token):
        y[s, t] = weights[s, t] * experts[chosen[s, t]](row)
    return received, dispatched, y


def dealt(x: Tensor, chosen: Tensor, weights: Tensor, experts: list) -> tuple[Tensor, ...]:
    """Exchange as if expert e were on rank e % N."""
    N, share = len(x), len(experts) // len(x)
    in_blocks = [expert for rank in range(N) for expert in experts[rank::N]]
    return my_all_to_all(x, chosen % N * share + chosen // N, weights, in_blocks)


def without_own(x: Tensor, chosen: Tensor, weights: Tensor, experts: list) -> tuple[Tensor, ...]:
    """Exchange where what a rank receives lacks its own tokens."""
    owner, here = chosen // (len(experts) // len(x)), torch.arange(len(x))[:, None]
    rows = [x[owner.eq(rank) & here.ne(rank)] for rank in range(len(x))]
    y = my_all_to_all(x, chosen, weights, experts)[2]
    return torch.tensor(list(map(len, rows))), torch.cat(rows), y


def sent(x: Tensor, chosen: Tensor, weights: Tensor, experts: list) -> tuple[Tensor, ...]:
    return torch.full((len(x),), x.shape[1]), *my_all_to_all(x, chosen, weights, experts)[1:]


def unweighted(x: Tensor, chosen: Tensor, weights: Tensor, experts: list) -> tuple[Tensor, ...]:
    return my_all_to_all(x, chosen, torch.ones_like(weights), experts)


def as_computed(x: Tensor, chosen: Tensor, weights: Tensor, experts: list) -> tuple[Tensor, ...]:
    received, dispatched, y = my_all_to_all(x, chosen, weights, experts)
    owner = chosen // (len(experts) // len(x))
    return received, dispatched, y.flatten(0, 1)[owner.flatten().argsort(stable=True)].view_as(y)


ALL_TO_ALL_MISTAKES = [
    (dealt, "You assigned the experts in turn, e % N. They are in blocks: expert e is on rank e // (E / N)."),
    (without_own,
     "A rank's own tokens are missing in what it receives. They need not travel, but its experts process them, too."),
    (sent, "You counted the rows that each rank sends. Count those that it receives."),
    (unweighted, "The combine has no weights. Multiply each output by the weight of its token."),
    (as_computed,
     "The order is lost in the combine: you lined up the outputs as the ranks computed them. Write each to the "
     "rank and the place that its token came from."),
]  # fmt: skip


@exercise(3, my_all_to_all, ALL_TO_ALL_MISTAKES, ("received", "dispatched", "y"))
def all_to_all() -> Iterator[tuple]:
    sizes = (3, 5, 6, 6), (2, 7, 3, 6), (4, 5, 2, 8), (1, 4, 3, 2)  # ranks N, tokens of each T, D, experts E
    for N, T, D, E in sizes:
        experts = [partial(torch.matmul, other=matrix) for matrix in torch.randn(E, D, D)]
        yield torch.randn(N, T, D), torch.randint(E, (N, T)), 0.1 + 0.8 * torch.rand(N, T), experts
