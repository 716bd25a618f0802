"""Lesson 07: tokens per second on paper, the experts of a batch, the batch that fills a machine."""

import torch

from moe_lessons.analysis import union_law
from moe_lessons.exercises.compare import Comparison
from moe_lessons.exercises.exercise import Exercise


def drawn(low: int, high: int) -> int:
    """A whole number from low to high."""
    return int(torch.randint(low, high + 1, ()))


# --- tokens per second ---------------------------------------------------------------------------------------------


def speed_by_seconds(total: float, active: float, bytes_per_weight: float, bytes_per_second: float) -> float:
    """At most so many tokens of one text, where all weights that a token uses are read from memory once."""
    seconds = active * bytes_per_weight / bytes_per_second  # for one token
    return 1 / seconds


def speed_cases() -> list[tuple]:
    sizes = (1e6, 3e7, 2e8, 1e9, 7e9, 13e9, 32e9, 37e9)
    return [(a * drawn(2, 9), a, size, drawn(1, 99) * 1e10) for a, size in zip(sizes, (2, 4, 1, 2, 2, 4, 1, 2))]


def my_token_speed(total, active, bytes_per_weight, bytes_per_second):
    return bytes_per_second / (active * bytes_per_weight)  # the total must only fit into memory


token_speed = Exercise(
    "token_speed", lesson="07", stars=1, solution=my_token_speed,
    check=Comparison(speed_by_seconds, "the number of tokens per second", speed_cases, mistakes={
        lambda total, active, size, speed: speed / (total * size): "You read all weights. A token needs the active.",
        lambda total, active, size, speed: active * size / speed: "These are seconds for a token. Turn it round.",
        lambda total, active, size, speed: speed / active: "You count weights. How many bytes does each take?",
        lambda total, active, size, speed: speed * size / active: "More bytes take longer: divide by them.",
    }),
    hints=(
        "How many bytes must be read for one token? And how many such readings fit into a second?",
        "The total decides what memory must hold, not what is read for a token.",
    ),
)  # fmt: skip

# --- the experts of a batch ----------------------------------------------------------------------------------------


def count_touched(E: int, K: int, B: int) -> float:
    return union_law(E, K, B)


def touched_cases() -> list[tuple]:
    fixed = [(8, 2, 5), (8, 2, 1), (8, 8, 3), (64, 8, 4)]
    return fixed + [(E, drawn(1, E), drawn(2, 9)) for E in (3, 5, 8, 16, 24, 32)]


def my_touched(E, K, B):
    return E * (1 - (1 - K / E) ** B)


touched_experts = Exercise(
    "touched_experts", lesson="07", stars=2, solution=my_touched,
    check=Comparison(count_touched, "the number of experts", touched_cases, mistakes={
        lambda E, K, B: B * K: "This is how many choices there are. Two tokens may choose the same expert.",
        lambda E, K, B: min(E, B * K): "Two tokens may choose the same expert, long before all E are in use.",
        lambda E, K, B: E * (1 - K / E) ** B: "These are the experts that nobody chose. How many are left over?",
        lambda E, K, B: 1 - (1 - K / E) ** B: "This is the chance for one expert. How many of all E are it?",
        lambda E, K, B: E * (1 - (K / E) ** B): "K/E is the chance to be chosen. You need its opposite.",
        lambda E, K, B: E * (1 - (1 - 1 / E) ** (B * K)): "The K experts of one token are different ones: use K/E.",
    }),
    hints=(
        "One token leaves a given expert alone with probability `1 - K / E`. With which do all B tokens?",
        "An expert is touched with probability `1 - (1 - K / E) ** B`, and there are E of them.",
    ),
)  # fmt: skip

# --- the batch that fills a machine --------------------------------------------------------------------------------


def batch_by_seconds(
    flops_per_second: float, bytes_per_second: float, bytes_per_weight: float, E: int, K: int
) -> float:
    """The batch B* from which on arithmetic takes longer than reading, where all E experts are read."""
    reading = bytes_per_weight / bytes_per_second  # seconds for one weight
    computing = 2 * K / E / flops_per_second  # seconds for one weight and one text of the batch, on average
    return reading / computing


def batch_cases() -> list[tuple]:
    sizes = ((4, 15, 3), (1, 16, 2), (2, 2, 1), (4, 8, 4), (1, 6, 6), (2, 1, 1), (4, 1, 1), (2, 128, 8))
    return [(drawn(1, 99) * 1e13, drawn(3, 99) * 1e11, size, E, K) for size, E, K in sizes]


def my_full_batch(flops_per_second, bytes_per_second, bytes_per_weight, E, K):
    ridge = flops_per_second / bytes_per_second
    return ridge * bytes_per_weight / 2 * E / K


full_batch = Exercise(
    "full_batch", lesson="07", stars=3, solution=my_full_batch,
    check=Comparison(batch_by_seconds, "the batch", batch_cases, mistakes={
        lambda f, b, size, E, K: f / b * size / 2: "This fits a dense model. An expert sees K/E of B.",
        lambda f, b, size, E, K: f / b * size / 2 * K / E: (
            "An expert sees K/E of B: make B larger, not smaller."
        ),
        lambda f, b, size, E, K: f / b * E / K: "A weight takes bytes_per_weight to read, and 2 FLOPs a token.",
        lambda f, b, size, E, K: f / b * size * E / K: (
            "A token costs a multiply and an add for each weight: 2 FLOPs."
        ),
        lambda f, b, size, E, K: b / f * size / 2 * E / K: (
            "The ridge is FLOPs for a byte: turn your division round."
        ),
    }),
    hints=(
        "How long does it take to read one weight? And to compute with it for B · K/E tokens? Set them equal.",
        "Reading takes bytes_per_weight / bytes_per_second, computing 2 · B · K/E / flops_per_second. Solve for B.",
    ),
)  # fmt: skip
