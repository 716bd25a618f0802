"""An exercise of lesson 02: the weights of the experts by a mask and a softmax."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import SIZES, Check, Problem, attempt, compare, judge, same
from moe_lessons.nn import TopKRouter, seeded
from moe_lessons.nn.dispatch import weight_matrix


def top_mask(logits: Tensor, top_k: int) -> Tensor:
    """(T, E): 1 for the K largest logits of each token, else 0."""
    return torch.zeros_like(logits).scatter(1, logits.topk(top_k).indices, 1.0)


# what is often written instead: weights (T, E) from the logits (T, E), and what to say about it
MASK_MISTAKES: dict[Callable[[Tensor, int], Tensor], str] = {
    lambda logits, k: (logits * top_mask(logits, k)).softmax(dim=-1): (
        "The experts that were not chosen still have a weight: a score of 0 has a share, since e⁰ = 1. Use −inf."
    ),
    lambda logits, k: logits.softmax(dim=-1) * top_mask(logits, k): (
        "The weights of a token do not sum to 1: you set them to zero after the softmax. Mask first, then the softmax."
    ),
    lambda logits, k: logits.softmax(dim=-1): "Every expert has a weight. Mask all but the top_k scores of each token.",
    lambda logits, k: logits.masked_fill(top_mask(logits, k) == 0, -torch.inf).softmax(dim=0).nan_to_num(0): (
        "Your softmax runs down a column, over the tokens. Let it run along a row, over the experts: dim=-1."
    ),
    lambda logits, k: logits.masked_fill(top_mask(logits, k) > 0, -torch.inf).softmax(dim=-1): (
        "You masked the chosen experts and kept the others. Turn the mask round."
    ),
}


def check_mask(function: Callable[[Tensor, int], Tensor | None]) -> Check:
    """Compare `function`(logits (T, E), top_k) -> weights (T, E), 0 where not chosen, with the package's router."""
    right = f"Right: your weights equal softmax, top-k and division by the sum, at {len(SIZES)} different sizes."
    return judge(enumerate(SIZES), partial(_try_mask, function), right)


@torch.no_grad()
def _try_mask(function: Callable, seed: int, sizes: tuple[int, int, int, int]) -> None:
    num_tokens, _, num_experts, top_k = sizes
    at = f"with {num_tokens} tokens, {num_experts} experts and top_k = {top_k}"
    with seeded(seed):
        logits = torch.randn(num_tokens, num_experts)
        routing = TopKRouter(4, num_experts, top_k, norm_topk_prob=True).choose(logits)
    expected, given = weight_matrix(logits, routing, routing.weight).T, logits.clone()  # (T, E)
    missing = "my_weights returns nothing. Write it, then run the cell again."
    weights = attempt(lambda: function(logits, top_k), f"Your function stopped {at}:", missing)
    if not isinstance(weights, Tensor) or weights.shape != expected.shape:
        shape = tuple(getattr(weights, "shape", ())) or type(weights).__name__
        raise Problem(f"Not yet: {at}, return weights of the shape (T, E) = {tuple(expected.shape)}, not {shape}.")
    if not same(logits, given):
        raise Problem("Not yet: your function changed logits. Write into a new tensor, as masked_fill does.")
    compare(weights, expected, MASK_MISTAKES, (logits, top_k), f"{at}, your weights differ from the router's")
