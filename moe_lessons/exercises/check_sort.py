"""An exercise of lesson 02: sort the tokens to their experts."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import Check, Problem, attempt, judge, recognise
from moe_lessons.nn import seeded

SORT_SIZES = ((4, 3, 2), (9, 5, 3), (6, 8, 1), (1, 4, 4))  # tokens T, num_experts E, top_k K


def sort_by_loops(topk_indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """topk_indices (T, K) -> the tokens (T·K,), those of expert 0 first, and how many each expert has (E,)."""
    groups = [[t for t, chosen in enumerate(topk_indices.tolist()) if e in chosen] for e in range(num_experts)]
    return torch.tensor(sum(groups, [])), torch.tensor([len(group) for group in groups])


SORT_MISTAKES: dict[Callable[[Tensor, int], tuple[Tensor, Tensor]], str] = {
    lambda chosen, E: (chosen.flatten().argsort(stable=True), sort_by_loops(chosen, E)[1]): (
        "You return places in the flattened list of assignments, 0 to T·K − 1. Each token stands there K times: "
        "which token does place i belong to?"
    ),
    lambda chosen, E: (chosen.flatten().argsort(stable=True) % len(chosen), sort_by_loops(chosen, E)[1]): (
        "topk_indices.flatten() goes row by row: the K choices of token 0 come first. So place i is token i // K."
    ),
    lambda chosen, E: (chosen.flatten().sort(stable=True).values, sort_by_loops(chosen, E)[1]): (
        "You return the numbers of the experts, sorted. Return the tokens, in that order: argsort instead of sort."
    ),
    lambda chosen, E: (sort_by_loops(chosen, E)[0], chosen.flatten().bincount()): (
        "An expert with a high number and no tokens is missing from your counts: use bincount(minlength=num_experts)."
    ),
    lambda chosen, E: (sort_by_loops(chosen, E)[0], chosen[:, 0].bincount(minlength=E)): (
        "Your counts hold first choices alone. Count all K choices of each token."
    ),
}


def check_sort(function: Callable[[Tensor, int], tuple[Tensor, Tensor] | None]) -> Check:
    """Compare `function`(topk_indices (T, K), num_experts) -> tokens (T·K,), counts (E,) with a loop over all tokens.

    >>> check_sort(sort_by_loops)
    ✔ Right: your groups equal those of the loop over tokens and experts, at 4 different sizes.
    """
    right = f"Right: your groups equal those of the loop over tokens and experts, at {len(SORT_SIZES)} different sizes."
    unreadable = "return two tensors of whole numbers, tokens (T·K,) and counts (E,)"
    return judge(enumerate(SORT_SIZES), partial(_try_sort, function), right, unreadable)


def _try_sort(function: Callable, seed: int, sizes: tuple[int, int, int]) -> None:
    num_tokens, num_experts, top_k = sizes
    at = f"with {num_tokens} tokens, {num_experts} experts and top_k = {top_k}"
    with seeded(seed):
        chosen = torch.rand(num_tokens, num_experts).topk(top_k).indices  # (T, K)
    missing = "my_sort returns nothing. Write it, then run the cell again."
    answer = attempt(lambda: function(chosen.clone(), num_experts), f"Your function stopped {at}:", missing)
    given, expected = _groups(*answer), _groups(*sort_by_loops(chosen, num_experts))
    if given == expected:
        return
    recognise(SORT_MISTAKES, lambda mistake: given == _groups(*mistake(chosen, num_experts)))
    (tokens, counts), (own_tokens, own_counts) = expected, given
    if counts != own_counts:
        raise Problem(f"Not yet: {at}, the experts have {counts} tokens, and your counts are {own_counts}.")
    raise Problem(f"Not yet: {at}, the tokens sorted by expert are {tokens}, yours are {own_tokens}.")


def _groups(tokens: Tensor, counts: Tensor) -> tuple[list[int], list[int]]:
    """The tokens and the counts as lists; within the group of one expert the order of tokens is free."""
    tokens, counts = torch.as_tensor(tokens).tolist(), torch.as_tensor(counts).tolist()
    ends = [sum(counts[: e + 1]) for e in range(len(counts))]
    groups = [sorted(tokens[end - size : end]) for end, size in zip(ends, counts)]
    return sum(groups, []) + tokens[sum(counts) :], counts
