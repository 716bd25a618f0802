"""Exercises that check themselves."""

from collections.abc import Callable, Mapping
from typing import Any


def check(answer: Callable[..., Any], cases: Mapping[tuple, Any], hint: str = "") -> str:
    """Say whether a learner's function is right: not attempted, not yet (with the first wrong case), or right.

    cases: what the function should return, for the arguments it is called with. An error inside the function is
    part of the answer and is told, never raised.

    >>> check(lambda a, b: a * b, {(2, 3): 6, (4, 5): 20})
    '✔ Right: all 2 cases agree.'
    >>> check(lambda a, b: a + b, {(2, 2): 4, (2, 3): 6}, hint="Not a sum.")
    '✘ Not yet: with (2, 3) the answer is 6, yours is 5. Hint: Not a sum.'
    """
    advice = f" Hint: {hint}" if hint else ""
    for arguments, expected in cases.items():
        try:
            given = answer(*arguments)
        except Exception as error:
            return f"✘ Not yet: with {arguments} your code stops with {type(error).__name__}: {error}.{advice}"
        if given is None:
            return "… Not attempted yet: write your answer in the cell above, run it, and run this one again."
        if given != expected:
            return f"✘ Not yet: with {arguments} the answer is {expected:,}, yours is {given!r}.{advice}"
    return f"✔ Right: all {len(cases)} cases agree."
