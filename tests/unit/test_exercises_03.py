"""The exercises of lesson 03 tell right from wrong: active parameters, the KV cache, and a design for a card."""

import re

import pytest
from test_exercises_02 import solution

from moe_lessons.exercises.check_sizes import (
    ACTIVE_MISTAKES,
    CACHE_MISTAKES,
    check_active,
    check_cache,
    check_design,
)

CHECKS = {"active_parameters": check_active, "kv_cache_bytes": check_cache, "my_design": check_design}


@pytest.mark.parametrize("name", CHECKS)
def test_the_solutions_are_right_and_nothing_is_not_attempted(name):
    check = CHECKS[name]
    assert check(solution(name, "03")).status == "right", check(solution(name, "03"))
    assert check(lambda *_: None).status == check(lambda *_: ...).status == "not attempted"
    assert check(lambda *_: 1 / 0).status == "raised"
    assert check(lambda *_: "12").status == "wrong"


def test_right_answers_written_in_another_way():
    assert check_active(lambda D, F, E, K: D * (E + 3 * F * K)).status == "right"
    assert check_cache(lambda L, G, h, T: T * L * G * (2 * h + 2 * h)).status == "right"
    for design in ((8, 2, 8704), (64, 16, 1088), (128, 32, 520), [32, 8, 2176]):
        assert check_design(lambda design=design: design).status == "right", design


@pytest.mark.parametrize("check, mistakes", [(check_active, ACTIVE_MISTAKES), (check_cache, CACHE_MISTAKES)])
def test_frequent_mistakes_are_known(check, mistakes):
    for mistake, advice in mistakes.items():
        assert check(mistake).message.endswith(f"Hint: {advice}")


@pytest.mark.parametrize(
    "design, advice",
    [
        ((8, 8, 2176), "With E = K every expert works"),
        ((8, 2, 9216), r"more than 3.0 B: K · F must be smaller. You have 11.3 B parameters, 3.10 B active"),
        ((16, 2, 8192), r"The weights alone do not fit.* 39.4 GB of weights"),
        ((9, 2, 8192), r"fit, but not with the KV cache beside them.* 22.5 GB of weights and 1.6 GB.* 24.1 of 24 GB"),
        ((8, 1, 9000), "A token could use more, 2.5 B at least: K · F may be larger"),
        ((4, 2, 8192), "The card could hold more, 20 GB at least: E · F may be larger"),
        ((8, 9, 100), r"no such model: top_k must be between 1 and num_experts \(8\), got 9"),
        ((8, 2), "cannot be read|return three whole numbers"),
        ((8, 2, 8192.5), "no such model: d_ff"),
    ],
)
def test_what_a_design_breaks_is_said_with_numbers(design, advice):
    said = check_design(lambda: design)
    assert said.status == "wrong" and re.search(advice, said.message), said
