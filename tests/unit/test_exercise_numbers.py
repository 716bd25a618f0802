"""An exercise whose answer is a number: not attempted, wrong, failing and right answers."""

import pytest

from moe_lessons.exercises.exercise import check_numbers


def repr_of(answer, cases, **kwargs):
    return repr(check_numbers(answer, cases, **kwargs))


CASES = {(1, 2): 3, (20, 1500): 1520}


def test_right():
    assert repr_of(lambda a, b: a + b, CASES) == "✔ Right: all 2 cases agree."


def test_not_attempted():
    assert repr_of(lambda a, b: None, CASES).startswith("… Not attempted yet")


def test_wrong_names_the_first_case_and_gives_the_hint():
    verdict = repr_of(lambda a, b: 3, CASES, hint="Add.")
    assert verdict == "✘ Not yet: with (20, 1500) the answer is 1,520, yours is 3. Hint: Add."


@pytest.mark.parametrize("answer", [lambda a, b: a / 0, lambda a: a, lambda a, b: unknown])  # noqa: F821
def test_an_error_is_told_and_not_raised(answer):
    assert "your code stops with" in repr_of(answer, CASES)


def test_the_interrupt_of_a_user_passes():
    def endless(a, b):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repr_of(endless, CASES)
