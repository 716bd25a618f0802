"""Lesson 04: mutual information from counts, and how often two draws have the same expert."""

import torch
from torch import Tensor

from moe_lessons.analysis import mutual_information
from moe_lessons.exercises.compare import Comparison
from moe_lessons.exercises.exercise import Exercise

LOG2 = torch.tensor(2.0).log()

# --- information ---------------------------------------------------------------------------------------------------


def information_of(counts: Tensor) -> float:
    """counts (E, B), the tokens of each expert and byte -> I(expert; byte) in bits, as the package measures it."""
    tokens = counts.nonzero().repeat_interleave(counts[counts > 0].long(), dim=0)  # (T, 2): an expert and a byte
    return mutual_information(*tokens.T, corrected=False)


def terms(counts: Tensor) -> Tensor:
    """(E, B): p log2(p / (p(e) p(b))), nan where p is 0."""
    p = counts / counts.sum()
    return p * (p / (p.sum(dim=1, keepdim=True) * p.sum(dim=0))).log2()


def counts_cases() -> list[tuple]:
    drawn = [torch.randint(low, 9, (E, 6)) for low, E in ((1, 2), (0, 2), (0, 4))]
    return [(counts.float(),) for counts in (*drawn, torch.tensor([[6, 2], [3, 1]]), torch.tensor([[2, 0], [0, 2]]))]


def my_information(counts):
    p = counts / counts.sum()  # (E, B)
    independent = p.sum(dim=1, keepdim=True) * p.sum(dim=0, keepdim=True)  # (E, B)
    seen = p > 0
    return (p[seen] * (p[seen] / independent[seen]).log2()).sum()


INFORMATION_MISTAKES = {
    lambda c: terms(c).sum(): "0 · log2(0) is nan here, and should count as 0. Leave out the pairs that never occur.",
    lambda c: my_information(c) * LOG2: "This is in nats. Bits need the logarithm to base 2: log2.",
    lambda c: my_information(c) * c.sum(): "This is for all tokens together. Divide the counts by their sum first.",
    lambda c: torch.special.entr(c / c.sum()).sum() / LOG2: (
        "This is the entropy of the pairs: it is large for independent labels too. Divide p(e, b) by p(e) · p(b)."
    ),
    lambda c: torch.special.entr(c.sum(dim=1) / c.sum()).sum() / LOG2: (
        "This is the entropy of the experts, all that could be told. The bytes must come in."
    ),
    lambda c: -my_information(c): "The sign is wrong: p(e, b) stands above, p(e) · p(b) below.",
}

information_bits = Exercise(
    "information_bits", lesson="04", stars=2, solution=my_information,
    check=Comparison(information_of, "the information in bits", counts_cases, INFORMATION_MISTAKES),
    hints=(
        "p(e) is the sum of a row of p, p(b) the sum of a column. With `keepdim=True` their product is a table again.",
        "`seen = p > 0` picks the pairs that occur: `p[seen]`.",
    ),
)  # fmt: skip

# --- chance --------------------------------------------------------------------------------------------------------


def all_pairs(experts: list[int]) -> float:
    return sum(a == b for a in experts for b in experts) / len(experts) ** 2


def experts_cases() -> list[tuple]:
    return [([0, 0, 0, 0, 1],), *((torch.randint(0, high, (12,)).tolist(),) for high in (2, 4, 8))]


def my_chance(experts):
    shares = [experts.count(e) / len(experts) for e in set(experts)]
    return sum(p * p for p in shares)  # the first draw is e with the share p(e), and so is the second


CHANCE_MISTAKES = {
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
}

chance = Exercise(
    "chance", lesson="04", stars=1, solution=my_chance,
    check=Comparison(all_pairs, "the chance", experts_cases, CHANCE_MISTAKES),
    hints=(
        "How often is the first draw expert e? And how often is the second one e too?",
        "`experts.count(e) / len(experts)` is the share of e. Square it, and sum over `set(experts)`.",
    ),
)  # fmt: skip
