"""Lesson 01: the attention weights of one head."""

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise, has_gradient


def my_attention_weights(scores):
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)  # above the diagonal
    return scores.masked_fill(later, -torch.inf).softmax(dim=-1)


def masked(scores: Tensor, first: int = 1, filled: float = -torch.inf) -> Tensor:
    return scores.masked_fill(torch.ones_like(scores).triu(first) > 0, filled).softmax(-1)


WEIGHTS_MISTAKES = [
    (lambda scores: scores.softmax(-1), "Nothing is masked: a token looks at those after it."),
    (lambda scores: masked(scores, filled=0),
     "A token still looks ahead: a score of 0 gets a weight, since e⁰ = 1. Fill with -torch.inf."),
    (lambda scores: scores.masked_fill(torch.ones_like(scores).triu(1) == 0, -torch.inf).softmax(-1),
     "The mask is turned round: masked_fill fills where it is True. Let it be True for the tokens after: triu(1)."),
    (lambda scores: scores.softmax(-1).tril(),
     "The rows do not sum to 1: you masked after the softmax. Mask the scores, then take the softmax."),
    (lambda scores: masked(scores, first=0),
     "A row has no number left: a token must be allowed to look at itself. Mask triu(1)."),
]  # fmt: skip


@exercise(1, my_attention_weights, WEIGHTS_MISTAKES, "the attention weights", axes=("row", "column"), then=has_gradient)
def causal_attention() -> list[tuple]:
    return [(torch.randn(T, T, requires_grad=True),) for T in (4, 7, 9, 1)]
