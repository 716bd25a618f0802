"""Lesson 08: the dense width that is as good as a mixture, and what a token costs three opponents."""

import math
from collections.abc import Sequence

import torch

from moe_lessons.exercises.compare import Comparison
from moe_lessons.exercises.exercise import Exercise

# --- the width that is as good -------------------------------------------------------------------------------------


def width_at(widths: Sequence[float], qualities: Sequence[float], quality: float, log=math.log, exp=math.exp) -> float:
    """The width at which straight lines over log(width) reach a quality; inf where none of the widths does."""
    for i in range(1, len(widths)):
        if qualities[i - 1] <= quality <= qualities[i]:
            share = (quality - qualities[i - 1]) / (qualities[i] - qualities[i - 1])
            return exp(log(widths[i - 1]) + share * (log(widths[i]) - log(widths[i - 1])))
    return math.inf


def width_cases() -> list[tuple]:
    """Rising curves, and one that the mixture leaves behind."""
    cases = []
    for case in range(12):
        widths = [int(torch.randint(4, 8, ())) * 2 ** (i + 3) for i in range(4)]
        qualities = torch.rand(4).sort().values.tolist()
        share = torch.rand(()).item()
        inside = qualities[0] + share * (qualities[-1] - qualities[0])
        cases.append((widths, qualities, 1.5 if case == 11 else inside))
    return cases


def my_width(widths, qualities, quality):
    for i in range(1, len(widths)):
        if qualities[i - 1] <= quality <= qualities[i]:
            share = (quality - qualities[i - 1]) / (qualities[i] - qualities[i - 1])
            return widths[i - 1] * (widths[i] / widths[i - 1]) ** share
    return math.inf


ONE = "This is one of the trained widths. Interpolate between the two neighbours."
WIDTH_MISTAKES = {
    lambda w, q, x: width_at(w, q, min(x, q[-1])): (
        "A mixture better than all of them lies outside the family. Return math.inf."
    ),
    lambda w, q, x: width_at(w, q, x, float, float): (
        "Your lines are straight over the width. Take its logarithm first, then exp."
    ),
    lambda w, q, x: math.log(width_at(w, q, x)): "This is the logarithm of the width. Return its exp.",
    lambda w, q, x: min(w, key=lambda width: abs(q[w.index(width)] - x)): ONE,
    lambda w, q, x: next((width for width, own in zip(w, q) if own >= x), math.inf): ONE,
}

dense_width = Exercise(
    "dense_width", lesson="08", stars=2, solution=my_width,
    check=Comparison(width_at, "the width", width_cases, WIDTH_MISTAKES),
    hints=(
        "Find the two neighbours between whose qualities it lies. Which share of the way from one to the other is it?",
        "Straight over log(width): `widths[i - 1] * (widths[i] / widths[i - 1]) ** share`.",
    ),
)  # fmt: skip

# --- what a token costs --------------------------------------------------------------------------------------------


def costs_by_matrices(d_model: int, d_ff: int, num_experts: int, top_k: int) -> tuple[int, int, int]:
    """Bytes kept, bytes read and FLOPs for one token: one expert and one matrix after the other."""
    kept = read = flops = 0
    for expert in range(num_experts):
        for rows, columns in ((d_ff, d_model), (d_ff, d_model), (d_model, d_ff)):  # gate, up, down
            kept += 2 * rows * columns
            read += 2 * rows * columns if expert < top_k else 0
            flops += rows * (columns + columns) if expert < top_k else 0  # a multiply and an add for each weight
    return kept, read, flops


def my_token_costs(d_model, d_ff, num_experts, top_k):
    expert = 3 * d_model * d_ff
    return 2 * num_experts * expert, 2 * top_k * expert, 2 * top_k * expert


ALL = "You count all E experts: a token reads and uses K of them."
BYTES = "In bfloat16 a weight takes 2 bytes."
COSTS_MISTAKES = {
    lambda D, F, E, K: (4 * E * D * F, 4 * K * D * F, 4 * K * D * F): (
        "You count two matrices in an expert. SwiGLU has three: gate, up and down."
    ),
    lambda D, F, E, K: (6 * E * D * F, 6 * E * D * F, 6 * K * D * F): ALL,
    lambda D, F, E, K: (6 * E * D * F, 6 * E * D * F, 6 * E * D * F): ALL,
    lambda D, F, E, K: (6 * E * D * F, 6 * K * D * F, 6 * E * D * F): ALL,
    lambda D, F, E, K: (6 * E * D * F, 6 * K * D * F, 3 * K * D * F): "A weight costs 2 FLOPs: a multiply and an add.",
    lambda D, F, E, K: (3 * E * D * F, 3 * K * D * F, 6 * K * D * F): BYTES,
    lambda D, F, E, K: (3 * E * D * F, 3 * K * D * F, 3 * K * D * F): f"{BYTES} And it costs 2 FLOPs.",
    lambda D, F, E, K: (6 * K * D * F, 6 * K * D * F, 6 * K * D * F): "All E experts are kept, not only K of them.",
}

token_costs = Exercise(
    "token_costs", lesson="08", stars=1, solution=my_token_costs,
    check=Comparison(
        costs_by_matrices,
        ("bytes kept", "bytes read", "FLOPs"),
        lambda: [(6, 10, 5, 3), (4, 6, 8, 2), (8, 4, 16, 1), (64, 256, 1, 1)],  # the last is a dense FFN
        COSTS_MISTAKES,
    ),
    hints=("How many numbers has one expert? All E are kept. How many of them does one token read?",),
)  # fmt: skip
