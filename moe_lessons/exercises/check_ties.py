"""Lesson 02: exactly K experts for each token, also where scores are equal."""

import torch
from torch import Tensor

from moe_lessons.exercises.compare import Comparison
from moe_lessons.exercises.exercise import Exercise


def mask_by_loops(scores: Tensor, top_k: int) -> Tensor:
    """(T, E): True for the K largest of each row, of equal ones those with the lower number."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for token, row in enumerate(scores.tolist()):
        kept[token, sorted(range(len(row)), key=lambda e: (-row[e], e))[:top_k]] = True
    return kept


def ties_cases() -> list[tuple]:
    """Scores with many equals. In the last case they are nearly equal, all equal, and partly forbidden (−inf)."""
    sizes = (7, 6, 2), (9, 16, 3), (1, 5, 4), (6, 3, 1)
    close = torch.tensor([0.5, 0.5, 0.5000002, 0.5, 0.25])  # the third is a little larger
    rows = torch.stack([close, torch.zeros(5), torch.tensor([-torch.inf, 1, -torch.inf, 1, 1])])
    return [(torch.randint(3, (T, E)).float(), K) for T, E, K in sizes] + [(rows, 2)]


def my_mask(scores, top_k):
    order = scores.argsort(dim=1, descending=True, stable=True)  # (T, E); stable: equal ones keep their order
    kept = torch.zeros(scores.shape, dtype=torch.bool)
    return kept.scatter(1, order[:, :top_k], True)


def first_of(order: Tensor, scores: Tensor, top_k: int) -> Tensor:
    """(T, E): True for the first K experts of each row of `order`."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, order[:, :top_k], True)


MISTAKES = {
    lambda s, k: s >= s.topk(k).values[:, -1:]: (
        "You keep all that are as large as the K-th score. Where several experts have that score, these are more than "
        "K, and the token costs more than it should."
    ),
    lambda s, k: s > s.topk(k).values[:, -1:]: (
        "You keep what is larger than the K-th score, so the K-th itself is missing, and all that equal it."
    ),
    lambda s, k: first_of(s.topk(k).indices, s, k): (
        "Exactly K, but topk promises no order among equals: another machine may choose other experts. Sort with "
        "stable=True."
    ),
    lambda s, k: first_of(s.argsort(dim=1, stable=True).flip(1), s, k): (
        "Of equal scores you take the last ones. To turn a sorted row round turns the equals round, too: sort with "
        "descending=True."
    ),
    lambda s, k: first_of((s.double() - 1e-6 * torch.arange(s.shape[1])).argsort(dim=1, descending=True), s, k): (
        "You make equal scores differ by a little. Then two scores that differ by less than that change places."
    ),
    lambda s, k: s.argsort(dim=1, descending=True, stable=True) < k: (
        "Place i of an argsort holds the expert that comes i-th, not the place of expert i. Put True where its first K "
        "numbers point: scatter."
    ),
    lambda s, k: first_of(s.argsort(dim=1, stable=True), s, k): (
        "You keep the K smallest scores. Sort with descending=True."
    ),
}

ties = Exercise(
    "ties",
    lesson="02",
    stars=2,
    check=Comparison(mask_by_loops, "what is kept", ties_cases, MISTAKES, axes=("token", "expert")),
    hints=(
        "A comparison with the K-th largest score cannot tell equals apart. Their order can: which experts come first?",
        "`scores.argsort(dim=1, descending=True, stable=True)` puts the best expert first, and equals in their order. "
        "`.scatter(1, indices, True)` puts True where the first K of them point.",
    ),
    solution=my_mask,
)
