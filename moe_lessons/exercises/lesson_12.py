"""Lesson 12, in which the course comes together: how far ahead at a batch, and which model to take."""

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise


def my_lead(num_experts, top_k, width, batch):
    touched = num_experts * (1 - (1 - top_k / num_experts) ** batch)
    return width * top_k / touched


LEAD_MISTAKES = [
    (lambda e, k, w, b: w, "This holds for one text, where K experts are read. More texts touch more experts."),
    (lambda e, k, w, b: w * k / (k * b),
     "As if no two texts chose the same expert. At random some do, and it is read once for all of them."),
    (lambda e, k, w, b: w * k / e, "As if every expert were read at each step. A small batch touches fewer."),
    (lambda e, k, w, b: my_lead(e, k, w, b) / k,
     "width counts in multiples of the K experts of a token: the dense FFN reads width · K experts' worth."),
    (lambda e, k, w, b: 1 / my_lead(e, k, w, b), "Upside down: less to read is faster."),
]  # fmt: skip


@exercise(2, my_lead, LEAD_MISTAKES, "the lead")
def lead() -> list[tuple]:
    return [(16, 2, 2.5, 3), (16, 2, 2.5, 1), (8, 2, 3.0, 64), (64, 6, 4.0, 10), (4, 1, 1.5, 2)]


def my_pick(models, memory, quality, batch):
    shared, experts, num_experts, top_k, good = models.T  # (M,) each
    read = shared + experts * (1 - (1 - top_k / num_experts) ** batch)
    read = read.where((shared + experts <= memory) & (good >= quality), torch.inf)
    return int(read.argmin()) if read.isfinite().any() else -1


def read_by(models: Tensor, batch: float, with_shared: bool = True) -> Tensor:
    shared, experts, num_experts, top_k, _ = models.T
    return shared * with_shared + experts * (1 - (1 - top_k / num_experts) ** batch)


def fits(models: Tensor, memory: float, quality: float = 0) -> Tensor:
    return (models[:, 0] + models[:, 1] <= memory) & (models[:, 4] >= quality)


def least(values: Tensor, keep: Tensor) -> int:
    return int(values.where(keep, torch.inf).argmin()) if keep.any() else -1


PICK_MISTAKES = [
    (lambda m, memory, q, b: least(read_by(m, b, False), fits(m, memory, q)),
     "What is shared (attention, embedding) is read at each step, too."),
    (lambda m, memory, q, b: least(m[:, 0] + m[:, 1], fits(m, memory, q)),
     "You took the smallest. The speed follows the bytes that a step reads, not those that are kept."),
    (lambda m, memory, q, b: least(read_by(m, 1), fits(m, memory, q)),
     "This is right for one text. More texts touch more experts, and the step reads them all."),
    (lambda m, memory, q, b: least(read_by(m, b), fits(m, memory)),
     "This one fits and is the fastest, but it is not good enough."),
    (lambda m, memory, q, b: least(read_by(m, b), m[:, 4] >= q),
     "This one does not fit. All its experts must lie in memory, not only those that a token uses."),
]  # fmt: skip


@exercise(3, my_pick, PICK_MISTAKES, "the row")
def pick() -> list[tuple]:
    # Each way to go wrong has another answer in one of the first three. The dense ones have one expert, and K = 1.
    tables = [
        [[16, 28, 1, 1, 74], [21, 6, 1, 1, 67], [4, 31, 1, 1, 62], [4, 20, 16, 2, 62], [6, 85, 16, 2, 71],
         [29, 16, 1, 1, 72], [22, 59, 1, 1, 70], [29, 49, 1, 1, 65], [10, 39, 64, 2, 61], [29, 51, 1, 1, 70]],
        [[4, 14, 16, 2, 67], [12, 69, 8, 2, 75], [25, 45, 1, 1, 77], [17, 34, 1, 1, 68], [28, 21, 1, 1, 74],
         [10, 47, 1, 1, 75], [11, 69, 64, 2, 70], [3, 48, 8, 2, 71], [16, 34, 1, 1, 71], [12, 22, 64, 2, 61]],
        [[9, 16, 16, 4, 71], [11, 31, 16, 4, 65], [10, 12, 16, 2, 68], [24, 16, 1, 1, 70], [4, 76, 64, 4, 70],
         [20, 10, 1, 1, 74], [2, 21, 64, 2, 63], [29, 38, 1, 1, 77], [3, 76, 16, 2, 74], [5, 68, 64, 4, 74]],
    ]  # fmt: skip
    models = [torch.tensor(rows).float() for rows in tables]
    return [*((rows, 80.0, 70.0, 4) for rows in models), (models[0], 80.0, 70.0, 64), (models[0], 5.0, 70.0, 4)]
