"""The exercises of lessons 00 and 01 tell right from wrong: weights of a token, parameters, attention weights."""

import numpy as np
import pytest
import torch
from test_exercises import lesson_texts
from torch.nn import functional as F

from moe_lessons.exercises.check_dense import (
    PARAMETER_MISTAKES,
    WEIGHT_MISTAKES,
    check_attention_weights,
    check_layer_parameters,
)
from moe_lessons.exercises.check_weights import MISTAKES, check_weights

EXERCISES = {
    "my_weights": ("00", check_weights, MISTAKES),
    "layer_parameters": ("01", check_layer_parameters, PARAMETER_MISTAKES),
    "my_attention": ("01", check_attention_weights, WEIGHT_MISTAKES),
}


def solution(name: str):
    """What the folded solution in the lesson defines."""
    (code,) = [text for text in lesson_texts(EXERCISES[name][0], solutions=True) if f"def {name}" in text]
    exec(code, names := {"torch": torch})
    return names[name]


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solutions_are_right_and_nothing_is_not_attempted(name):
    _, check, _ = EXERCISES[name]
    assert check(solution(name)).status == "right", check(solution(name))
    assert check(lambda *_: None).status == check(lambda *_: ...).status == "not attempted"
    assert check(lambda *_: 1 / 0).status == "raised"
    for nonsense in ("12", -1, [], torch.zeros(3, 3)):
        assert check(lambda *_, nonsense=nonsense: nonsense).status == "wrong"


@pytest.mark.parametrize("name", EXERCISES)
def test_frequent_mistakes_are_known(name):
    _, check, mistakes = EXERCISES[name]
    for mistake, advice in mistakes.items():
        found = check(mistake)
        assert found.status == "wrong" and found.message.endswith(advice), (found, advice)


def test_right_answers_written_in_another_way():
    def with_torch(probs, k):
        weights = torch.zeros(len(probs))
        best = torch.tensor(probs).topk(k)
        return weights.scatter(0, best.indices, best.values / best.values.sum())

    def by_removing(probs, k):  # changes its own list
        for _ in range(len(probs) - k):
            probs[probs.index(min(p for p in probs if p))] = 0
        return np.array(probs) / sum(probs)

    def by_rows(q, k):
        rows = torch.zeros(len(q), len(q))
        for t in range(len(q)):
            rows[t, : t + 1] = F.softmax(k[: t + 1] @ q[t] / q.shape[1] ** 0.5, dim=0)
        return rows

    assert check_weights(with_torch).status == check_weights(by_removing).status == "right"
    assert check_attention_weights(by_rows).status == "right"
    assert check_layer_parameters(lambda D, H, G, F: D * (2 * D + 2 * G * D // H + 3 * F + 2)).status == "right"


def test_a_mask_that_leaves_nothing_is_known():
    def nothing_left(q, k):
        return (q @ k.T).masked_fill(torch.ones(len(q), len(q)).triu(0) > 0, -torch.inf).softmax(-1)

    assert "must be allowed to look at itself" in check_attention_weights(nothing_left).message


def test_an_answer_of_another_length_is_wrong():
    assert check_weights(lambda probs, k: [*probs, 0.0]).status == "wrong"
    assert "(T, T)" in check_attention_weights(lambda q, k: q).message
