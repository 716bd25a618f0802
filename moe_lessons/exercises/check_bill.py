"""Lesson 06b: how long a layer takes where each expert has a machine, and what it drops."""

import torch
from torch import Tensor

from moe_lessons.exercises.compare import Comparison
from moe_lessons.exercises.exercise import Exercise


def layer_bill(load: Tensor, factor: float | None) -> tuple[float, float]:
    """The time of the busiest expert, over that of an even load, and the dropped share: of load (E,), tokens wanted.

    >>> layer_bill(torch.tensor([6.0, 2.0, 0.0, 0.0]), 1.25)
    (1.25, 0.4375)
    """
    wanted = load.tolist()
    mean = sum(wanted) / len(wanted)
    served = wanted if factor is None else [min(tokens, factor * mean) for tokens in wanted]  # each has so many places
    return max(served) / mean, 1 - sum(served) / sum(wanted)


def load_cases() -> list[tuple]:
    sizes = (5, 1.25), (8, None), (8, 1.0), (16, 2.0)  # E, factor
    return [((torch.rand(E) ** 3 * 100).round() + 1, factor) for E, factor in sizes]


def my_bill(load, factor):
    mean = load.mean()
    served = load if factor is None else load.clamp(max=factor * mean)
    return (served.max() / mean).item(), (1 - served.sum() / load.sum()).item()


BILL_MISTAKES = {
    lambda load, f: (layer_bill(load, None)[0], layer_bill(load, f)[1]): (
        "The time is that of what is carried out: an expert works on at most factor · mean tokens."
    ),
    lambda load, f: (layer_bill(load, f)[0], layer_bill(load, f)[1] * load.sum().item()): (
        "The second number is a share: divide what is dropped by all that was wanted."
    ),
    lambda load, f: (layer_bill(load, f)[0] * load.mean().item(), layer_bill(load, f)[1]): (
        "The time is measured in that of an even load: divide the busiest expert by the mean of the load."
    ),
    lambda load, f: (layer_bill(load, f)[0] / (1 - layer_bill(load, f)[1]), layer_bill(load, f)[1]): (
        "You divided by the mean of what is served. Divide by the mean of what was wanted: the even share."
    ),
    lambda load, f: (layer_bill(load, f)[0], 1 - layer_bill(load, f)[1]): (
        "The second number is the share that is served. Return the share that is dropped."
    ),
}

bill = Exercise(
    "bill", lesson="06b", stars=2, solution=my_bill,
    check=Comparison(layer_bill, ("time", "dropped share"), load_cases, BILL_MISTAKES),
    hints=(
        "First find what each expert carries out: its load, but at most factor · mean.",
        "`load.clamp(max=factor * load.mean())` is what is carried out. Where factor is None, nothing is cut.",
    ),
)  # fmt: skip
