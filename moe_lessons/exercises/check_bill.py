"""The second exercise of lesson 06b: how long a layer takes where each expert has a machine, and what it drops."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from moe_lessons.exercises.check_balancing import agree
from moe_lessons.exercises.exercise import Check, Problem, attempt, judge
from moe_lessons.nn import seeded

CASES = ((8, None), (8, 1.0), (5, 1.25), (16, 2.0))  # experts E, capacity factor


def layer_bill(load: Tensor, factor: float | None) -> tuple[float, float]:
    """The time of the busiest expert, over that of an even load, and the dropped share: of load (E,), tokens wanted.

    >>> layer_bill(torch.tensor([6.0, 2.0, 0.0, 0.0]), 1.25)
    (1.25, 0.4375)
    """
    mean = load.mean()
    served = load if factor is None else load.clamp(max=factor * mean)  # at most the places of each expert
    return (served.max() / mean).item(), (1 - served.sum() / load.sum()).item()


# what is often written instead, and what to say about it
BILL_MISTAKES: dict[Callable[[Tensor, float | None], tuple], str] = {
    lambda load, f: (layer_bill(load, None)[0], layer_bill(load, f)[1]): (
        "The time is that of what is carried out: an expert works on at most factor · mean tokens."
    ),
    lambda load, f: (layer_bill(load, f)[0], layer_bill(load, f)[1] * load.sum().item()): (
        "The second number is a share: divide what is dropped by all that was wanted."
    ),
    lambda load, f: (layer_bill(load, f)[0] * load.mean().item(), layer_bill(load, f)[1]): (
        "The time is measured in that of an even load: divide the busiest expert by the mean of the load."
    ),
    lambda load, f: (
        layer_bill(load, f)[0] / (1 - layer_bill(load, f)[1]), layer_bill(load, f)[1]
    ): "You divided by the mean of what is served. Divide by the mean of what was wanted: the even share.",
}  # fmt: skip


def check_bill(function: Callable[[Tensor, float | None], tuple[float, float] | None]) -> Check:
    """Compare `function`(load (E,), factor or None) -> (time, dropped share) with `layer_bill` on random loads.

    >>> check_bill(layer_bill)
    ✔ Right: the same bill for 4 random loads.
    """
    return judge(enumerate(CASES), partial(_try_bill, function), f"Right: the same bill for {len(CASES)} random loads.")


def _try_bill(function: Callable, seed: int, case: tuple[int, float | None]) -> None:
    num_experts, factor = case
    with seeded(seed):
        load = (torch.rand(num_experts) ** 3 * 100).round() + 1
    at = f"with {num_experts} experts and factor {factor}"
    missing = "bill returns nothing. Write it, then run the cell again."
    given = attempt(lambda: function(load.clone(), factor), f"Your function stopped {at}:", missing)
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise Problem("Not yet: return two numbers, the time and the dropped share.")
    given = torch.tensor([float(number) for number in given])
    mistakes = {partial(_as_tensor, mistake): advice for mistake, advice in BILL_MISTAKES.items()}
    agree(given, _as_tensor(layer_bill, load, factor), mistakes, (load, factor), f"{at}, the bill")


def _as_tensor(bill: Callable, load: Tensor, factor: float | None) -> Tensor:
    return torch.tensor(bill(load, factor))
