"""The exercises of lesson 01: the parameters of a layer, and the attention weights of one head."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from moe_lessons.analysis.cost import count_parameters
from moe_lessons.exercises.exercise import SIZES, Check, Problem, attempt, check_numbers, compare, judge
from moe_lessons.nn import TransformerConfig
from moe_lessons.nn.transformer import Layer

LAYER_SIZES = ((64, 4, 2, 192), (64, 4, 4, 192), (32, 2, 1, 48), (96, 6, 2, 96))  # D, H, G, F


def layer_parameters(D: int, H: int, G: int, F: int) -> int:
    """Of queries, keys and values; of the matrix after the heads; of the FFN; and of two norms."""
    return D * (H + 2 * G) * (D // H) + D * D + 3 * D * F + 2 * D


PARAMETER_MISTAKES: dict[Callable[[int, int, int, int], int], str] = {
    lambda D, H, G, F: layer_parameters(D, H, G, F) - 2 * D: "The norms are missing: two, with D numbers each.",
    lambda D, H, G, F: layer_parameters(D, H, G, F) - D: "There are two norms, with D numbers each.",
    lambda D, H, G, F: layer_parameters(D, H, H, F): "Keys and values have G heads, not H.",
    lambda D, H, G, F: layer_parameters(D, H, G, F) - D * G * (D // H): "Keys and values: a matrix for each of them.",
    lambda D, H, G, F: layer_parameters(D, H, G, F) - D * D: "The matrix after the heads is missing: D × D.",
    lambda D, H, G, F: layer_parameters(D, H, G, F) - D * F: "The FFN has three matrices: gate, up and down.",
}


def check_layer_parameters(function: Callable[[int, int, int, int], int | None]) -> Check:
    """Compare `function`(D, H, G, F) with the count of a dense `Layer`."""
    configs = {sizes: dict(zip(("d_model", "num_heads", "num_kv_heads", "d_ff"), sizes)) for sizes in LAYER_SIZES}
    layers = {sizes: Layer(TransformerConfig(**config, moe_layers=()), 0) for sizes, config in configs.items()}
    hint = "A head has D / H numbers. There are H heads of queries, G of keys and G of values."
    return check_numbers(function, {s: count_parameters(layer).total for s, layer in layers.items()}, hint,
                         PARAMETER_MISTAKES)  # fmt: skip


def attention_weights(q: Tensor, k: Tensor, scale: bool = True, masked: float = -torch.inf, dim: int = -1) -> Tensor:
    """Causal attention weights (T, T) of one head from q and k (T, h); the other arguments make mistakes of it."""
    scores = q @ k.T / (q.shape[1] ** 0.5 if scale else 1)
    return scores.masked_fill(torch.ones_like(scores).triu(1) > 0, masked).softmax(dim)


WEIGHT_MISTAKES: dict[Callable[[Tensor, Tensor], Tensor], str] = {
    lambda q, k: attention_weights(q, k, scale=False): "The scores must be divided by the root of h.",
    lambda q, k: attention_weights(q, k, masked=0): (
        "A token still looks ahead: a score of 0 has a share, since e⁰ = 1. Fill with -torch.inf."
    ),
    lambda q, k: (q @ k.T / q.shape[1] ** 0.5).softmax(-1): "Nothing is masked: a token looks at those after it.",
    lambda q, k: (q @ k.T / q.shape[1] ** 0.5).softmax(-1).tril(): (
        "The rows do not sum to 1: you masked after the softmax. Mask the scores, then take the softmax."
    ),
    lambda q, k: attention_weights(q, k, dim=0): "Your softmax runs down the columns. Each row must sum to 1: dim=-1.",
    lambda q, k: attention_weights(k, q): "You have keys @ queries. A row belongs to the query that looks.",
}


def check_attention_weights(function: Callable[[Tensor, Tensor], Tensor | None]) -> Check:
    """Compare `function`(q (T, h), k (T, h)) with causal attention weights (T, T).

    >>> check_attention_weights(attention_weights)
    ✔ Right: your weights equal those of causal attention, at 4 different sizes.
    """
    right = f"Right: your weights equal those of causal attention, at {len(SIZES)} different sizes."
    return judge(enumerate(SIZES), partial(_try_weights, function), right, "return a tensor of weights")


def _try_weights(function: Callable, seed: int, sizes: tuple[int, int, int, int]) -> None:
    num_tokens, h, *_ = sizes
    q, k = torch.randn(2, num_tokens, h, generator=torch.Generator().manual_seed(seed))
    at = f"with {num_tokens} tokens and {h} numbers for a head"
    missing = "my_attention returns nothing. Write it, then run the cell again."
    weights = attempt(lambda: function(q.clone(), k.clone()), f"Your function stopped {at}:", missing)
    expected = attention_weights(q, k)
    if weights.shape != expected.shape:
        raise Problem(f"Not yet: {at}, return weights of the shape (T, T), not {tuple(weights.shape)}.")
    if weights.isnan().any():
        raise Problem("Not yet: a row has no number left: a token must be allowed to look at itself. Mask triu(1).")
    compare(weights, expected, WEIGHT_MISTAKES, (q, k), f"{at}, your weights differ")
