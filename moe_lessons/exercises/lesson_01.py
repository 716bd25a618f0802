"""Lesson 01: the parameters of a layer, and the attention weights of one head."""

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise


def attention_weights(q: Tensor, k: Tensor, scale=True, masked=-torch.inf, dim=-1, first=1, turned=False) -> Tensor:
    """Causal attention weights (T, T) of one head from q and k (T, h); the other arguments make mistakes of it."""
    scores = q @ k.T / (q.shape[1] ** 0.5 if scale else 1)
    return scores.masked_fill((torch.ones_like(scores).triu(first) > 0) != turned, masked).softmax(dim)


def my_attention(q, k):
    T, h = q.shape
    scores = q @ k.T / h**0.5  # (T, T)
    later = torch.ones(T, T, dtype=torch.bool).triu(1)  # above the diagonal
    return scores.masked_fill(later, -torch.inf).softmax(dim=-1)


ITSELF = "A row has no number left: a token must be allowed to look at itself. Mask triu(1)."
ATTENTION_MISTAKES = {
    lambda q, k: attention_weights(q, k, scale=False): "The scores must be divided by the root of h.",
    lambda q, k: attention_weights(q, k, masked=0):
        "A token still looks ahead: a score of 0 has a share, since e⁰ = 1. Fill with -torch.inf.",
    lambda q, k: attention_weights(q, k, turned=True):
        "The mask is turned round: masked_fill fills where it is True. Let it be True for the tokens after: triu(1).",
    lambda q, k: (q @ k.T / q.shape[1] ** 0.5).softmax(-1): "Nothing is masked: a token looks at those after it.",
    lambda q, k: (q @ k.T / q.shape[1] ** 0.5).softmax(-1).tril():
        "The rows do not sum to 1: you masked after the softmax. Mask the scores, then take the softmax.",
    lambda q, k: attention_weights(q, k, dim=0): "Your softmax runs down the columns. Each row must sum to 1: dim=-1.",
    lambda q, k: attention_weights(k, q): "You have keys @ queries. A row belongs to the query that looks.",
    lambda q, k: attention_weights(q, k, first=0): ITSELF,
    lambda q, k: attention_weights(q, k, scale=False, first=0): ITSELF,
    lambda q, k: attention_weights(q, k, first=2): "A token looks at the one after it: mask from triu(1) on.",
}  # fmt: skip


@exercise(2, my_attention, ATTENTION_MISTAKES, "the shares", axes=("query", "key"))
def causal_attention() -> list[tuple]:
    return [tuple(torch.randn(2, T, h)) for T, h in ((4, 6), (7, 6), (9, 4), (1, 5))]


def my_layer_parameters(D, H, G, F):
    h = D // H
    queries_keys_values = D * (H + 2 * G) * h
    after_the_heads = D * D
    ffn = 3 * D * F
    return queries_keys_values + after_the_heads + ffn + 2 * D


LAYER_MISTAKES = {
    lambda D, H, G, F: my_layer_parameters(D, H, G, F) - 2 * D: "The norms are missing: two, with D numbers each.",
    lambda D, H, G, F: my_layer_parameters(D, H, G, F) - D: "There are two norms, with D numbers each.",
    lambda D, H, G, F: my_layer_parameters(D, H, H, F): "Keys and values have G heads, not H.",
    lambda D, H, G, F: my_layer_parameters(D, H, G, F) - D * D * G // H: "Keys and values: a matrix for each of them.",
    lambda D, H, G, F: my_layer_parameters(D, H, G, F) - D * D:
        "A matrix of D × D is missing: the queries' (H heads of D / H numbers), or the one after the heads.",
    lambda D, H, G, F: my_layer_parameters(D, H, G, F) - D * F: "The FFN has three matrices: gate, up and down.",
}  # fmt: skip


@exercise(1, my_layer_parameters, LAYER_MISTAKES, "the number of parameters")
def layer_parameters() -> list[tuple]:
    return [(96, 6, 2, 200), (64, 4, 4, 192), (32, 2, 1, 48)]
