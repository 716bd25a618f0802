"""The exercises of lesson 08: the dense width that is as good as a mixture, and what a token costs three opponents."""

import math
from collections.abc import Callable, Sequence
from random import Random

from moe_lessons.exercises.exercise import Check, Problem, attempt, judge

SHAPES = ((4, 6, 8, 2), (8, 4, 16, 1), (6, 10, 5, 3), (64, 256, 1, 1))  # d_model D, d_ff F, num_experts E, top_k K


def width_at(widths: Sequence[float], qualities: Sequence[float], quality: float, log=math.log, exp=math.exp) -> float:
    """The width at which straight lines over log(width) reach a quality; inf where none of the widths does."""
    for i in range(1, len(widths)):
        if qualities[i - 1] <= quality <= qualities[i]:
            share = (quality - qualities[i - 1]) / (qualities[i] - qualities[i - 1])
            return exp(log(widths[i - 1]) + share * (log(widths[i]) - log(widths[i - 1])))
    return math.inf


def check_width_at(function: Callable[[list, list, float], float | None]) -> Check:
    """Compare `function`(widths, qualities, quality) with `width_at`, on rising curves drawn at random.

    >>> check_width_at(width_at)
    ✔ Right: 20 random families, and one that the mixture leaves behind.
    """

    def try_case(seed: int) -> None:
        rng = Random(seed)
        widths = [rng.randint(4, 9) * 2 ** (i + 3) for i in range(4)]
        qualities = sorted(rng.random() for _ in widths)
        quality = 1.5 if seed == 20 else rng.uniform(qualities[0], qualities[-1])
        given = attempt(lambda: function(list(widths), list(qualities), quality), "Your function stopped:", MISSING)
        wanted, linear = width_at(widths, qualities, quality), width_at(widths, qualities, quality, float, float)
        if math.isclose(given, wanted, rel_tol=1e-6):
            return
        if wanted == math.inf:
            raise Problem("Not yet: a mixture better than all of them lies outside the family. Return math.inf.")
        if math.isclose(given, linear, rel_tol=1e-6):
            raise Problem("Not yet: your lines are straight over the width. Take its logarithm first, then exp.")
        if math.isclose(given, math.log(wanted), rel_tol=1e-6):
            raise Problem("Not yet: this is the logarithm of the width. Return its exp.")
        if given in widths:
            raise Problem("Not yet: this is one of the trained widths. Interpolate between the two neighbours.")
        at = f"widths {widths}, qualities {[round(q, 3) for q in qualities]}, quality {quality:.3f}"
        raise Problem(f"Not yet: with {at} the answer is {wanted:.1f}, yours is {given:.1f}.")

    return judge(((seed,) for seed in range(21)), try_case, f"Right: 20 random families, and {LAST}.")


LAST, MISSING = "one that the mixture leaves behind", "write your answer in the cell above, then run it and this one."


def token_costs(d_model: int, d_ff: int, num_experts: int, top_k: int) -> tuple[int, int, int]:
    """Of an FFN of experts in bfloat16, without its router: bytes kept, bytes read for one token, FLOPs for it."""
    expert = 3 * d_model * d_ff
    return 2 * num_experts * expert, 2 * top_k * expert, 2 * top_k * expert


def check_token_costs(function: Callable[[int, int, int, int], tuple | None]) -> Check:
    """Compare `function`(d_model, d_ff, num_experts, top_k) with a count, one expert and one matrix after the other.

    >>> check_token_costs(token_costs)
    ✔ Right: bytes kept, bytes read and FLOPs agree for 4 shapes, the last of them a dense FFN.
    """

    def try_case(d_model: int, d_ff: int, num_experts: int, top_k: int) -> None:
        case = f"D = {d_model}, F = {d_ff}, E = {num_experts}, K = {top_k}"
        given = attempt(lambda: function(d_model, d_ff, num_experts, top_k), f"With {case} your code stops:", MISSING)
        kept, read, flops = given
        count = [0, 0, 0]
        for expert in range(num_experts):
            for rows, columns in ((d_ff, d_model), (d_ff, d_model), (d_model, d_ff)):  # gate, up, down
                count[0] += 2 * rows * columns
                count[1] += 2 * rows * columns if expert < top_k else 0
                count[2] += rows * (columns + columns) if expert < top_k else 0  # a multiply and an add for each weight
        if [3 * value for value in given] == [2 * value for value in count]:
            raise Problem("Not yet: you count two matrices in an expert. SwiGLU has three: gate, up and down.")
        names = ("bytes kept", "bytes read", "FLOPs")
        for name, value, wanted in zip(names, given, count):
            if value == wanted:
                continue
            advice = ""
            if name != "bytes kept" and value * top_k == wanted * num_experts:
                advice = " You count all E experts: a token reads and uses K of them."
            elif value * 2 == wanted:
                advice = " In bfloat16 a weight takes 2 bytes." if "bytes" in name else " A weight costs 2 FLOPs."
            raise Problem(f"Not yet: with {case} the {name} are {wanted:,}, yours {value:,}.{advice}")

    right = f"Right: bytes kept, bytes read and FLOPs agree for {len(SHAPES)} shapes, the last of them a dense FFN."
    return judge(SHAPES, try_case, right, "return three numbers: bytes kept, bytes read, FLOPs")
