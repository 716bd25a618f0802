"""Lesson 12, in which the course comes together: how far ahead at a batch, and which model to take."""

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise


def my_lead(num_experts, top_k, width, batch):
    touched = num_experts * (1 - (1 - top_k / num_experts) ** batch)
    return width * top_k / touched


LEAD_MISTAKES = {
    lambda e, k, w, b: w: "This holds for one text, where K experts are read. More texts touch more experts.",
    lambda e, k, w, b: w * k / (k * b):
        "As if no two texts chose the same expert. At random some do, and it is read once for all of them.",
    lambda e, k, w, b: w * k / e: "As if every expert were read at each step. A small batch touches fewer.",
    lambda e, k, w, b: my_lead(e, k, w, b) / k:
        "width counts in multiples of the K experts of a token: the dense FFN reads width · K experts' worth.",
    lambda e, k, w, b: 1 / my_lead(e, k, w, b): "Upside down: less to read is faster.",
}  # fmt: skip


@exercise(2, my_lead, LEAD_MISTAKES, "the lead")
def lead() -> list[tuple]:
    return [(16, 2, 2.5, 3), (16, 2, 2.5, 1), (8, 2, 3.0, 64), (64, 6, 4.0, 10), (4, 1, 1.5, 2)]


def my_pick(models, memory, quality):
    kept, read, good = models.T  # (M,) each
    read = read.where((kept <= memory) & (good >= quality), torch.inf)
    return int(read.argmin()) if read.isfinite().any() else -1


def least(models: Tensor, column: int, keep: Tensor) -> int:
    values = models[:, column].where(keep, torch.inf)
    return int(values.argmin()) if keep.any() else -1


PICK_MISTAKES = {
    lambda m, memory, q: least(m, 1, m[:, 2] >= q):
        "This one does not fit. All its parameters must lie in memory, not only those that a token uses.",
    lambda m, memory, q: least(m, 1, m[:, 0] <= memory): "This one fits and is the fastest, but it is not good enough.",
    lambda m, memory, q: least(m, 1, (m[:, 0] < memory) & (m[:, 2] > q)):
        "A model that has exactly this quality, or fills the memory, will do: >= and <=.",
    lambda m, memory, q: least(m, 0, (m[:, 0] <= memory) & (m[:, 2] >= q)):
        "You took the smallest. The speed follows the bytes that a token reads, not those that are kept.",
    lambda m, memory, q: least(-m, 2, m[:, 0] <= memory):
        "You took the best that fits. Asked for is the fastest of those that are good enough.",
    lambda m, memory, q: int(m[(m[:, 0] <= memory) & (m[:, 2] >= q), 1].argmin()):
        "This is the place among those that are left. Give the row in the whole table.",
}  # fmt: skip


@exercise(2, my_pick, PICK_MISTAKES, "the row")
def pick() -> list[tuple]:
    # The first has another answer for each way to go wrong. In the last there is none.
    rows = [
        [60, 30, 75],  # the first that will do
        [65, 35, 79],  # the best of those that fit
        [40, 40, 73],  # the smallest that will do
        [30, 12, 50],
        [80, 26, 70],  # the right one: the fourth of those that will do
        [75, 28, 71],  # the right one, if it had to be better than asked, or smaller
        [20, 5, 60],  # the fastest that fits
        [90, 9, 72],  # the fastest that is good enough
        [45, 34, 71],  # the right one, if what is read took memory, too
    ]
    first = torch.tensor(rows).float()
    made = [torch.rand(size, 3) * 100 for size in (3, 6, 9)]
    return [(first, 80.0, 70.0), *((models, 60.0, 40.0) for models in made), (first, 5.0, 70.0)]
