"""Lesson 05: the width of the dense model that is as good as a mixture."""

import numpy as np
import torch

from moe_lessons.exercises.exercise import exercise


def my_matched_width(widths, quality, goal):
    return float(2 ** np.interp(goal, quality, np.log2(widths)))


def between_linear(widths, quality, goal):
    return float(np.interp(goal, quality, widths))


def nearest(widths, quality, goal):
    return float(widths[int(np.abs(np.asarray(quality) - goal).argmin())])


def first_as_good(widths, quality, goal):
    return float(widths[int(np.searchsorted(quality, goal))])


WIDTH_MISTAKES = [
    (between_linear, "You join the points over the width. Join them over its logarithm."),
    (nearest, "This is the trained model of the nearest quality. The width asked for lies between two of them."),
    (first_as_good, "This is the first trained model that is as good. A narrower one would do."),
    (lambda *given: my_matched_width(*given) / given[0][0], "Return the width itself, not a multiple of the first."),
    (lambda *given: float(np.log2(my_matched_width(*given))), "This is the logarithm of the width."),
]


@exercise(1, my_matched_width, WIDTH_MISTAKES, "the width")
def matched_width() -> list[tuple]:
    fixed = [([64, 256], [20, 60], 40), ([64, 128, 256, 512], [5, 16, 63, 100], 78)]
    drawn = [torch.rand(4).cumsum(0) + torch.arange(4) / 10 for _ in range(5)]
    between = [float(quality[1] + (quality[2] - quality[1]) * torch.rand(()).item()) for quality in drawn]
    return fixed + [([64, 96, 192, 512], quality.tolist(), goal) for quality, goal in zip(drawn, between)]
