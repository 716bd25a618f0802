"""The exercise of lesson 00: from the router's probabilities of one token to the weights of its experts, in plain
Python."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from moe_lessons.exercises.exercise import SIZES, Check, Problem, attempt, judge


def top_k_weights(probs: Sequence[float], k: int) -> list[float]:
    """For each expert its weight: its probability divided by the sum of the k largest, or 0 if it is not of these."""
    chosen = sorted(probs)[-k:]
    return [p / sum(chosen) if p in chosen else 0.0 for p in probs]


# what is often written instead, and what to say about it
MISTAKES: dict[Callable[[Sequence[float], int], Sequence[float]], str] = {
    lambda probs, k: [p if w else 0.0 for p, w in zip(probs, top_k_weights(probs, k))]: (
        "The right experts are chosen, but their weights do not sum to 1. Divide each by the sum of the chosen ones."
    ),
    lambda probs, k: probs: "Every expert has a weight. All but the k largest must have 0.",
    lambda probs, k: [1 / k if w else 0.0 for w in top_k_weights(probs, k)]: (
        "The right experts are chosen, but all have the same weight. The weights keep the ratio of the probabilities."
    ),
    lambda probs, k: top_k_weights([1 - p for p in probs], k): "You chose the k experts of the smallest probabilities.",
    lambda probs, k: [w for w in top_k_weights(probs, k) if w]: (
        "You return the chosen experts only. Return a number for each expert, 0 for those that do not work."
    ),
}


def check_weights(function: Callable[[list[float], int], Any]) -> Check:
    """Compare `function`(probs, k) -> weights with `top_k_weights`, on probabilities drawn at random.

    >>> check_weights(top_k_weights)
    ✔ Right: your weights are those of a top-k router, for 4 tokens drawn at random.
    """
    right = f"Right: your weights are those of a top-k router, for {len(SIZES)} tokens drawn at random."
    unreadable = "your answer must be a list of numbers, one for each expert"
    return judge(enumerate(SIZES), partial(_try_weights, function), right, unreadable)


def _try_weights(function: Callable, seed: int, sizes: tuple[int, int, int, int]) -> None:
    _, _, num_experts, k = sizes
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(num_experts, generator=generator).softmax(dim=0).tolist()
    missing = "my_weights returns nothing. Write it, then run the cell again."
    at = f"with the probabilities {[round(p, 2) for p in probs]} and k = {k}"
    given = attempt(lambda: function(probs.copy(), k), f"Your function stopped {at}:", missing)
    given, expected = [float(weight) for weight in given], top_k_weights(probs, k)
    if agree(given, expected):
        return
    advice = [text for mistake, text in MISTAKES.items() if agree(given, mistake(probs, k))]
    shown, wanted = ([round(weight, 2) for weight in weights] for weights in (given, expected))
    raise Problem(" ".join([f"Not yet: {at} the weights are {wanted}, yours are {shown}.", *advice[:1]]))


def agree(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether the numbers are equal but for rounding."""
    return len(a) == len(b) and all(abs(p - q) < 1e-5 for p, q in zip(a, b))
