"""Lessons 06 and 06b: who finds a place where experts fill up, in the order of the tokens or the surest first."""

import math
from collections import Counter
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from moe_lessons.exercises.compare import Comparison
from moe_lessons.exercises.exercise import Exercise
from moe_lessons.exercises.lesson_06 import routing_of
from moe_lessons.nn import apply_capacity, expert_capacity
from moe_lessons.nn.dispatch import weight_matrix


def left_by_package(probs: Tensor, chosen: Tensor, factor: float, priority: str) -> Tensor:
    """(T, E): the weights that `apply_capacity` leaves, of the probabilities of the chosen experts (T, K)."""
    capacity = expert_capacity(factor, chosen.shape[1], *probs.shape)
    cut = apply_capacity(routing_of(probs, chosen), capacity, priority)
    return weight_matrix(probs, cut, cut.weight).T


def in_turn(
    chosen: Tensor, capacity: int, turn: Callable = lambda token, choice: (choice, token), anew: bool = False
) -> Tensor:
    """(T, K): which of the assignments `chosen` find a place, when they come by rising turn(token, choice).

    anew: whether there are so many places for each choice.
    """
    kept, taken = torch.zeros_like(chosen, dtype=torch.bool), Counter()
    for token, choice in sorted(product(*map(range, chosen.shape)), key=lambda pair: turn(*pair)):
        place = int(chosen[token, choice]), choice if anew else 0
        taken[place] += 1
        kept[token, choice] = taken[place] <= capacity
    return kept


NO_K = "K is missing in C: there are K · T assignments to place."
ROUNDED = "C is rounded up, not down: ⌈factor · K · T / E⌉, math.ceil."
ONE_MORE = "An expert takes one more than C. There is a place as long as fewer than C are taken."
ANEW = "You counted anew for each choice. First and second choices fill the same C places."

# --- in the order of the tokens ------------------------------------------------------------------------------------


def kept_by_package(topk_indices: Tensor, num_experts: int, factor: float) -> Tensor:
    """(T, K): which assignments `apply_capacity` keeps."""
    even = torch.full((len(topk_indices), num_experts), 1 / num_experts)
    return left_by_package(even, topk_indices, factor, "order").gather(1, topk_indices) > 0


def places_cases() -> list[tuple]:
    """In the third an expert is full exactly."""
    sizes = (13, 5, 2, 1.0), (20, 8, 1, 0.75), (4, 4, 1, 1.0), (30, 6, 3, 1.25)  # T, E, K, factor
    return [((torch.randn(T, E) + torch.linspace(0, 1.5, E)).topk(K).indices, E, f) for T, E, K, f in sizes]


def my_places(topk_indices, num_experts, factor):
    num_tokens, top_k = topk_indices.shape
    capacity = -(-factor * top_k * num_tokens // num_experts)  # rounded up
    taken = [0] * num_experts
    kept = torch.zeros(num_tokens, top_k, dtype=torch.bool)
    for choice in range(top_k):  # all first choices before any second one
        for token in range(num_tokens):
            expert = topk_indices[token, choice]
            kept[token, choice] = taken[expert] < capacity
            taken[expert] += 1
    return kept


def places(idx: Tensor, num_experts: int, factor: float) -> int:
    """C."""
    return math.ceil(factor * idx.numel() / num_experts)


PLACES_MISTAKES = {
    lambda i, e, f: in_turn(i, math.floor(f * i.numel() / e)): ROUNDED,
    lambda i, e, f: in_turn(i, places(i[:, 0], e, f)): NO_K,
    lambda i, e, f: in_turn(i, places(i, e, f) + 1): ONE_MORE,
    lambda i, e, f: in_turn(i, places(i, e, f), lambda token, choice: (token, choice)): (
        "You placed all choices of a token before the next token came. All first choices come before any second one."
    ),
    lambda i, e, f: in_turn(i, places(i, e, f), lambda token, choice: (choice, -token)): (
        "The last tokens took the places. The tokens come in their order: token 0 first."
    ),
    lambda i, e, f: in_turn(i, places(i, e, f), anew=True): ANEW,
    lambda i, e, f: ~in_turn(i, places(i, e, f)): (
        "Turned round: return True for what finds a place, False for what is dropped."
    ),
}

find_places = Exercise(
    "find_places", lesson="06", stars=2, solution=my_places,
    check=Comparison(kept_by_package, "what is kept", places_cases, PLACES_MISTAKES, axes=("token", "choice")),
    hints=(
        "Keep a list of how many places are taken, one number for each expert. The outer loop runs over the choices.",
        "`taken = [0] * num_experts`. An assignment is kept where `taken[expert] < capacity`.",
    ),
)  # fmt: skip

# --- the surest first ----------------------------------------------------------------------------------------------


def surest_by_package(router_probs: Tensor, top_k: int, factor: float, priority: str = "weight") -> Tensor:
    return left_by_package(router_probs, router_probs.topk(top_k).indices, factor, priority)


def surest_cases() -> list[tuple]:
    """In the last an expert is full exactly."""
    sizes = (13, 5, 2, 0.75), (20, 8, 3, 1.0), (7, 4, 1, 1.0), (9, 4, 2, 1.25), (8, 4, 2, 1.0)  # T, E, K, factor
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


def surest_with(
    p: Tensor,
    top_k: int,
    factor: float,
    capacity: Callable = places,
    turn: Callable = lambda best, choice: (choice, -best[0]),
    anew: bool = False,
) -> Tensor:
    """The weights with another capacity(chosen, E, factor), or turn(the K largest probabilities of a token, choice)."""
    best, chosen = p.topk(top_k)
    kept = in_turn(chosen, capacity(chosen, p.shape[1], factor), lambda t, choice: turn(best[t].tolist(), choice), anew)
    return torch.zeros_like(p).scatter(1, chosen, best * kept)


SUREST_MISTAKES = {
    lambda p, k, f: surest_by_package(p, k, f, "order"): (
        "The places go in the order of the tokens. The surest token comes first: sort by the largest probability."
    ),
    lambda p, k, f: surest_with(p, k, f, turn=lambda best, choice: (choice, best[0])): (
        "The least sure token comes first. Sort with descending=True."
    ),
    lambda p, k, f: surest_with(p, k, f, turn=lambda best, choice: -best[choice]): (
        "A sure second choice took the place of an unsure first one. All first choices come before any second one."
    ),
    lambda p, k, f: surest_with(p, k, f, turn=lambda best, choice: (choice, -best[choice])): (
        "You sorted the second choices by their own probability. A token is as sure as its largest one, in every round."
    ),
    lambda p, k, f: surest_with(p, k, f, turn=lambda best, choice: (-best[0], choice)): (
        "You placed all choices of the surest token before the next token came. All first choices come first."
    ),
    lambda p, k, f: surest_with(p, k, f, lambda i, e, f: math.floor(f * i.numel() / e)): ROUNDED,
    lambda p, k, f: surest_with(p, k, f, lambda i, e, f: places(i[:, 0], e, f)): NO_K,
    lambda p, k, f: surest_with(p, k, f, lambda i, e, f: math.floor(f * i.numel() / e) + 1): ONE_MORE,
    lambda p, k, f: surest_with(p, k, f, anew=True): ANEW,
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
    "surest", lesson="06b", stars=3, solution=my_surest,
    check=Comparison(surest_by_package, "the weights", surest_cases, SUREST_MISTAKES, axes=("token", "expert")),
    hints=(
        "Two loops: over the choices, and in each over the tokens in their order. Count how many places are taken.",
        "`router_probs.amax(dim=1).argsort(descending=True)` is the order of the tokens. `-(-a // b)` rounds up.",
    ),
)  # fmt: skip
