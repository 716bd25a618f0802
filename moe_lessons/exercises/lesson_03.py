"""Lesson 03: count active parameters, count a KV cache, and design a mixture for a card."""

from collections.abc import Callable
from dataclasses import replace

from moe_lessons.analysis.counting import MODEL_SHAPES, TransformerShape
from moe_lessons.exercises.exercise import Problem, attempt, exercise


def my_active_parameters(d_model, d_ff, num_experts, top_k, shared_experts):
    return (top_k + shared_experts) * 3 * d_model * d_ff + num_experts * d_model


ACTIVE_MISTAKES = [
    (lambda D, F, E, K, S: (K + S) * 3 * D * F, "The router is missing: E · D weights, all of them used."),
    (lambda D, F, E, K, S: (E + S) * 3 * D * F + E * D, "This is the total. A token uses K of the E experts."),
    (lambda D, F, E, K, S: (K + S) * 3 * D * F + K * D, "The router scores all E experts before it chooses K."),
    (lambda D, F, E, K, S: (K + S) * 2 * D * F + E * D, "SwiGLU has three matrices: gate, up and down."),
    (lambda D, F, E, K, S: K * 3 * D * F + E * D, "The shared experts are missing: they work for every token."),
]  # fmt: skip


@exercise(1, my_active_parameters, ACTIVE_MISTAKES, "the number of active parameters")
def active_parameters() -> list[tuple]:
    return [(64, 256, 8, 2, 2), (64, 256, 8, 1, 0), (32, 48, 64, 8, 2), (16, 20, 4, 4, 0)]


def my_cache_bytes(num_layers, num_kv_heads, head_dim, num_tokens):
    return 2 * 2 * num_layers * num_kv_heads * head_dim * num_tokens  # a key and a value; 2 bytes


CACHE_MISTAKES = [
    (lambda L, G, h, T: 2 * L * G * h * T,
     "Half is missing. Either you count keys and no values, or you count numbers and not bytes: bfloat16 has 2."),
    (lambda L, G, h, T: L * G * h * T, "Count a key and a value, and 2 bytes for each number."),
    (lambda L, G, h, T: 4 * G * h * T, "Every layer has keys and values of its own."),
    (lambda L, G, h, T: 4 * L * h * T, "Every key/value head has keys and values of its own."),
    (lambda L, G, h, T: 4 * L * G * h, "This is one token. The cache holds all tokens of the text."),
]  # fmt: skip


@exercise(1, my_cache_bytes, CACHE_MISTAKES, "the number of bytes")
def cache_bytes() -> list[tuple]:
    shapes = [(MODEL_SHAPES[name], length) for name, length in (("Mixtral 8x7B", 4096), ("OLMoE 1B-7B", 1000))]
    return [(shape.num_layers, shape.num_kv_heads, shape.head_dim, length) for shape, length in shapes]


# What is given: E, K and F are free. Any design is right that keeps within both limits and leaves little unused.
CARD = TransformerShape(32000, 2048, 24, 16, 4, 128, d_ff=1)
CARD_GB, LEAST_GB, MOST_ACTIVE, LEAST_ACTIVE, TEXT_TOKENS = 24, 20, 3.0e9, 2.5e9, 32768


def my_design():
    return 64, 16, 1088  # (8, 2, 8704) has the same sizes but for the router


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
    active, weights, cache = shape.count.active, shape.memory_gb(), shape.kv_cache_gb(TEXT_TOKENS)
    found = (
        f"{shape.count.total / 1e9:.1f} B parameters, {active / 1e9:.2f} B active. {weights:.1f} GB of weights and "
        f"{cache:.1f} GB of KV cache: {weights + cache:.1f} of {CARD_GB} GB."
    )
    limits = [
        (num_experts == top_k, "With E = K every expert works for every token: this is a dense model."),
        (active > MOST_ACTIVE, "A token uses more than 3.0 B: K · F must be smaller."),
        (weights > CARD_GB, "The weights alone do not fit: E · F must be smaller."),
        (weights + cache > CARD_GB, "The weights fit, but not with the KV cache beside them: E · F must be smaller."),
        (active < LEAST_ACTIVE, "A token could use more, 2.5 B at least: K · F may be larger."),
        (weights + cache < LEAST_GB, "The card could hold more, 20 GB at least: E · F may be larger."),
    ]
    for is_broken, advice in limits:
        if is_broken:
            raise Problem(f"{advice} You have {found}")
    return found


@exercise(3, my_design, try_case=fits_the_card)
def card_design() -> list[tuple]:
    return [()]
