"""The exercises of lesson 07: nothing written, what is often written instead, and right answers in other words."""

import pytest

from moe_lessons.analysis import union_law
from moe_lessons.exercises import check_decoding as exercise


def missing(*arguments):
    raise NotImplementedError


SPEED, TOUCHED, FULL = exercise.check_tokens_per_second, exercise.check_touched, exercise.check_full_batch


@pytest.mark.parametrize("check", [SPEED, TOUCHED, FULL])
@pytest.mark.parametrize(
    "answer, status, says",
    [
        (missing, "not attempted", "Not attempted yet"),
        (lambda *_: None, "not attempted", "Not attempted yet"),
        (lambda *_: ..., "not attempted", "Not attempted yet"),
        (lambda *_: 1 / 0, "raised", "your code stops with ZeroDivisionError"),
        (lambda *_: "fast", "wrong", "return one number"),
        (lambda *_: -1.0, "wrong", "yours is -1"),
        (lambda *_: float("nan"), "wrong", "yours is nan"),
    ],
)
def test_answers_that_are_none(check, answer, status, says):
    result = check(answer)
    assert result.status == status and says in result.message


@pytest.mark.parametrize(
    "check, answer, says",
    [
        (SPEED, lambda total, active, size, speed: speed / total / size, "A token needs the active"),
        (SPEED, lambda total, active, size, speed: active * size / speed, "seconds for a token"),
        (SPEED, lambda total, active, size, speed: speed / active, "How many bytes"),
        (SPEED, lambda total, active, size, speed: speed / active * size, "divide by them"),
        (TOUCHED, lambda E, K, B: E * (1 - K / E) ** B, "nobody chose"),
        (TOUCHED, lambda E, K, B: K * B, "Two tokens may choose the same expert"),
        (TOUCHED, lambda E, K, B: min(K * B, E), "long before"),
        (TOUCHED, lambda E, K, B: 1 - (1 - K / E) ** B, "one expert"),
        (TOUCHED, lambda E, K, B: E - E * (K / E) ** B, "opposite"),
        (TOUCHED, lambda E, K, B: E * (1 - (1 - 1 / E) ** (K * B)), "different ones"),
        (FULL, lambda f, b, size, E, K: f / b * size / 2, "fits a dense model"),
        (FULL, lambda f, b, size, E, K: f / b * size / 2 * K / E, "not smaller"),
        (FULL, lambda f, b, size, E, K: f / b * E / K, "bytes_per_weight to read"),
        (FULL, lambda f, b, size, E, K: f / b * size * E / K, "a multiply and an add"),
        (FULL, lambda f, b, size, E, K: b / f * size / 2 * E / K, "turn your division round"),
    ],
)
def test_what_is_often_written_instead_is_named(check, answer, says):
    result = check(answer)
    assert result.status == "wrong" and says in result.message


@pytest.mark.parametrize(
    "check, answer",
    [
        (SPEED, lambda total, active, size, speed: 1 / (active / speed * size)),
        (TOUCHED, lambda E, K, B: E - E * ((E - K) / E) ** B),
        (TOUCHED, lambda E, K, B: sum(K * (1 - K / E) ** token for token in range(B))),  # what each token adds
        (FULL, lambda f, b, size, E, K: (size / b) / (2 * K / E / f)),
    ],
)
def test_right_answers_in_other_words(check, answer):
    assert check(answer).status == "right"


@pytest.mark.parametrize("sizes", [(8, 2, 1), (8, 2, 16), (5, 3, 4), (6, 6, 2), (16, 1, 9)])
def test_the_count_and_the_law_agree(sizes):
    assert exercise.count_touched(*sizes) == pytest.approx(union_law(*sizes))
