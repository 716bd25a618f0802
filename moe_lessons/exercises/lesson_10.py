"""Lesson 10: finer experts for the same work, a choice within groups, and Soft MoE."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise
from moe_lessons.exercises.lesson_02 import top_mask


def my_finer_experts(num_experts, top_k, d_ff, times):
    return num_experts * times, top_k * times, d_ff // times, times**0.5  # a mean of `times` as many is √times shorter


FINER_MISTAKES = [
    (lambda e, k, f, n: (e * n, k, f // n, n**0.5),
     "K must grow too: a token needs as many of the finer experts as have the width of the old ones."),
    (lambda e, k, f, n: (e * n, k * n, f, n**0.5),
     "These experts are as wide as before, so a token does more work. Each must be narrower."),
    (lambda e, k, f, n: (e * n, k * n, f // n, 1),
     "Sizes are right. But a mean of more outputs is shorter: by which factor?"),
    (lambda e, k, f, n: (e * n, k * n, f // n, n),
     "Sizes are right. Your factor is for outputs that cancel each other; unrelated ones cancel only in part."),
    (lambda e, k, f, n: (e * n, k * n, f // n, n**-0.5),
     "Sizes are right. Your factor is how much shorter the mean is: what makes up for it?"),
]  # fmt: skip


@exercise(2, my_finer_experts, FINER_MISTAKES, ("num_experts", "top_k", "d_ff", "the factor"))
def finer_experts() -> list[tuple]:
    return [(8, 2, 64, 8), (16, 2, 32, 4), (6, 3, 30, 5), (4, 2, 8, 2)]


def my_grouped_choice(scores, num_groups, topk_groups, top_k):
    grouped = scores.unflatten(1, (num_groups, -1))  # (T, groups, E / groups)
    of_group = grouped.topk(2, dim=2).values.sum(dim=2)  # (T, groups): the two best of each
    best = of_group.topk(topk_groups, dim=1).indices
    left_out = torch.ones_like(of_group, dtype=torch.bool).scatter(1, best, False)
    allowed = grouped.masked_fill(left_out[:, :, None], -torch.inf).flatten(1)  # (T, E)
    chosen = allowed.topk(top_k, dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, chosen, True)


def grouped_by(score_of: Callable[[Tensor], Tensor]) -> Callable:  # of the scores (T, groups, E / groups)
    def wrong(scores: Tensor, num_groups: int, topk_groups: int, top_k: int) -> Tensor:
        grouped = scores.unflatten(1, (num_groups, -1))
        kept = top_mask(score_of(grouped), topk_groups)[:, :, None]
        return top_mask(grouped.where(kept, -torch.inf).flatten(1), top_k)

    return wrong


GROUP_MISTAKES = [
    (grouped_by(lambda x: x.amax(2)), "You score a group by its best expert alone. It is the sum of its two best."),
    (grouped_by(lambda x: x.sum(2)), "You score a group by the sum of all its experts. It is the sum of its two best."),
    (lambda s, n, g, k: top_mask(s, k),
     "You chose among all experts. First choose the groups, and then only among the experts of these."),
    (grouped_by(lambda x: -x.topk(2).values.sum(2)), "You kept the worst groups: the mask is the wrong way round."),
    (lambda s, n, g, k: top_mask(s.unflatten(1, (n, -1)), -(-k // n)).flatten(1),
     "You chose the same number from every group. Choose the best groups, then the K best in them."),
]  # fmt: skip


@exercise(2, my_grouped_choice, GROUP_MISTAKES, "who is chosen", axes=("token", "expert"))
def grouped_choice() -> list[tuple]:
    sizes = (6, 16, 4, 2, 3), (9, 12, 4, 2, 4), (5, 12, 3, 1, 2), (4, 8, 2, 2, 3)  # T, E, groups, groups kept, K
    return [(0.05 + 0.9 * torch.rand(T, E), *rest) for T, E, *rest in sizes]


def my_soft_moe(x, phi, expert):
    logits = x @ phi.T  # (T, S)
    dispatch, combine = logits.softmax(dim=0), logits.softmax(dim=1)  # over the tokens; over the slots
    slots = dispatch.T @ x  # (S, D): each a mean of tokens
    outputs = torch.stack([expert(e, slot) for e, slot in enumerate(slots)])  # (S, D)
    return combine @ outputs  # (T, D)


def out_of(slots: Tensor, expert) -> Tensor:
    return torch.stack([expert(e, slot) for e, slot in enumerate(slots)])


def soft_with(x: Tensor, phi: Tensor, expert, dispatch_dim: int, combine_dim: int) -> Tensor:
    logits = x @ phi.T
    return logits.softmax(combine_dim) @ out_of(logits.softmax(dispatch_dim).T @ x, expert)


def dense_mixture(x: Tensor, phi: Tensor, expert) -> Tensor:
    each = torch.stack([out_of(token.expand(len(phi), -1), expert) for token in x])  # (T, E, D)
    return ((x @ phi.T).softmax(1)[:, :, None] * each).sum(1)


SOFT_MISTAKES = [
    (partial(soft_with, dispatch_dim=0, combine_dim=0),
     "Both of your softmaxes are over the tokens. `combine` is over the slots: it says what a token gets of each."),
    (partial(soft_with, dispatch_dim=1, combine_dim=1),
     "Both of your softmaxes are over the slots. A slot holds a mean of tokens: `dispatch` is over the tokens."),
    (partial(soft_with, dispatch_dim=1, combine_dim=0),
     "The two softmaxes are exchanged: `dispatch` sums to 1 over the tokens, `combine` over the slots."),
    (dense_mixture,
     "This runs every expert on every token: a full mixture. In Soft MoE an expert sees only its slot, one mean."),
    (lambda x, p, f: out_of((x @ p.T).softmax(0).T @ x, f),
     "These are the outputs of the slots. Each token still has to get its mean of them: `combine @ outputs`."),
]  # fmt: skip


@exercise(3, my_soft_moe, SOFT_MISTAKES, "y", axes=("token", "place"))
def soft_moe() -> Iterator[tuple]:
    for T, S, D in ((5, 3, 4), (7, 8, 2), (1, 4, 3), (6, 1, 5)):
        x, phi, matrices = torch.randn(T, D), torch.randn(S, D), torch.randn(S, D, D)
        yield x, phi, lambda e, slot, matrices=matrices: torch.tanh(matrices[e] @ slot)
