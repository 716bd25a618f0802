"""Lesson 05: the dense width that is as good as a mixture."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from moe_lessons.exercises.exercise import exercise


def my_width(widths, qualities, quality):
    for i in range(1, len(widths)):
        if qualities[i - 1] <= quality <= qualities[i]:
            share = (quality - qualities[i - 1]) / (qualities[i] - qualities[i - 1])
            return widths[i - 1] * (widths[i] / widths[i - 1]) ** share
    return math.inf


ONE = "This is one of the trained widths. Interpolate between the two neighbours."
WIDTH_MISTAKES = [
    (lambda w, q, x: my_width(w, q, min(x, q[-1])),
     "A mixture better than all of them lies outside the family. Return math.inf."),
    (lambda w, q, x: np.interp(x, q, w), "Your lines are straight over the width. Take its logarithm first, then exp."),
    (lambda w, q, x: math.log(my_width(w, q, x)), "This is the logarithm of the width. Return its exp."),
    (lambda w, q, x: min(w, key=lambda width: abs(q[w.index(width)] - x)), ONE),
    (lambda w, q, x: next((width for width, own in zip(w, q) if own >= x), math.inf), ONE),
]  # fmt: skip


@exercise(2, my_width, WIDTH_MISTAKES, "the width")
def dense_width() -> Iterator[tuple]:
    for case in range(12):
        widths = [int(torch.randint(4, 8, ())) * 2 ** (i + 3) for i in range(4)]
        qualities = torch.rand(4).sort().values.tolist()
        inside = qualities[0] + torch.rand(()).item() * (qualities[-1] - qualities[0])
        yield widths, qualities, 1.5 if case == 11 else inside
