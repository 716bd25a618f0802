"""Lesson 06b: a capacity whose places go to the tokens of which the router is surest."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from moe_lessons.exercises.compare import Comparison
from moe_lessons.exercises.exercise import Exercise
from moe_lessons.nn import TopKRouter, apply_capacity, expert_capacity
from moe_lessons.nn.dispatch import weight_matrix


@torch.no_grad()
def surest_by_package(router_probs: Tensor, top_k: int, factor: float, priority: str = "weight") -> Tensor:
    """(T, E): the weights that `apply_capacity` leaves."""
    T, E = router_probs.shape
    routing = TopKRouter(4, E, top_k, norm_topk_prob=False).choose(router_probs.log())
    cut = apply_capacity(routing, expert_capacity(factor, top_k, T, E), priority)
    return weight_matrix(router_probs, cut, cut.weight).T


def surest_cases() -> list[tuple]:
    sizes = (13, 5, 2, 0.75), (20, 8, 3, 1.0), (7, 4, 1, 1.0), (9, 4, 2, 1.25)  # T, E, K, factor
    return [((torch.randn(T, E) + torch.linspace(0, 1.5, E)).softmax(1), K, factor) for T, E, K, factor in sizes]


def my_surest(router_probs, top_k, factor):
    num_tokens, num_experts = router_probs.shape
    capacity = -(-factor * top_k * num_tokens // num_experts)  # rounded up
    chosen = router_probs.topk(top_k, dim=1).indices  # (T, K)
    weights, taken = torch.zeros_like(router_probs), [0] * num_experts
    for choice in range(top_k):  # all first choices before any second one
        for token in router_probs.amax(dim=1).argsort(descending=True):  # the surest first
            expert = chosen[token, choice]
            if taken[expert] < capacity:
                weights[token, expert] = router_probs[token, expert]
            taken[expert] += 1
    return weights


def places(p: Tensor, top_k: int, factor: float) -> int:
    return math.ceil(factor * top_k * len(p) / p.shape[1])


def in_turn(p: Tensor, top_k: int, capacity: int, turn: Callable, desk: Callable = lambda e, c: e) -> Tensor:
    """(T, E): who finds one of the `capacity` places at its desk(expert, choice), by rising turn(token, choice)."""
    kept, taken, chosen = torch.zeros_like(p), {}, p.topk(top_k).indices.tolist()
    for t, c in sorted(((t, c) for t in range(len(p)) for c in range(top_k)), key=lambda pair: turn(*pair)):
        e = chosen[t][c]
        taken[desk(e, c)] = taken.get(desk(e, c), 0) + 1
        kept[t, e] = p[t, e] * (taken[desk(e, c)] <= capacity)
    return kept


def by_sureness(p: Tensor) -> Callable:
    return lambda token, choice: (choice, -p[token].max().item())


MISTAKES = {
    lambda p, k, f: surest_by_package(p, k, f, "order"): (
        "The places go in the order of the tokens. The surest token comes first: sort by the largest probability."
    ),
    lambda p, k, f: in_turn(p, k, places(p, k, f), lambda t, c: (c, p[t].max().item())): (
        "The least sure token comes first. Sort with descending=True."
    ),
    lambda p, k, f: in_turn(p, k, places(p, k, f), lambda t, c: -p[t].topk(k).values[c].item()): (
        "A sure second choice took the place of an unsure first one. All first choices come before any second one."
    ),
    lambda p, k, f: in_turn(p, k, places(p, k, f), lambda t, c: (c, -p[t].topk(k).values[c].item())): (
        "You sorted the second choices by their own probability. A token is as sure as its largest one, in every round."
    ),
    lambda p, k, f: in_turn(p, k, places(p, k, f), lambda t, c: (-p[t].max().item(), c)): (
        "You placed all choices of the surest token before the next token came. All first choices come first."
    ),
    lambda p, k, f: in_turn(p, k, math.floor(f * k * len(p) / p.shape[1]), by_sureness(p)): (
        "C is rounded up, not down: ⌈factor · K · T / E⌉."
    ),
    lambda p, k, f: in_turn(p, k, places(p, 1, f), by_sureness(p)): (
        "K is missing in C: there are K · T assignments to place."
    ),
    lambda p, k, f: in_turn(p, k, places(p, k, f), by_sureness(p), desk=lambda e, c: (e, c)): (
        "You counted anew for each choice. First and second choices fill the same C places."
    ),
    lambda p, k, f: (kept := surest_by_package(p, k, f)) / kept.sum(1, keepdim=True).clamp(min=1e-9): (
        "The right places, but you divided by what is left. Here a weight stays as it was, and a token that lost an "
        "expert has a smaller output."
    ),
    lambda p, k, f: surest_by_package(p, k, p.shape[1]) - surest_by_package(p, k, f): (
        "Turned round: you return what is dropped. Return what has a place."
    ),
    lambda p, k, f: surest_by_package(p, k, p.shape[1]): "Nothing was dropped. Each expert has C places and no more.",
}

surest = Exercise(
    "surest",
    lesson="06b",
    stars=3,
    check=Comparison(surest_by_package, "the weights", surest_cases, MISTAKES, axes=("token", "expert")),
    hints=(
        "Two loops: over the choices, and in each over the tokens in their order. Count how many places are taken.",
        "`router_probs.amax(dim=1).argsort(descending=True)` is the order of the tokens. `-(-a // b)` rounds up.",
    ),
    solution=my_surest,
)
