"""The exercises of lesson 04: mutual information from counts, and how often two draws have the same expert."""

from collections.abc import Callable

import torch
from torch import Tensor

from moe_lessons.exercises.check_values import Mistakes, check_values
from moe_lessons.exercises.exercise import Check


def terms(counts: Tensor) -> Tensor:
    """(E, B): p log2(p / (p(e) p(b))), nan where p is 0."""
    p = counts / counts.sum()
    return p * (p / (p.sum(dim=1, keepdim=True) * p.sum(dim=0))).log2()


def information_of(counts: Tensor) -> Tensor:
    """counts (E, B), the tokens of each expert and byte -> I(expert; byte) in bits: `analysis.mutual_information`."""
    return terms(counts).nansum()


INFORMATION_MISTAKES: Mistakes = {
    lambda c: terms(c).sum(): "0 · log2(0) is nan here, and should count as 0. Leave out the pairs that never occur.",
    lambda c: information_of(c) * torch.tensor(2.0).log(): "This is in nats. Bits need the logarithm to base 2: log2.",
    lambda c: information_of(c) * c.sum(): "This is for all tokens together. Divide the counts by their sum first.",
    lambda c: torch.special.entr(c / c.sum()).sum() / torch.tensor(2.0).log(): (
        "This is the entropy of the pairs: it is large for independent labels too. Divide p(e, b) by p(e) · p(b)."
    ),
    lambda c: torch.special.entr(c.sum(dim=1) / c.sum()).sum() / torch.tensor(2.0).log(): (
        "This is the entropy of the experts, all that could be told. The bytes must come in."
    ),
    lambda c: -information_of(c): "The sign is wrong: p(e, b) stands above, p(e) · p(b) below.",
}  # fmt: skip


def check_information(function: Callable[[Tensor], float | None]) -> Check:
    """Compare `function`(counts (E, B)) -> bits with the formula.

    >>> check_information(information_of)
    ✔ Right: the mutual information agrees in all 5 cases.
    """
    made = torch.Generator().manual_seed(0)
    cases = [torch.randint(low, 9, (E, 6), generator=made) for low, E in ((1, 2), (0, 2), (0, 4))]
    cases = [(case.float(),) for case in (*cases, torch.tensor([[6, 2], [3, 1]]), torch.tensor([[2, 0], [0, 2]]))]
    return check_values(function, information_of, cases, INFORMATION_MISTAKES, "the mutual information")


CHANCE_MISTAKES: Mistakes = {
    lambda experts: 1 / len(set(experts)): "This holds where all experts are used alike. What if one has most of them?",
    lambda experts: sum(a == b for a, b in zip(experts, experts[1:])) / (len(experts) - 1): (
        "This counts neighbours, and so the answer that we want to compare with chance. Draw any two tokens."
    ),
    lambda experts: max(map(experts.count, experts)) / len(experts): (
        "This is the share of the busiest expert. Sum over all experts: both draws may be any of them."
    ),
    lambda experts: (sum(map(experts.count, experts)) / len(experts) - 1) / (len(experts) - 1): (
        "This is without replacement: the second draw may be the first token again."
    ),
}  # fmt: skip


def check_chance(function: Callable[[list[int]], float | None]) -> Check:
    """Compare `function`(experts), one for each token, with a count of all pairs of tokens."""

    def all_pairs(experts: list[int]) -> float:
        return sum(a == b for a in experts for b in experts) / len(experts) ** 2

    made = torch.Generator().manual_seed(0)
    cases = [([0, 0, 0, 0, 1],), *((torch.randint(0, high, (12,), generator=made).tolist(),) for high in (2, 4, 8))]
    return check_values(function, all_pairs, cases, CHANCE_MISTAKES, "the chance")
