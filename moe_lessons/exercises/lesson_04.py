"""Lesson 04: the distinct experts of a batch."""

import torch

from moe_lessons.exercises.exercise import exercise


def drawn(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def my_touched(E, K, B):
    return E * (1 - (1 - K / E) ** B)


TOUCHED_MISTAKES = [
    (lambda E, K, B: B * K, "This is the number of choices. Two tokens may choose the same expert."),
    (lambda E, K, B: E * (1 - K / E) ** B, "These are the experts that nobody chose. How many are left over?"),
    (lambda E, K, B: 1 - (1 - K / E) ** B, "This is the chance for one expert. How many of all E are it?"),
    (lambda E, K, B: E * (1 - (K / E) ** B), "K/E is the chance to be chosen. You need its opposite."),
    (lambda E, K, B: E * (1 - (1 - 1 / E) ** (B * K)), "The K experts of one token are different ones: use K/E."),
]  # fmt: skip


@exercise(2, my_touched, TOUCHED_MISTAKES, "the number of experts")
def touched_experts() -> list[tuple]:
    fixed = [(8, 2, 5), (8, 2, 1), (8, 8, 3), (64, 8, 4)]
    return fixed + [(E, drawn(1, E), drawn(2, 9)) for E in (3, 5, 8, 16, 24, 32)]
