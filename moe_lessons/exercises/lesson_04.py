"""Lesson 04: tokens per second on paper, the experts of a batch, a cached step."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_lessons.exercises.exercise import exercise


def drawn(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def my_token_speed(total, active, bytes_per_weight, bytes_per_second):
    return bytes_per_second / (active * bytes_per_weight)  # the total must only fit into memory


SPEED_MISTAKES = [
    (lambda total, active, size, speed: speed / (total * size), "You read all weights. A token needs the active."),
    (lambda total, active, size, speed: active * size / speed, "These are seconds for a token. Turn it round."),
    (lambda total, active, size, speed: speed / active, "You count weights. How many bytes does each take?"),
    (lambda total, active, size, speed: speed * size / active, "More bytes take longer: divide by them."),
]  # fmt: skip


@exercise(1, my_token_speed, SPEED_MISTAKES, "the number of tokens per second")
def token_speed() -> list[tuple]:
    sizes = (1e6, 3e7, 2e8, 1e9, 7e9, 13e9, 32e9, 37e9)
    return [(a * drawn(2, 9), a, size, drawn(1, 99) * 1e10) for a, size in zip(sizes, (2, 4, 1, 2, 2, 4, 1, 2))]


def my_touched(E, K, B):
    return E * (1 - (1 - K / E) ** B)


TOUCHED_MISTAKES = [
    (lambda E, K, B: B * K, "This is how many choices there are. Two tokens may choose the same expert."),
    (lambda E, K, B: E * (1 - K / E) ** B, "These are the experts that nobody chose. How many are left over?"),
    (lambda E, K, B: 1 - (1 - K / E) ** B, "This is the chance for one expert. How many of all E are it?"),
    (lambda E, K, B: E * (1 - (K / E) ** B), "K/E is the chance to be chosen. You need its opposite."),
    (lambda E, K, B: E * (1 - (1 - 1 / E) ** (B * K)), "The K experts of one token are different ones: use K/E."),
]  # fmt: skip


@exercise(2, my_touched, TOUCHED_MISTAKES, "the number of experts")
def touched_experts() -> list[tuple]:
    fixed = [(8, 2, 5), (8, 2, 1), (8, 8, 3), (64, 8, 4)]
    return fixed + [(E, drawn(1, E), drawn(2, 9)) for E in (3, 5, 8, 16, 24, 32)]


def my_cache_step(q, k, v, keys, values):
    keys = torch.cat([keys, k[:, None]], dim=1)  # (H, S + 1, h)
    values = torch.cat([values, v[:, None]], dim=1)
    scores = (keys @ q[:, :, None])[:, :, 0] / q.shape[1] ** 0.5  # (H, S + 1): q · k / √h
    shares = scores.softmax(dim=1)  # over the tokens; the last one may see all, so there is no mask
    y = (shares[:, :, None] * values).sum(dim=1)  # (H, h)
    return y, keys, values


def reads(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
    def step(q: Tensor, *arguments: Tensor) -> tuple[Tensor, ...]:
        _, keys, values = my_cache_step(q, *arguments)
        return change(q, keys, values), keys, values

    return step


def attend(q: Tensor, keys: Tensor, values: Tensor, scale: float | None = None) -> Tensor:
    """Let q (H, h) read all S keys and values (H, S, h): (H, h). scale: None is 1 / √h."""
    return F.scaled_dot_product_attention(q[:, None], keys, values, scale=scale)[:, 0]


STEP_MISTAKES = [
    (reads(lambda q, K, V: attend(q, K, V, scale=1.0)),
     "The scores are not divided by √h, so the softmax is too sharp."),
    (reads(lambda q, K, V: attend(q, K[:, :-1], V[:, :-1])),
     "The new token reads of the tokens before it alone. It sees itself, too: extend the cache first, then read."),
    (reads(lambda q, K, V: V[:, 0]),
     "The new token sees the first alone: a causal mask has a single query at place 0. At place S it needs none."),
    (lambda q, k, v, K, V: (my_cache_step(q, k, v, K, V)[0], K, V),
     "The output is right, but the cache is as it was: the next token would not find this one. Return the new one."),
    (lambda *a: tuple(part.roll(own, 1) for part, own in zip(my_cache_step(*a), (0, 1, 1))),
     "The new token stands in front of the others. It is the last one: cat([cache, new])."),
]  # fmt: skip


@exercise(2, my_cache_step, STEP_MISTAKES, ("y", "the new keys", "the new values"), axes=("head",))
def cache_step() -> list[tuple]:
    sizes = (2, 4, 6), (3, 1, 6), (4, 7, 2), (2, 0, 4)  # heads H, tokens S, h: the last cache is empty
    return [(*torch.randn(3, H, h), *torch.randn(2, H, S, h)) for H, S, h in sizes]
