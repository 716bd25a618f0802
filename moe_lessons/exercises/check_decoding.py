"""The exercises of lesson 07: tokens per second on paper, the experts of a batch, the batch that fills a machine."""

import math
from collections.abc import Callable
from random import Random

from moe_lessons.exercises.exercise import Check, Problem, attempt, judge, recognise

MISSING = "write your answer in the cell above, run it, and run this one again."


def check_formula(function: Callable, right: Callable, cases: list[tuple], mistakes: dict[Callable, str]) -> Check:
    """Compare `function` with `right` for each of the cases; `mistakes`: what is often written, and what to say."""

    def try_case(*case: float) -> None:
        at = f"with {', '.join(f'{value:,.6g}' for value in case)}"
        given = attempt(lambda: function(*case), f"Not yet: {at} your code stops with", MISSING)
        if math.isclose(given, right(*case), rel_tol=1e-6):
            return
        recognise(mistakes, lambda mistake: math.isclose(given, mistake(*case), rel_tol=1e-6))
        raise Problem(f"Not yet: {at} the answer is {right(*case):,.4g}, yours is {given:,.4g}.")

    return judge(cases, try_case, f"Right: all {len(cases)} cases agree.", "return one number")


def tokens_per_second(total: float, active: float, bytes_per_weight: float, bytes_per_second: float) -> float:
    """At most so many tokens of one text, where all weights that a token uses are read from memory once."""
    return bytes_per_second / (active * bytes_per_weight)


def check_tokens_per_second(function: Callable[[float, float, float, float], float | None]) -> Check:
    """Try `function`(total, active, bytes_per_weight, bytes_per_second) on random models and machines.

    >>> check_tokens_per_second(tokens_per_second)
    ✔ Right: all 8 cases agree.
    """
    rng = Random(0)
    cases = [(a * rng.randint(2, 9), a, rng.choice((1, 2, 4)), rng.randint(1, 99) * 1e10) for a in SIZES]
    mistakes = {
        lambda total, active, size, speed: speed / (total * size): "You read all weights. A token needs the active.",
        lambda total, active, size, speed: active * size / speed: "These are seconds for a token. Turn it round.",
        lambda total, active, size, speed: speed / active: "You count weights. How many bytes does each take?",
        lambda total, active, size, speed: speed * size / active: "More bytes take longer: divide by them.",
    }
    return check_formula(function, tokens_per_second, cases, mistakes)


SIZES = (1e6, 3e7, 2e8, 1e9, 7e9, 13e9, 32e9, 37e9)


def count_touched(num_experts: int, top_k: int, batch_size: int) -> float:
    """As `analysis.union_law`, without its formula: the chance of each number of touched experts, token by token."""
    chance = [1.0] + [0.0] * num_experts  # of 0, 1, … E touched experts
    for _ in range(batch_size):
        after = [0.0] * (num_experts + 1)
        for touched, p in enumerate(chance):
            for new in range(min(top_k, num_experts - touched) + 1):  # of the K choices, those that are new
                ways = math.comb(num_experts - touched, new) * math.comb(touched, top_k - new)
                after[touched + new] += p * ways / math.comb(num_experts, top_k)
        chance = after
    return sum(touched * p for touched, p in enumerate(chance))


def check_touched(function: Callable[[int, int, int], float | None]) -> Check:
    """Try `function`(E, K, B) against a count of all ways to choose.

    >>> from moe_lessons.analysis import union_law
    >>> check_touched(union_law)
    ✔ Right: all 10 cases agree.
    """
    rng = Random(0)
    cases = [(8, 2, 8), (8, 2, 1), (8, 8, 3), (64, 8, 4)]
    cases += [(e, rng.randint(1, e), rng.randint(2, 9)) for e in (3, 5, 8, 16, 24, 32)]
    mistakes = {
        lambda E, K, B: B * K: "This is how many choices there are. Two tokens may choose the same expert.",
        lambda E, K, B: min(E, B * K): "Two tokens may choose the same expert, long before all E are in use.",
        lambda E, K, B: E * (1 - K / E) ** B: "These are the experts that nobody chose. How many are left over?",
        lambda E, K, B: 1 - (1 - K / E) ** B: "This is the chance for one expert. How many of all E are it?",
        lambda E, K, B: E * (1 - (K / E) ** B): "K/E is the chance to be chosen. You need its opposite.",
        lambda E, K, B: E * (1 - (1 - 1 / E) ** (B * K)): "The K experts of one token are different ones: use K/E.",
    }
    return check_formula(function, count_touched, cases, mistakes)


def full_batch(flops_per_second: float, bytes_per_second: float, bytes_per_weight: float, E: int, K: int) -> float:
    """The batch B* from which on arithmetic takes longer than reading, where all E experts are read.

    B tokens do 2·B·K/E FLOPs with each weight on average, and it takes bytes_per_weight to read: B* = ridge ·
    bytes_per_weight / 2 · E/K. With 2 bytes it is ridge · E/K; of a dense model E/K is 1.

    >>> [round(full_batch(989e12, 3.35e12, 2, E, K)) for E, K in ((1, 1), (8, 2))]
    [295, 1181]
    """
    return flops_per_second / bytes_per_second * bytes_per_weight / 2 * E / K


def check_full_batch(function: Callable[[float, float, float, int, int], float | None]) -> Check:
    """Try `function`(flops_per_second, bytes_per_second, bytes_per_weight, E, K) on random machines and mixtures.

    >>> check_full_batch(full_batch)
    ✔ Right: all 8 cases agree.
    """
    rng = Random(0)
    cases = [(rng.randint(1, 99) * 1e13, rng.randint(3, 99) * 1e11, size, 1, 1) for size in (2, 4)]
    for top_k in (1, 2, 2, 4, 6, 8):
        machine = rng.randint(1, 99) * 1e13, rng.randint(3, 99) * 1e11
        cases.append((*machine, rng.choice((1, 2, 4)), top_k * rng.choice((2, 4, 8, 16)), top_k))
    mistakes = {
        lambda f, b, size, E, K: full_batch(f, b, size, 1, 1): "This fits a dense model. An expert sees K/E of B.",
        lambda f, b, size, E, K: full_batch(f, b, size, K, E): "An expert sees K/E of B: make B larger, not smaller.",
        lambda f, b, size, E, K: f / b * E / K: "A weight takes bytes_per_weight to read, and 2 FLOPs a token.",
        lambda f, b, size, E, K: f / b * size * E / K: "A token costs a multiply and an add for each weight: 2 FLOPs.",
        lambda f, b, size, E, K: b / f * size / 2 * E / K: "The ridge is FLOPs for a byte: turn your division round.",
    }
    return check_formula(function, full_batch, cases, mistakes)
