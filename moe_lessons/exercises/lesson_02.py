"""Lesson 02: weights by a mask, the whole block, the tokens sorted to their experts, and equal scores."""

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise
from moe_lessons.nn import FeedForward

SIZES = ((4, 6, 3, 2), (7, 6, 4, 1), (9, 4, 5, 3), (1, 5, 2, 2))  # tokens T, d_model D, num_experts E, top_k K


def marked(indices: Tensor, table: Tensor) -> Tensor:
    """Mark the indices (…, K) of each row of a table (…, E)."""
    return torch.zeros_like(table, dtype=torch.bool).scatter(-1, indices, True)


def top_mask(scores: Tensor, top_k: int) -> Tensor:
    return marked(scores.topk(top_k).indices, scores)


def my_weights(router_logits, top_k):
    kept, chosen = router_logits.topk(top_k, dim=-1)  # (T, K)
    masked = torch.full_like(router_logits, -torch.inf).scatter(1, chosen, kept)  # (T, E)
    return masked.softmax(dim=-1)


MASK_MISTAKES = {
    lambda logits, k: (logits * top_mask(logits, k)).softmax(dim=-1):
        "The experts that were not chosen still have a weight: a score of 0 has a share, since e⁰ = 1. Use −inf.",
    lambda logits, k: logits.softmax(dim=-1) * top_mask(logits, k):
        "The weights of a token do not sum to 1: you set them to zero after the softmax. Mask first, then the softmax.",
    lambda logits, k: logits.softmax(dim=-1): "Every expert has a weight. Mask all but the top_k scores of each token.",
    lambda logits, k: logits.masked_fill(~top_mask(logits, k), -torch.inf).softmax(dim=0).nan_to_num(0):
        "Your softmax runs down a column, over the tokens. Let it run along a row, over the experts: dim=-1.",
    lambda logits, k: logits.masked_fill(top_mask(logits, k), -torch.inf).softmax(dim=-1):
        "You masked the chosen experts and kept the others. Turn the mask round.",
}  # fmt: skip


@exercise(2, my_weights, MASK_MISTAKES, "the weights", axes=("token", "expert"))
def masked_weights() -> list[tuple]:
    return [(torch.randn(T, E), K) for T, _, E, K in SIZES]


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


def last_of(logits: Tensor, experts: list, top_k: int, token: Tensor) -> Tensor:
    best, chosen = logits.topk(top_k)
    return best.softmax(dim=0)[-1] * experts[chosen[-1]](token)


BLOCK_MISTAKES = {
    lambda x, w, experts, k: my_moe(x, w, experts, k) * (x @ w.T).softmax(-1).topk(k).values.sum(-1, True):
        "The right experts ran, but their weights do not sum to 1: divide the K of them by their sum.",
    lambda x, w, experts, k: my_moe(x, w, experts, len(experts)):
        "Every expert ran. Keep only the top_k experts of each token, then divide by the sum of those.",
    lambda x, w, experts, k: torch.stack([sum(experts[e](t) for e in (w @ t).topk(k).indices) for t in x]):
        "The right experts ran, but unweighted: multiply each output by its weight before you add.",
    lambda x, w, experts, k: my_moe(x, w, experts, 1):
        "Only the best expert of each token ran. Add the weighted outputs of all top_k.",
    lambda x, w, experts, k: torch.stack([last_of(w @ t, experts, k, t) for t in x]):
        "Only the last choice of each token is left: add to y[token], +=, instead of writing over it.",
    lambda x, w, experts, k: my_moe(x, -w, experts, k):
        "The experts of the lowest scores ran. topk gives the largest ones; argsort begins with the smallest.",
}  # fmt: skip


@exercise(2, my_moe, BLOCK_MISTAKES, "the output y", axes=("token", "number"))
def moe_block() -> list[tuple]:
    return [(torch.randn(T, D), torch.randn(E, D), [FeedForward(D, 8) for _ in range(E)], K) for T, D, E, K in SIZES]


def in_groups(tokens: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the tokens within the group of one expert, where their order is free."""
    if tokens.ndim != 1 or counts.ndim != 1 or (counts < 0).any() or counts.sum() != len(tokens):
        return tokens, counts
    return torch.cat([group.sort().values for group in tokens.split(counts.long().tolist())]), counts


def my_sort(topk_indices, num_experts):
    expert_of = topk_indices.flatten()  # (T * K,)
    tokens = expert_of.argsort(stable=True) // topk_indices.shape[1]
    return tokens, expert_of.bincount(minlength=num_experts)


SORT_MISTAKES = {
    lambda chosen, E: (chosen.flatten().argsort(stable=True), my_sort(chosen, E)[1]):
        "You return places in the flattened list of assignments, 0 to T·K − 1. Each token stands there K times: "
        "which token does place i belong to?",
    lambda chosen, E: (chosen.flatten().argsort(stable=True) % len(chosen), my_sort(chosen, E)[1]):
        "topk_indices.flatten() goes row by row: the K choices of token 0 come first. So place i is token i // K.",
    lambda chosen, E: (chosen.flatten().sort(stable=True).values, my_sort(chosen, E)[1]):
        "You return the numbers of the experts, sorted. Return the tokens, in that order: argsort instead of sort.",
    lambda chosen, E: (my_sort(chosen, E)[0], chosen.flatten().bincount()):
        "An expert with a high number and no tokens is missing from your counts: use bincount(minlength=num_experts).",
    lambda chosen, E: (my_sort(chosen, E)[0], chosen[:, 0].bincount(minlength=E)):
        "Your counts hold first choices alone. Count all K choices of each token.",
}  # fmt: skip


@exercise(3, my_sort, SORT_MISTAKES, ("tokens", "counts"), read=in_groups)
def sort_tokens() -> list[tuple]:
    # The last of them leaves experts without a token.
    drawn = [(torch.rand(T, E).topk(K).indices, E) for T, E, K in ((4, 3, 2), (9, 5, 3), (1, 4, 4))]
    return [*drawn, (torch.rand(6, 5).topk(1).indices, 8)]


def my_mask(scores, top_k):
    order = scores.argsort(dim=1, descending=True, stable=True)  # (T, E); stable: equal ones keep their order
    kept = torch.zeros(scores.shape, dtype=torch.bool)
    return kept.scatter(1, order[:, :top_k], True)


TIES_MISTAKES = {
    lambda s, k: s >= s.topk(k).values[:, -1:]:
        "You keep all that reach the K-th score. Where several experts have it, these are more than K, and cost more.",
    lambda s, k: s > s.topk(k).values[:, -1:]:
        "You keep what is larger than the K-th score, so the K-th itself is missing, and all that equal it.",
    top_mask:
        "Exactly K, but topk promises no order among equals: other machines may differ. Sort with stable=True.",
    lambda s, k: marked(s.argsort(dim=1, stable=True).flip(1)[:, :k], s):
        "Of equal scores you take the last: to turn a sorted row turns its equals, too. Sort with descending=True.",
    lambda s, k: top_mask(s.double() - 1e-6 * torch.arange(s.shape[1]), k):
        "You make equal scores differ by a little. Then two scores that differ by less than that change places.",
    lambda s, k: s.argsort(dim=1, descending=True, stable=True) < k:
        "Place i of an argsort holds the expert that comes i-th, not the place of expert i. Put True where its first K "
        "numbers point: scatter.",
    lambda s, k: marked(s.argsort(stable=True)[:, :k], s): "You keep the K smallest scores. Sort with descending=True.",
}  # fmt: skip


@exercise(2, my_mask, TIES_MISTAKES, "what is kept", axes=("token", "expert"))
def ties() -> list[tuple]:
    # Scores with many equals. In the last case they are nearly equal, all equal, and partly forbidden (−inf).
    sizes = (7, 6, 2), (9, 16, 3), (1, 5, 4), (6, 3, 1)
    close = torch.tensor([0.5, 0.5, 0.5000002, 0.5, 0.25])  # the third is a little larger
    rows = torch.stack([close, torch.zeros(5), torch.tensor([-torch.inf, 1, -torch.inf, 1, 1])])
    return [(torch.randint(3, (T, E)).float(), K) for T, E, K in sizes] + [(rows, 2)]
