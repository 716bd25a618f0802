"""A number, or a vector of numbers, that a learner computes: compared but for rounding, on random arguments."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import Check, Problem, attempt, judge, recognise

Mistakes = Mapping[Callable[..., Any], str]  # what is often written instead, and what to say about it


def check_values(function: Callable, truth: Callable, cases: Iterable[tuple], mistakes: Mistakes, what: str) -> Check:
    """Compare `function`(*arguments) with `truth`(*arguments) in each of the cases; what: the name of the result.

    >>> check_values(lambda x: sum(x), lambda x: sum(x) / len(x), [([1, 2, 3],)], {sum: "Divide."}, "the mean")
    ✘ Not yet. Divide.
    """
    cases = list(cases)
    try_case = partial(_try_case, function, truth, mistakes, what)
    return judge(cases, try_case, f"Right: {what} agrees in all {len(cases)} cases.", "return numbers")


def _try_case(function: Callable, truth: Callable, mistakes: Mistakes, what: str, *arguments: Any) -> None:
    missing = "your function returns nothing. Write it, then run the cell again."
    given = as_values(attempt(partial(function, *copies(arguments)), "Your function stopped:", missing))
    expected = as_values(truth(*arguments))
    if agree(given, expected):
        return
    recognise(mistakes, lambda mistake: agree(given, as_values(mistake(*arguments))))
    shown, asked = (str(values.numpy().round(3).tolist()) for values in (given, expected))
    raise Problem(f"Not yet: {what} is {asked}, yours is {shown}, for {', '.join(map(str, arguments))}.")


def copies(arguments: tuple) -> list:
    """What a function may change without harm."""
    return [argument.clone() if isinstance(argument, Tensor) else argument for argument in arguments]


def as_values(values: Any) -> Tensor:
    """In float64, without a gradient."""
    return torch.as_tensor(values).detach().double()


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether both are the same but for rounding; what is no number agrees with what is no number."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
