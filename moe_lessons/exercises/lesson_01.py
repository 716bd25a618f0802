"""Lesson 01: the attention shares of one head, and the parameters of a layer."""

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise, has_gradient


def my_shares(scores):
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)  # above the diagonal
    return scores.masked_fill(later, -torch.inf).softmax(dim=-1)


def masked(scores: Tensor, first: int = 1, filled: float = -torch.inf) -> Tensor:
    return scores.masked_fill(torch.ones_like(scores).triu(first) > 0, filled).softmax(-1)


SHARES_MISTAKES = [
    (lambda scores: scores.softmax(-1), "Nothing is masked: a token looks at those after it."),
    (lambda scores: masked(scores, filled=0),
     "A token still looks ahead: a score of 0 has a share, since e⁰ = 1. Fill with -torch.inf."),
    (lambda scores: scores.masked_fill(torch.ones_like(scores).triu(1) == 0, -torch.inf).softmax(-1),
     "The mask is turned round: masked_fill fills where it is True. Let it be True for the tokens after: triu(1)."),
    (lambda scores: scores.softmax(-1).tril(),
     "The rows do not sum to 1: you masked after the softmax. Mask the scores, then take the softmax."),
    (lambda scores: masked(scores, first=0),
     "A row has no number left: a token must be allowed to look at itself. Mask triu(1)."),
]  # fmt: skip


@exercise(1, my_shares, SHARES_MISTAKES, "the shares", axes=("row", "column"), then=has_gradient)
def causal_attention() -> list[tuple]:
    return [(torch.randn(T, T, requires_grad=True),) for T in (4, 7, 9, 1)]


def my_layer_parameters(D, F):
    attention, ffn, norms = 4 * D * D, 3 * D * F, 2 * D
    return attention + ffn + norms


LAYER_MISTAKES = [
    (lambda D, F: 4 * D * D + 3 * D * F, "The norms are missing: two, with D numbers each."),
    (lambda D, F: 4 * D * D + 3 * D * F + D, "There are two norms, with D numbers each."),
    (lambda D, F: 3 * D * D + 3 * D * F + 2 * D,
     "Attention has four matrices: the one that mixes the heads is missing."),
    (lambda D, F: 4 * D * D + 2 * D * F + 2 * D, "The FFN has three matrices: gate, up and down."),
]  # fmt: skip


@exercise(1, my_layer_parameters, LAYER_MISTAKES, "the number of parameters")
def layer_parameters() -> list[tuple]:
    return [(96, 200), (64, 192), (32, 48)]
