"""Lesson 02: the weights of the experts by a mask, the whole block, and the tokens sorted to their experts."""

import torch
from torch import Tensor

from moe_lessons.exercises.compare import Comparison
from moe_lessons.exercises.exercise import Exercise
from moe_lessons.nn import FeedForward, TopKRouter
from moe_lessons.nn.dispatch import weight_matrix

SIZES = ((4, 6, 3, 2), (7, 6, 4, 1), (9, 4, 5, 3), (1, 5, 2, 2))  # tokens T, d_model D, num_experts E, top_k K

# --- weights by a mask ---------------------------------------------------------------------------------------------


def router_weights(router_logits: Tensor, top_k: int) -> Tensor:
    """The weights (T, E) that the package's router gives, 0 where not chosen: softmax, top-k, divided by the sum."""
    routing = TopKRouter(4, router_logits.shape[1], top_k, norm_topk_prob=True).choose(router_logits)
    return weight_matrix(router_logits, routing, routing.weight).T


def top_mask(logits: Tensor, top_k: int) -> Tensor:
    """(T, E): 1 for the K largest logits of each token, else 0."""
    return torch.zeros_like(logits).scatter(1, logits.topk(top_k).indices, 1.0)


def logits_cases() -> list[tuple]:
    return [(torch.randn(T, E), K) for T, _, E, K in SIZES]


def my_weights(router_logits, top_k):
    kept, chosen = router_logits.topk(top_k, dim=-1)  # (T, K)
    masked = torch.full_like(router_logits, -torch.inf).scatter(1, chosen, kept)  # (T, E)
    return masked.softmax(dim=-1)


MASK_MISTAKES = {
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

masked_weights = Exercise(
    "masked_weights", lesson="02", stars=2, solution=my_weights,
    check=Comparison(router_weights, "the weights", logits_cases, MASK_MISTAKES, axes=("token", "expert")),
    hints=(
        "Put −∞ in the place of every score that is not among the K largest of its token, then take the softmax.",
        "`router_logits.topk(top_k)` has `.values` and `.indices`. `torch.full_like(router_logits, -torch.inf)` is a "
        "table of −∞, and its `.scatter(1, indices, values)` puts values back in their places.",
    ),
)  # fmt: skip

# --- the block -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def moe_by_loops(x: Tensor, router_weight: Tensor, experts: list, top_k: int) -> Tensor:
    """The MoE block, one token and one expert at a time: x (T, D) -> y (T, D)."""
    rows = []
    for token in x:  # (D,)
        probs = (router_weight @ token).softmax(dim=0)  # (E,)
        chosen = sorted(range(len(experts)), key=lambda e: -probs[e].item())[:top_k]
        total = sum(probs[e] for e in chosen)
        rows.append(sum(probs[e] / total * experts[e](token) for e in chosen))
    return torch.stack(rows)


def block_cases() -> list[tuple]:
    return [(torch.randn(T, D), torch.randn(E, D), [FeedForward(D, 8) for _ in range(E)], K) for T, D, E, K in SIZES]


def my_moe(x, router_weight, experts, top_k):
    probs = (x @ router_weight.T).softmax(dim=-1)  # (T, E)
    weights, indices = probs.topk(top_k, dim=-1)  # (T, K)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    y = torch.zeros_like(x)
    for token in range(len(x)):
        for choice in range(top_k):
            expert = experts[indices[token, choice]]
            y[token] += weights[token, choice] * expert(x[token])
    return y


BLOCK_MISTAKES = {
    lambda x, w, experts, k: moe_by_loops(x, w, experts, k) * (x @ w.T).softmax(-1).topk(k).values.sum(-1, True): (
        "The right experts ran, but their weights do not sum to 1: divide the K of them by their sum."
    ),
    lambda x, w, experts, k: moe_by_loops(x, w, experts, len(experts)): (
        "Every expert ran. Keep only the top_k experts of each token, then divide by the sum of those."
    ),
    lambda x, w, experts, k: torch.stack([sum(experts[e](t) for e in (w @ t).topk(k).indices) for t in x]): (
        "The right experts ran, but unweighted: multiply each output by its weight before you add."
    ),
    lambda x, w, experts, k: moe_by_loops(x, w, experts, 1): (
        "Only the best expert of each token ran. Add the weighted outputs of all top_k."
    ),
    lambda x, w, experts, k: moe_by_loops(x, -w, experts, k): (
        "The experts of the lowest scores ran. topk gives the largest ones; argsort begins with the smallest."
    ),
}

moe_block = Exercise(
    "moe_block", lesson="02", stars=2, solution=my_moe,
    check=Comparison(moe_by_loops, "the output y", block_cases, BLOCK_MISTAKES, axes=("token", "number")),
    hints=(
        "For each token and each of its K choices: run that expert on the token, multiply by the weight, add to y.",
        "`weights, indices = probs.topk(top_k, dim=-1)`, and then `experts[indices[token, choice]](x[token])`.",
    ),
)  # fmt: skip

# --- tokens sorted to their experts --------------------------------------------------------------------------------


def sort_by_loops(topk_indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """topk_indices (T, K) -> the tokens (T·K,), those of expert 0 first, and how many each expert has (E,)."""
    groups = [[t for t, chosen in enumerate(topk_indices.tolist()) if e in chosen] for e in range(num_experts)]
    return torch.tensor(sum(groups, [])), torch.tensor([len(group) for group in groups])


def choices_cases() -> list[tuple]:
    """The last of them leaves experts without a token."""
    drawn = [(torch.rand(T, E).topk(K).indices, E) for T, E, K in ((4, 3, 2), (9, 5, 3), (1, 4, 4))]
    return [*drawn, (torch.rand(6, 5).topk(1).indices, 8)]


def in_groups(tokens: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Within the group of one expert the order of tokens is free: sort it."""
    if tokens.ndim != 1 or counts.ndim != 1 or (counts < 0).any() or counts.sum() != len(tokens):
        return tokens, counts
    return torch.cat([group.sort().values for group in tokens.split(counts.long().tolist())]), counts


def my_sort(topk_indices, num_experts):
    expert_of = topk_indices.flatten()  # (T * K,)
    tokens = expert_of.argsort(stable=True) // topk_indices.shape[1]
    return tokens, expert_of.bincount(minlength=num_experts)


SORT_MISTAKES = {
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

sort_tokens = Exercise(
    "sort_tokens", lesson="02", stars=3, solution=my_sort,
    check=Comparison(sort_by_loops, ("tokens", "counts"), choices_cases, SORT_MISTAKES, read=in_groups),
    hints=(
        "`topk_indices.flatten()` goes row by row: place i belongs to token `i // K`.",
        "`argsort` says in which order the places must be taken. `bincount(minlength=num_experts)` counts.",
    ),
)  # fmt: skip
