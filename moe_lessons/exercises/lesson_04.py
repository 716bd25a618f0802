"""Lesson 04: a table of counts, mutual information from counts, and how often two draws have the same expert."""

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise


def my_times_even(counts):
    shares = counts / counts.sum(dim=1, keepdim=True)  # of the tokens of its domain: each row sums to 1
    return shares * counts.shape[1]  # divided by the even share, 1 / E


COLUMN = "You divided by column: of an expert's tokens, how many are code? Asked: of code, how many go to the expert?"
TABLE_MISTAKES = {
    lambda c: c / c.sum(1)[:, None]: "These are shares, and a row sums to 1. Divide them by the even share, 1 / E.",
    lambda c: 100 * c / c.sum(1, keepdim=True):
        "These are percents, as on the map. Here 1 is to be the even share: divide the shares by 1 / E.",
    lambda c: c / c.sum(1, keepdim=True) / c.shape[1]:
        "You multiplied by the even share. Divide by it: 1/2 of the tokens is 4 times the even share of 8 experts.",
    lambda c: c / c.sum(1, keepdim=True) - 1 / c.shape[1]:
        "You subtracted the even share. Divide by it: how many times as much?",
    lambda c: c / c.sum(0) * c.shape[1]: COLUMN,
    lambda c: c / c.sum(0) * c.shape[0]: COLUMN,
    lambda c: c / c.sum() * c.numel():
        "You divided by all tokens, so a large domain has large numbers everywhere. Divide each row by its own sum.",
    lambda c: c / c.sum(1, keepdim=True) * c.shape[0]:
        "You took the number of domains for that of experts. The even share is one of E, the columns.",
}  # fmt: skip


@exercise(1, my_times_even, TABLE_MISTAKES, "the table", axes=("domain", "expert"))
def times_even() -> list[tuple]:
    # Domains of different sizes: each has more tokens than the one before.
    sizes = (3, 8), (5, 4), (1, 6), (2, 2)
    return [(torch.randint(1, 100, (rows, E)) * torch.arange(1.0, rows + 1)[:, None],) for rows, E in sizes]


LOG2 = torch.tensor(2.0).log()


def terms(counts: Tensor) -> Tensor:  # p log2(p / (p(e) p(b))) (E, B): nan where p is 0
    p = counts / counts.sum()
    return p * (p / (p.sum(dim=1, keepdim=True) * p.sum(dim=0))).log2()


def my_information(counts):
    p = counts / counts.sum()  # (E, B)
    independent = p.sum(dim=1, keepdim=True) * p.sum(dim=0, keepdim=True)  # (E, B)
    seen = p > 0
    return (p[seen] * (p[seen] / independent[seen]).log2()).sum()


INFORMATION_MISTAKES = {
    lambda c: terms(c).sum(): "0 · log2(0) is nan here, and should count as 0. Leave out the pairs that never occur.",
    lambda c: my_information(c) * LOG2: "This is in nats. Bits need the logarithm to base 2: log2.",
    lambda c: my_information(c) * c.sum(): "This is for all tokens together. Divide the counts by their sum first.",
    lambda c: torch.special.entr(c / c.sum()).sum() / LOG2:
        "This is the entropy of the pairs: it is large for independent labels too. Divide p(e, b) by p(e) · p(b).",
    lambda c: torch.special.entr(c.sum(dim=1) / c.sum()).sum() / LOG2:
        "This is the entropy of the experts, all that could be told. The bytes must come in.",
    lambda c: (terms(c) / (c / c.sum())).nansum():
        "You added the logarithms as they are. Each counts with its share p(e, b).",
    lambda c: -my_information(c): "The sign is wrong: p(e, b) stands above, p(e) · p(b) below.",
}  # fmt: skip


@exercise(2, my_information, INFORMATION_MISTAKES, "the information in bits")
def information_bits() -> list[tuple]:
    drawn = [torch.randint(low, 9, (E, 6)) for low, E in ((1, 2), (0, 2), (0, 4))]
    return [(counts.float(),) for counts in (*drawn, torch.tensor([[6, 2], [3, 1]]), torch.tensor([[2, 0], [0, 2]]))]


def my_chance(experts):
    shares = [experts.count(e) / len(experts) for e in set(experts)]
    return sum(p * p for p in shares)  # the first draw is e with the share p(e), and so is the second


CHANCE_MISTAKES = {
    lambda experts: 1 / len(set(experts)): "This holds where all experts are used alike. What if one has most of them?",
    lambda experts: sum(a == b for a, b in zip(experts, experts[1:])) / (len(experts) - 1):
        "This counts neighbours, and so the answer that we want to compare with chance. Draw any two tokens.",
    lambda experts: sum((experts.count(e) / len(experts)) ** 2 for e in experts):
        "You went over the tokens, so an expert counts as often as it has tokens. Go over set(experts).",
    lambda experts: sum(experts.count(e) / len(experts) for e in set(experts)):
        "These are the shares of one draw, which sum to 1. Both draws must be e: square each.",
    lambda experts: max(map(experts.count, experts)) / len(experts):
        "This is the share of the busiest expert. Sum over all experts: both draws may be any of them.",
    lambda experts: (sum(map(experts.count, experts)) / len(experts) - 1) / (len(experts) - 1):
        "This is without replacement: the second draw may be the first token again.",
}  # fmt: skip


@exercise(1, my_chance, CHANCE_MISTAKES, "the chance")
def chance() -> list[tuple]:
    return [([0, 0, 0, 0, 1],), *((torch.randint(0, high, (12,)).tolist(),) for high in (2, 4, 8))]
