"""Lesson 05: the width of the dense model that is as good as a mixture, seed by seed."""

import math

import torch

from moe_lessons.exercises.exercise import exercise


def my_widths(widths, dense, moe):
    found = []
    for losses, goal in zip(dense, moe):  # of one seed
        place = next((i for i, loss in enumerate(losses) if loss <= goal), None)  # the first that is as good
        if place is None:
            found.append(math.inf)
        elif place == 0:
            found.append(widths[0])
        else:
            share = (losses[place - 1] - goal) / (losses[place - 1] - losses[place])
            found.append(widths[place - 1] * (widths[place] / widths[place - 1]) ** share)
    return found


def over_width(widths, dense, moe):
    steps = [2**width for width in widths]  # whose logarithms are the widths
    return [math.log2(width) for width in my_widths(steps, dense, moe)]


def unpaired(widths, dense, moe):
    return my_widths(widths, [[sum(column) / len(dense) for column in zip(*dense)]] * len(moe), moe)


def clipped(widths, dense, moe):
    return [min(width, widths[-1]) for width in my_widths(widths, dense, moe)]


def trained(widths, dense, moe):
    return [next((w for w in widths if w >= width), math.inf) for width in my_widths(widths, dense, moe)]


WIDTH_MISTAKES = [
    (over_width, "You join the points over the width. Join them over its logarithm."),
    (unpaired, "You compare with the mean curve. Pair: each MoE with the dense models of its own seed."),
    (clipped, "Where even the widest dense model is worse than the MoE, the width is not the widest but math.inf."),
    (trained, "This is the first trained model that is as good. A narrower one would do: interpolate."),
    (lambda *given: [math.log2(width) for width in my_widths(*given)], "These are the logarithms of the widths."),
]


@exercise(2, my_widths, WIDTH_MISTAKES, "the widths", axes=("seed",))
def matched_widths() -> list[tuple]:
    widths = [1, 2, 4, 8]
    fixed = [
        (widths, [[2.0, 1.8, 1.6, 1.5], [2.1, 1.9, 1.8, 1.7]], [1.7, 1.75]),
        (widths, [[2.0, 1.8, 1.7, 1.6], [2.2, 1.9, 1.8, 1.75]], [1.55, 1.85]),
        (widths, [[2.0, 1.7, 1.75, 1.6], [2.2, 1.9, 1.8, 1.75]], [1.72, 1.8]),
        (widths, [[2.0, 1.8, 1.6, 1.5], [2.1, 1.9, 1.8, 1.7]], [2.05, 1.75]),  # worse than all of its dense models
    ]
    losses = [(3 - torch.rand(3, 4).cumsum(1) / 4).tolist() for _ in range(3)]
    goals = [[own[1] + (own[2] - own[1]) * torch.rand(()).item() for own in dense] for dense in losses]
    return fixed + [(widths, *pair) for pair in zip(losses, goals)]
