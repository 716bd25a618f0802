"""Lesson 03: an MoE for a card."""

from collections.abc import Callable
from dataclasses import replace

from moe_lessons.analysis.counting import TransformerShape
from moe_lessons.analysis.roofline import sizes_of
from moe_lessons.exercises.exercise import Problem, attempt, exercise

# What is given: E, K and F are free. Any design is right that keeps within the limits.
CARD = TransformerShape(32000, 2048, 24, 16, 4, 128, d_ff=1)
MOST_GB, LEAST_GB = 23, 20
MOST_ACTIVE, LEAST_ACTIVE = 3.0e9, 2.5e9
TEXT_TOKENS = 32768


def my_design():
    return 8, 2, 8192


def fits_the_card(answer: Callable[[], tuple[int, int, int]]) -> str:
    given = attempt(answer)
    try:
        num_experts, top_k, d_ff = given
    except (TypeError, ValueError):
        raise Problem("Return three whole numbers: num_experts, top_k, d_ff.") from None
    try:
        shape = replace(CARD, num_experts=num_experts, top_k=top_k, d_ff=d_ff)
    except ValueError as error:
        raise Problem(f"There is no such model: {error}.") from None
    active = shape.count.active
    weights, cache = (2 * numbers / 1e9 for numbers in (shape.count.total, sizes_of(shape).cache(TEXT_TOKENS)))  # GB
    found = (
        f"{shape.count.total / 1e9:.1f} B parameters, {active / 1e9:.2f} B active. {weights:.1f} GB of weights and "
        f"{cache:.1f} GB of KV cache: {weights + cache:.1f} GB, of {MOST_GB} at most."
    )
    limits = [
        (num_experts == top_k, "With E = K every token uses every expert: this is dense."),
        (active > MOST_ACTIVE, "A token uses more than 3.0 B: K · F must be smaller."),
        (weights > MOST_GB, "The weights alone do not fit: E · F must be smaller."),
        (weights + cache > MOST_GB, "The weights fit, but not with the KV cache beside them: E · F must be smaller."),
        (active < LEAST_ACTIVE, "A token could use more, 2.5 B at least: K · F may be larger."),
        (weights + cache < LEAST_GB, "The model could fill more, 20 GB at least: E · F may be larger."),
    ]
    for is_broken, advice in limits:
        if is_broken:
            raise Problem(f"{advice} You have {found}")
    return found


@exercise(2, my_design, try_case=fits_the_card)
def card_design() -> list[tuple]:
    return [()]
