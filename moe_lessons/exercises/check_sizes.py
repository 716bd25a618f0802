"""The exercises of lesson 03: count active parameters, count a KV cache, and design a mixture for a card."""

from collections.abc import Callable
from dataclasses import replace

from moe_lessons.analysis.cost import MODEL_SHAPES, TransformerShape, count_parameters
from moe_lessons.exercises.exercise import Check, Problem, attempt, check_numbers, judge
from moe_lessons.nn import MoE

BLOCK_SIZES = ((64, 256, 8, 2), (64, 256, 8, 1), (32, 48, 64, 8), (16, 20, 4, 4))  # D, F, E, K

ACTIVE_MISTAKES: dict[Callable[[int, int, int, int], int], str] = {
    lambda D, F, E, K: K * 3 * D * F: "The router is missing: E · D weights, and every token uses all of them.",
    lambda D, F, E, K: E * 3 * D * F + E * D: "This is the total. A token uses K of the E experts.",
    lambda D, F, E, K: K * 3 * D * F + K * D: "The router scores all E experts before it can choose K of them.",
    lambda D, F, E, K: K * 2 * D * F + E * D: "SwiGLU has three matrices: gate, up and down.",
}


def check_active(function: Callable[[int, int, int, int], int | None]) -> Check:
    """Compare `function`(d_model, d_ff, num_experts, top_k) with the count of an `MoE` block."""
    cases = {sizes: count_parameters(MoE(*sizes)).active for sizes in BLOCK_SIZES}
    return check_numbers(function, cases, "K experts of three matrices each. And who chooses them?", ACTIVE_MISTAKES)


CACHE_MISTAKES: dict[Callable[[int, int, int, int], int], str] = {
    lambda L, G, h, T: 2 * L * G * h * T: (
        "Half is missing. Either you count keys and no values, or you count numbers and not bytes: bfloat16 has 2."
    ),
    lambda L, G, h, T: L * G * h * T: "Count a key and a value, and 2 bytes for each number.",
    lambda L, G, h, T: 4 * G * h * T: "Every layer has keys and values of its own.",
    lambda L, G, h, T: 4 * L * h * T: "Every key/value head has keys and values of its own.",
    lambda L, G, h, T: 4 * L * G * h: "This is one token. The cache holds all tokens of the text.",
    lambda L, G, h, T: 4 * L * G * h * T * T: "Each token is stored once, however many tokens look at it.",
}


def check_cache(function: Callable[[int, int, int, int], int | None]) -> Check:
    """Compare `function`(num_layers, num_kv_heads, head_dim, num_tokens) -> bytes with the shapes of real models."""
    shapes = [(MODEL_SHAPES[name], length) for name, length in (("Mixtral 8x7B", 4096), ("OLMoE 1B-7B", 1000))]
    cases = {(s.num_layers, s.num_kv_heads, s.head_dim, T): round(1e9 * s.kv_cache_gb(T)) for s, T in shapes}
    return check_numbers(function, cases, "How many numbers does one token leave in one layer?", CACHE_MISTAKES)


CARD = TransformerShape(32000, 2048, 24, 16, 4, 128, d_ff=1)  # what is given; E, K and F are free
CARD_GB, LEAST_GB, MOST_ACTIVE, LEAST_ACTIVE, TEXT = 24, 20, 3.0e9, 2.5e9, 32768


def check_design(function: Callable[[], tuple[int, int, int] | None]) -> Check:
    """Try `function`() -> num_experts, top_k, d_ff of a model as `CARD`, for a card of 24 GB and 3 B active parameters.

    Any design passes which keeps within both and leaves little of them unused.

    >>> check_design(lambda: (8, 2, 8192))
    ✔ Right: 10.0 B parameters, 2.80 B active. 20.1 GB of weights and 1.6 GB of KV cache: 21.7 of 24 GB.
    """
    return judge([(function,)], _try_design, "", "return three whole numbers: num_experts, top_k, d_ff")


def _try_design(function: Callable[[], tuple[int, int, int] | None]) -> None:
    missing = "my_design returns nothing. Write three numbers, then run the cell again."
    num_experts, top_k, d_ff = attempt(function, "Your function stopped:", missing)
    try:
        shape = replace(CARD, num_experts=num_experts, top_k=top_k, d_ff=d_ff)
    except ValueError as error:
        raise Problem(f"Not yet: there is no such model: {error}.") from None
    total, active, weights, cache = shape.count.total, shape.count.active, shape.memory_gb(), shape.kv_cache_gb(TEXT)
    counted = f"{total / 1e9:.1f} B parameters, {active / 1e9:.2f} B active."
    needed = f"{weights:.1f} GB of weights and {cache:.1f} GB of KV cache: {weights + cache:.1f} of {CARD_GB} GB."
    rules = (
        (num_experts == top_k, "With E = K every expert works for every token: this is a dense model."),
        (active > MOST_ACTIVE, "A token uses more than 3.0 B: K · F must be smaller."),
        (weights > CARD_GB, "The weights alone do not fit: E · F must be smaller."),
        (weights + cache > CARD_GB, "The weights fit, but not with the KV cache beside them: E · F must be smaller."),
        (active < LEAST_ACTIVE, "A token could use more, 2.5 B at least: K · F may be larger."),
        (weights + cache < LEAST_GB, "The card could hold more, 20 GB at least: E · F may be larger."),
    )
    for is_broken, advice in rules:
        if is_broken:
            raise Problem(f"Not yet. {advice} You have {counted} {needed}")
    raise Problem(f"Right: {counted} {needed}", "right")
