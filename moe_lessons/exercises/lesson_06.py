"""Lesson 06: what there is to know, what an expert tells of it, and how often two draws have the same expert."""

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise


def my_entropy(counts):
    p = counts[counts > 0] / counts.sum()  # a label that never occurs adds nothing
    return -(p * p.log2()).sum()


LOG2 = torch.tensor(2.0).log()
ENTROPY_MISTAKES = [
    (lambda c: -(c / c.sum() * (c / c.sum()).log2()).sum(),
     "0 · log2(0) is nan here, and should count as 0. Leave out the labels that never occur."),
    (lambda c: my_entropy(c) * LOG2, "This is in nats. Bits need the logarithm to base 2: log2."),
    (lambda c: (c > 0).sum().log2(), "This would be right if all labels were equally frequent. Use their shares."),
    (lambda c: -(c[c > 0] / c.sum()).log2().sum(),
     "You added the logarithms as they are. Each counts with its share p."),
    (lambda c: -my_entropy(c), "The sign is wrong: the logarithm of a share is negative, and bits are positive."),
]  # fmt: skip


@exercise(1, my_entropy, ENTROPY_MISTAKES, "the bits that there are to know")
def entropy_bits() -> list[tuple]:
    drawn = [torch.randint(low, 9, (size,)) for low, size in ((1, 3), (0, 6), (0, 12))]
    return [(counts.float(),) for counts in (*drawn, torch.tensor([2, 1, 1, 0]), torch.tensor([0, 5]))]


def terms(counts: Tensor) -> Tensor:  # p log2(p / (p(e) p(b))) (E, B): nan where p is 0
    p = counts / counts.sum()
    return p * (p / (p.sum(dim=1, keepdim=True) * p.sum(dim=0))).log2()


def my_information(counts):
    p = counts / counts.sum()  # (E, B)
    independent = p.sum(dim=1, keepdim=True) * p.sum(dim=0, keepdim=True)  # (E, B)
    seen = p > 0
    return (p[seen] * (p[seen] / independent[seen]).log2()).sum()


INFORMATION_MISTAKES = [
    (lambda c: terms(c).sum(), "0 · log2(0) is nan here, and should count as 0. Leave out the pairs that never occur."),
    (lambda c: my_information(c) * LOG2, "This is in nats. Bits need the logarithm to base 2: log2."),
    (lambda c: torch.special.entr(c / c.sum()).sum() / LOG2,
     "This is the entropy of the pairs: it is large for independent labels too. Divide p(e, b) by p(e) · p(b)."),
    (lambda c: torch.special.entr(c.sum(dim=1) / c.sum()).sum() / LOG2,
     "This is the entropy of the experts, all that could be told. The bytes must come in."),
    (lambda c: -my_information(c), "The sign is wrong: p(e, b) stands above, p(e) · p(b) below."),
]  # fmt: skip


@exercise(2, my_information, INFORMATION_MISTAKES, "the information in bits")
def information_bits() -> list[tuple]:
    drawn = [torch.randint(low, 9, (E, 6)) for low, E in ((1, 2), (0, 2), (0, 4))]
    tables = [[6, 2], [3, 1]], [[2, 0], [0, 2]], [[2, 0, 1], [0, 0, 0], [1, 0, 3]]  # the last with what never occurs
    return [(counts.float(),) for counts in (*drawn, *map(torch.tensor, tables))]


def my_chance(experts):
    shares = [experts.count(e) / len(experts) for e in set(experts)]
    return sum(p * p for p in shares)  # the first draw is e with the share p(e), and so is the second


CHANCE_MISTAKES = [
    (lambda experts: 1 / len(set(experts)),
     "This holds where all experts are used alike. What if one has most of them?"),
    (lambda experts: sum(a == b for a, b in zip(experts, experts[1:])) / (len(experts) - 1),
     "This counts neighbours, and so the answer that we want to compare with chance. Draw any two tokens."),
    (lambda experts: sum((experts.count(e) / len(experts)) ** 2 for e in experts),
     "You went over the tokens, so an expert counts as often as it has tokens. Go over set(experts)."),
    (lambda experts: sum(experts.count(e) / len(experts) for e in set(experts)),
     "These are the shares of one draw, which sum to 1. Both draws must be e: square each."),
    (lambda experts: max(map(experts.count, experts)) / len(experts),
     "This is the share of the busiest expert. Sum over all experts: both draws may be any of them."),
]  # fmt: skip


@exercise(1, my_chance, CHANCE_MISTAKES, "the chance")
def chance() -> list[tuple]:
    return [([0, 0, 0, 0, 1],), *((torch.randint(0, high, (12,)).tolist(),) for high in (2, 4, 8))]
