"""The check of lesson 06 tells right from wrong, says what is wrong, and never raises."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from moe_lessons.exercises.check_causality import NUM_TOKENS, causality_cases, check_causality, sees_the_future
from moe_lessons.nn import seeded


def same(a, b):
    return torch.allclose(a, b, atol=1e-5)


def changes_what_follows(layer, x):
    """The other good answer: as long a sequence, with other tokens from place t on."""
    layer.eval()
    y = layer(x)
    for t in range(1, len(x)):
        other = torch.cat([x[:t], torch.randn_like(x[t:])])
        if not same(layer(other)[:t], y[:t]):
            return True
    return False


def changes_one_token_after_the_other(layer, x):
    layer.eval()
    for t in range(1, len(x)):
        other = x.clone()
        other[t] = -other[t]
        if not same(layer(other)[:t], layer(x)[:t]):
            return True
    return False


GOOD = [sees_the_future, changes_what_follows, changes_one_token_after_the_other]


# --- the layers are what they are said to be -----------------------------------------------------------------


@pytest.mark.parametrize("name", causality_cases())
@pytest.mark.parametrize("seed", range(3))
def test_the_truth_is_true(name, seed):
    """Found by changing all that follows each place, six times."""
    case = causality_cases()[name]
    layer = case.layer.eval()
    with seeded(seed):
        x = torch.randn(NUM_TOKENS, 8)
        y, seen = layer(x), False
        for t in range(1, NUM_TOKENS):
            for _ in range(6):
                other = torch.cat([x[:t], 2 * torch.randn_like(x[t:])])
                seen |= not same(layer(other)[:t], y[:t])
    assert seen == case.truth


def test_the_layers_are_the_same_each_time():
    x = torch.randn(NUM_TOKENS, 8)
    first, second = causality_cases(), causality_cases()
    for name in first:
        torch.testing.assert_close(first[name].layer.eval()(x), second[name].layer.eval()(x))


def test_there_are_layers_of_both_kinds_in_training_mode():
    cases = causality_cases().values()
    assert {case.truth for case in cases} == {True, False}
    assert all(case.layer.training for case in cases)


def test_the_last_token_is_alone_in_its_group():
    layer, x = causality_cases()["expert choice in groups of 4"].layer, torch.randn(NUM_TOKENS, 8)
    other = x.clone()
    other[-1] = torch.randn(8)
    torch.testing.assert_close(layer(other)[:-1], layer(x)[:-1])


# --- answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", GOOD)
def test_right(answer):
    check = check_causality(answer)
    assert repr(check) == "✔ Right: your check tells all 9 layers apart."
    assert check.status == "right"


@pytest.mark.parametrize("kind", [np.bool_, torch.tensor])
def test_other_kinds_of_true_and_false(kind):
    assert check_causality(lambda layer, x: kind(sees_the_future(layer, x))).status == "right"


def test_the_solution_in_the_lesson_is_right():
    lesson = Path(__file__).resolve().parents[2] / "notebooks" / "06_balancing.ipynb"
    cells = [cell for cell in nbformat.read(lesson, as_version=4).cells if "<b>Solution</b>" in cell.source]
    solutions = [re.search(r"```python\n(.*?)```", cell.source, re.DOTALL)[1] for cell in cells]
    (solution,) = [text for text in solutions if "def sees_the_future" in text]
    names = {"torch": torch}
    exec(solution, names)
    assert check_causality(names["sees_the_future"]).status == "right"


def not_written(*_):
    raise NotImplementedError


@pytest.mark.parametrize("answer", [lambda *_: None, lambda *_: ..., not_written])
def test_not_attempted(answer):
    check = check_causality(answer)
    assert check.status == "not attempted"
    assert repr(check).startswith("… Not attempted yet: sees_the_future returns nothing")


def forgets_eval(layer, x):
    y = layer(x)
    return any(not same(layer(x[:t]), y[:t]) for t in range(1, len(x)))


def compares_to_the_last_bit(layer, x):
    layer.eval()
    y = layer(x)
    return any(not torch.equal(layer(x[:t]), y[:t]) for t in range(1, len(x)))


def changes_the_last_token_only(layer, x):
    layer.eval()
    for _ in range(10):
        other = x.clone()
        other[-1] = 3 * torch.randn_like(x[-1])
        if not same(layer(other)[:-1], layer(x)[:-1]):
            return True
    return False


def cuts_the_last_token_off(layer, x):
    layer.eval()
    return not same(layer(x[:-1]), layer(x)[:-1])


def changes_an_early_token(layer, x):
    layer.eval()
    other = x.clone()
    other[0] += 1
    return not same(layer(other)[1:], layer(x)[1:])


def compares_the_changed_token_too(layer, x):
    layer.eval()
    other = x.clone()
    other[-1] += 1
    return not same(layer(other), layer(x))


def changes_x(layer, x):
    layer.eval()
    other = x
    other[-1] += 1
    return not same(layer(other)[:-1], layer(x)[:-1])


def changes_too_little(layer, x):
    layer.eval()
    y = layer(x)
    return any(not same(layer(torch.cat([x[:t], x[t:] + 0.01]))[:t], y[:t]) for t in range(1, len(x)))


@pytest.mark.parametrize(
    "answer, advice",
    [
        (forgets_eval, "'top-k with noise' does not see the future.*Call layer.eval"),
        (compares_to_the_last_bit, "tiny differences are rounding: compare with torch.allclose"),
        (changes_the_last_token_only, "'expert choice in groups of 4' sees the future.*the last of the 13 tokens"),
        (cuts_the_last_token_off, "'expert choice in groups of 4' sees the future.*the last of the 13 tokens"),
        (changes_an_early_token, "It only looks back. Did you change an early token"),
        (compares_the_changed_token_too, "'top-k' does not see.*compare only the tokens before those you changed"),
        (changes_x, "your function changed x itself.*Use x.clone"),
        (changes_too_little, "'expert choice' sees the future.*Change more than a little"),
        (lambda layer, x: True, "says True of every layer, of 'top-k' too"),
        (lambda layer, x: False, "says False of every layer, of 'Soft MoE' too.*Change late tokens"),
        (lambda layer, x: layer(x) > 0, "return True or False, nothing of type Tensor"),
        (lambda layer, x: "yes", "return True or False, nothing of type str"),
        (lambda layer, x: 1, "return True or False, nothing of type int"),
    ],
)
def test_wrong(answer, advice):
    check = check_causality(answer)
    assert check.status == "wrong"
    assert re.search(advice, check.message, re.IGNORECASE), check.message


@pytest.mark.parametrize("name", causality_cases())
def test_each_layer_can_be_the_one_that_is_judged_wrongly(name):
    """Every layer counts: an answer that is wrong on this one alone is told so, with this layer's advice."""
    cases = causality_cases()
    verdicts = iter([case.truth != (other == name) for other, case in cases.items()])
    check = check_causality(lambda layer, x: next(verdicts))
    assert check.status == "wrong"
    assert repr(name) in check.message and cases[name].advice in check.message


def test_an_error_is_told_and_not_raised():
    check = check_causality(lambda layer, x: layer(x.T))
    assert check.status == "raised"
    assert "Your function stopped at 'top-k': ValueError: " in check.message


def test_a_function_with_other_arguments():
    assert "TypeError" in check_causality(lambda x: x).message


def test_the_interrupt_of_a_user_passes():
    def endless(layer, x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_causality(endless)


def test_checking_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    check_causality(changes_what_follows)
    assert torch.equal(torch.get_rng_state(), before)
