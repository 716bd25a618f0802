"""Lesson 07: one step of attention with a KV cache."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_lessons.exercises.compare import Comparison
from moe_lessons.exercises.exercise import Exercise

Parts = tuple[Tensor, Tensor, Tensor]


def extended(cache: Tensor, new: Tensor) -> Tensor:
    """(H, S, h), (H, h) -> (H, S + 1, h)."""
    return torch.cat([cache, new[:, None]], dim=1)


def step_by_full_attention(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Parts:
    """All S + 1 tokens at once behind a causal mask, as in training: the last row is the new token's."""
    keys, values = extended(keys, k), extended(values, v)
    queries = torch.cat([torch.zeros_like(keys[:, 1:]), q[:, None]], dim=1)  # those of the others do not matter
    y = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)  # (H, S + 1, h)
    return y[:, -1], keys, values


def step_cases() -> list[tuple]:
    sizes = (2, 4, 6), (3, 1, 6), (4, 7, 2), (2, 0, 4)  # heads H, tokens S, h: the last cache is empty
    return [(*torch.randn(3, H, h), *torch.randn(2, H, S, h)) for H, S, h in sizes]


def my_cache_step(q, k, v, keys, values):
    keys = torch.cat([keys, k[:, None]], dim=1)  # (H, S + 1, h)
    values = torch.cat([values, v[:, None]], dim=1)
    scores = (keys @ q[:, :, None])[:, :, 0] / q.shape[1] ** 0.5  # (H, S + 1): q · k / √h
    shares = scores.softmax(dim=1)  # over the tokens; the last one may see all, so there is no mask
    y = (shares[:, :, None] * values).sum(dim=1)  # (H, h)
    return y, keys, values


def reads(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Parts]:
    """A step with the right cache and another y: change(q, the new keys, the new values)."""

    def step(q: Tensor, *arguments: Tensor) -> Parts:
        _, keys, values = step_by_full_attention(q, *arguments)
        return change(q, keys, values), keys, values

    return step


def attend(q: Tensor, keys: Tensor, values: Tensor, scale: float | None = None) -> Tensor:
    """What q (H, h) reads of all S keys and values (H, S, h): (H, h). scale: None is 1 / √h."""
    return F.scaled_dot_product_attention(q[:, None], keys, values, scale=scale)[:, 0]


MISTAKES = {
    reads(lambda q, K, V: attend(q, K, V, scale=1.0)): "The scores are not divided by √h, so the softmax is too sharp.",
    reads(lambda q, K, V: attend(q, K, V, scale=1 / q.shape[1])): (
        "You divided the scores by h. Divide them by its square root."
    ),
    reads(lambda q, K, V: attend(q, K, V, scale=K.shape[1] ** -0.5)): (
        "You divided the scores by the root of the number of tokens. h is the last axis of q."
    ),
    reads(lambda q, K, V: attend(q, K[:, :-1], V[:, :-1])): (
        "The new token reads of the tokens before it alone. It sees itself, too: extend the cache first, then read."
    ),
    reads(lambda q, K, V: V[:, 0]): (
        "The new token sees the first one alone. A causal mask puts a single query at place 0, and this one stands at "
        "place S. It may see all: no mask."
    ),
    reads(lambda q, K, V: ((K @ q[:, :, None]) / q.shape[1] ** 0.5).softmax(dim=0).mul(V).sum(dim=1)): (
        "Your softmax runs over the heads. Each head shares its attention out over the tokens."
    ),
    reads(lambda q, K, V: attend(q, V, K)): "Keys and values have changed places: q meets keys, and reads values.",
    lambda q, k, v, K, V: (step_by_full_attention(q, k, v, K, V)[0], K, V): (
        "The output is right, but the cache is as it was: the next token would not find this one. Return the new one."
    ),
    lambda q, k, v, K, V: step_by_full_attention(q, q, v, K, V): (
        "You put q into the cache. A query is used once, by its own token: keep k and v."
    ),
    lambda q, k, v, K, V: (
        step_by_full_attention(q, k, v, K, V)[0],
        torch.cat([k[:, None], K], dim=1),
        torch.cat([v[:, None], V], dim=1),
    ): "The new token stands in front of the others. It is the last one: cat([cache, new]).",
}

cache_step = Exercise(
    "cache_step",
    lesson="07",
    stars=2,
    check=Comparison(
        step_by_full_attention, ("y", "the new keys", "the new values"), step_cases, MISTAKES, axes=("head",)
    ),
    hints=(
        "First the cache: k and v of the new token come behind the others. Then attention, for a single row: which of "
        "the tokens may the last one see?",
        "`torch.cat([keys, k[:, None]], dim=1)` is the longer cache. `(keys @ q[:, :, None])[:, :, 0]` has the scores "
        "(H, S + 1).",
    ),
    solution=my_cache_step,
)
