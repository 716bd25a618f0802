"""The exercises of lesson 08: nothing written, wrong answers by name, and right ones, also written in another way."""

import math

import numpy as np
import pytest

from moe_lessons.exercises.check_opponents import check_token_costs, check_width_at, token_costs, width_at


def by_numpy(widths, qualities, quality):
    return math.inf if quality > max(qualities) else 2 ** np.interp(quality, qualities, np.log2(widths))


def swapped(d_model, d_ff, num_experts, top_k):
    work = 6 * top_k * d_ff * d_model
    return [np.int64(6 * num_experts * d_ff * d_model), work, work]


RIGHT = [(check_width_at, width_at), (check_width_at, by_numpy), (check_token_costs, token_costs)]
RIGHT += [(check_token_costs, swapped)]
WIDTHS = {
    "straight over the width": lambda w, q, x: math.inf if x > 1 else np.interp(x, q, w),
    "the logarithm of the width": lambda w, q, x: math.inf if x > 1 else np.interp(x, q, np.log(w)),
    "one of the trained widths": lambda w, q, x: min(w, key=lambda width: abs(q[w.index(width)] - x)),
    "lies outside the family": lambda w, q, x: np.exp(np.interp(x, q, np.log(w))),
    "the answer is": lambda w, q, x: 1.01 * width_at(w, q, x) if x < 1 else math.inf,
    "cannot be read": lambda w, q, x: "wide",
}
COSTS = {
    "three: gate, up and down": lambda D, F, E, K: (4 * E * D * F, 4 * K * D * F, 4 * K * D * F),
    "a token reads and uses K": lambda D, F, E, K: (6 * E * D * F, 6 * E * D * F, 6 * K * D * F),
    "A weight costs 2 FLOPs": lambda D, F, E, K: (6 * E * D * F, 6 * K * D * F, 3 * K * D * F),
    "a weight takes 2 bytes": lambda D, F, E, K: (3 * E * D * F, 3 * K * D * F, 6 * K * D * F),
    "return three numbers": lambda D, F, E, K: 6 * E * D * F,
}
WRONG = [(check_width_at, words, answer) for words, answer in WIDTHS.items()]
WRONG += [(check_token_costs, words, answer) for words, answer in COSTS.items()]


@pytest.mark.parametrize("check, answer", RIGHT)
def test_right_answers(check, answer):
    assert check(answer).status == "right"


@pytest.mark.parametrize("check, words, answer", WRONG)
def test_wrong_answers_are_told_what_differs(check, words, answer):
    said = check(answer)
    assert said.status == "wrong" and words in said.message


@pytest.mark.parametrize("check", [check_width_at, check_token_costs])
def test_nothing_written_and_an_error(check):
    assert check(lambda *_: None).status == check(lambda *_: ...).status == "not attempted"
    assert "ZeroDivisionError" in check(lambda *_: 1 / 0).message
