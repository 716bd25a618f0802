"""Lesson 06: what an expert tells about the domain of its tokens."""

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise

LOG2 = torch.tensor(2.0).log()


def terms(counts: Tensor) -> Tensor:  # p log2(p / (p(d) p(e))) (domains, E): nan where p is 0
    p = counts / counts.sum()
    return p * (p / (p.sum(dim=1, keepdim=True) * p.sum(dim=0))).log2()


def my_information(counts):
    p = counts / counts.sum()  # (domains, E)
    independent = p.sum(dim=1, keepdim=True) * p.sum(dim=0, keepdim=True)  # (domains, E)
    seen = p > 0
    return (p[seen] * (p[seen] / independent[seen]).log2()).sum()


INFORMATION_MISTAKES = [
    (lambda c: terms(c).sum(), "0 · log2(0) is nan here, and should count as 0. Leave out the pairs that never occur."),
    (lambda c: my_information(c) * LOG2, "This is in nats. Bits need the logarithm to base 2: log2."),
    (lambda c: torch.special.entr(c / c.sum()).sum() / LOG2,
     "This is the entropy of the pairs: it is large for independent labels too. Divide p(d, e) by p(d) · p(e)."),
    (lambda c: torch.special.entr(c.sum(dim=0) / c.sum()).sum() / LOG2,
     "This is the entropy of the experts, an upper limit. Their pairs with the domains must come in."),
    (lambda c: -my_information(c), "The sign is wrong: p(d, e) stands above, p(d) · p(e) below."),
]  # fmt: skip


@exercise(2, my_information, INFORMATION_MISTAKES, "the mutual information in bits")
def information_bits() -> list[tuple]:
    drawn = [torch.randint(low, 9, (domains, 6)) for low, domains in ((1, 2), (0, 2), (0, 4))]
    tables = [[6, 2], [3, 1]], [[2, 0], [0, 2]], [[2, 0, 1], [0, 0, 0], [1, 0, 3]]  # the last with what never occurs
    return [(counts.float(),) for counts in (*drawn, *map(torch.tensor, tables))]
