"""Lesson 04: the two edges between which a mixture decodes slower than a dense model."""

import math

import torch

from moe_lessons.exercises.exercise import exercise


def drawn(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def my_edges(E, K, w, B_star):
    lower = math.log(1 - w * K / E) / math.log(1 - K / E)  # E·(1 − (1 − K/E)^B) = w·K
    upper = B_star * E / (w * K)  # w·K·B / B* = E
    return lower, upper


def with_lower(lower):
    return lambda E, K, w, B_star: (lower(E, K, w), my_edges(E, K, w, B_star)[1])


def with_upper(upper):
    return lambda E, K, w, B_star: (my_edges(E, K, w, B_star)[0], upper(E, K, w, B_star))


EDGE_MISTAKES = [
    (
        with_lower(lambda E, K, w: w),
        "Lower edge: B = w counts every choice as a new expert. Two tokens may choose the same one: use the union law.",
    ),
    (
        with_lower(lambda E, K, w: math.log(1 - w / E) / math.log(1 - K / E)),
        "Lower edge: the dense FFN is as wide as w·K experts, not as w.",
    ),
    (
        with_lower(lambda E, K, w: math.log(w * K / E) / math.log(1 - K / E)),
        "Lower edge: at this batch size w·K experts are *not* loaded. Solve for those that are.",
    ),
    (
        with_upper(lambda E, K, w, B_star: B_star),
        "Upper edge: from B* on the dense FFN is compute-bound. That is not enough: the MoE still takes longer to load "
        "all of its E experts.",
    ),
    (
        with_upper(lambda E, K, w, B_star: B_star * E / K),
        "Upper edge: from here on the experts themselves are compute-bound. The dense FFN is w times as wide, so it "
        "takes as long as the loading earlier.",
    ),
]


@exercise(2, my_edges, EDGE_MISTAKES, ("the lower edge", "the upper edge"))
def two_edges() -> list[tuple]:
    fixed = [(16, 2, 4, 20.0), (8, 2, 2, 206.0), (128, 4, 4, 206.0)]
    return fixed + [(E, K, drawn(1.3, 0.9 * E / K), drawn(80, 300)) for E, K in ((8, 1), (16, 2), (64, 8), (256, 8))]
