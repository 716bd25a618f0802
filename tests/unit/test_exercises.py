"""What holds for every exercise: right from wrong, mistakes by name, and whatever else an answer may be or do."""

import numpy as np
import pytest
import torch
from ipywidgets.widgets.widget import _instances

from moe_lessons import exercises
from moe_lessons.course.lessons import LESSONS
from moe_lessons.exercises import EXERCISES
from moe_lessons.exercises import exercise as limits
from moe_lessons.exercises.exercise import Exercise
from moe_lessons.support import progress

MISTAKES = [(exercise, *mistake) for exercise in EXERCISES for mistake in exercise.mistakes]


@pytest.fixture(params=EXERCISES, ids=lambda exercise: exercise.key)
def exercise(request) -> Exercise:
    return request.param


def test_they_stand_in_the_order_of_the_course():
    numbers = [exercise.lesson for exercise in EXERCISES]
    assert numbers == sorted(numbers) and {*numbers} <= {lesson.number for lesson in LESSONS}
    assert all(getattr(exercises, exercise.name) is exercise for exercise in EXERCISES)


@pytest.mark.parametrize("exercise, mistake, advice", MISTAKES, ids=lambda value: getattr(value, "key", ""))
def test_a_typical_mistake_is_recognised(exercise, mistake, advice):
    check = exercise.check(mistake)
    assert check.status == "wrong" and check.message.startswith(advice)


def test_nothing_written_and_what_is_no_function(exercise):
    for answer in (None, lambda *_: ...):
        check = exercise.check(answer)
        assert check.status == "not attempted" and exercise.answer_name in check.message
    check = exercise.check(torch.ones(2))
    assert check.status == "wrong" and f"{exercise.name}.check({exercise.answer_name})" in check.message


def test_the_solution_is_right_and_taken_and_leaves_no_trace(exercise, capsys):
    def own(*arguments):
        torch.rand(3)
        return exercise.answer(*arguments)

    before = torch.get_rng_state()
    assert exercise.take(own) is own and torch.equal(torch.get_rng_state(), before)
    assert capsys.readouterr().out == f"{exercise.answer_name}: yours\n"
    assert exercise.take(lambda *arguments: None) is exercise.take() is exercise.answer
    assert "the solution, until yours passes its check" in capsys.readouterr().out
    again = f"Run the cell with `{exercise.name}.take` again"
    assert again in exercise.check(own).message and exercise.take(own) is own
    assert again not in exercise.check(own).message


STRANGE = (
    "two\nlines",
    {},
    10**400,
    torch.ones(2, dtype=torch.complex64),
    torch.zeros((), device="meta"),
    np.array(["a"]),
)


def ends(error):
    raise error


def test_an_unruly_answer_gets_one_sentence(exercise):
    answers = [lambda *_, value=value: value for value in STRANGE]
    answers += [lambda *_: 1 / 0, lambda a, b, c, d, e, f, g, h, i: 0, lambda *_: ends(SystemExit)]
    answers += [lambda *_: ends(GeneratorExit), lambda *_: ends(BaseException("own"))]
    for answer in answers:
        check = exercise.check(answer)
        assert check.status in ("wrong", "raised") and "\n" not in repr(check) and len(repr(check)) < 800, check
    assert "in the line 'answers += [" in exercise.check(answers[-5]).message.lower()
    check = exercise.check(lambda *_: ends(KeyboardInterrupt))  # a user's, of code without end
    assert (check.status, check.message.split(" Stuck")[0]) == ("raised", "You interrupted it.")


def test_the_solution_can_be_pasted_and_once_solved_is_always_solved(exercise, own_progress):
    steps = (lambda *_: ..., None, None), (exercise.answer, "right", "right"), (lambda *_: 1 / 0, "right", "raised")
    for answer, status, last in steps:
        exercise.check(answer)
        entry = progress.read()["exercises"].get(exercise.key, {})
        assert (entry.get("status"), entry.get("last")) == (status, last)
    assert exercise.solution().startswith(f"def {exercise.answer_name}(")


def compare(solution, answer, *case, what=("it",), mistakes=(), **options) -> str:
    exercise = Exercise("own", "99", 1, solution, mistakes, lambda: [case], ["a hint"], what, **options)
    return exercise.check(answer).message


@pytest.mark.parametrize(
    "given, said",
    [
        (torch.ones(3, 2), ["(2, 3)", "(3, 2)"]),
        (1.0, ["(2, 3)", "one number"]),
        (torch.tensor([[1, 1, 1], [1, 1, 1.25]]), ["1 of 6", "token 1", "expert 2", "1.25", "0.25"]),
        (torch.tensor([[1, torch.nan, 1], [1, 1, 2]]), ["token 0", "expert 1", "nan"]),
        ([[1.0, 2.0, None]] * 2, ["numbers", "[[1.0, 2.0, None], [1.0, 2.0, None]]"]),
    ],
)
def test_what_differs_is_said(given, said):
    message = compare(lambda n: torch.ones(2, n), lambda n: given, 3, axes=("token", "expert"))
    assert message.startswith("With n = 3, it") and all(part in message for part in said)


@pytest.mark.parametrize("as_kind", [torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.half, list])
def test_a_right_answer_may_be_of_another_kind(as_kind):
    assert compare(lambda n: torch.ones(2, n), lambda n: as_kind(torch.ones(2, n)), 3) == "All 1 cases agree."


def test_what_agrees_and_what_does_not_also_part_by_part():
    assert "agree" in compare(lambda: 1.0, lambda: 1.000001) and "1.01" in compare(lambda: 1.0, lambda: 1.01)
    assert "1,000,001" in compare(lambda: 1_000_000, lambda: 1_000_001)
    assert "agree" in compare(lambda: float("nan"), lambda: torch.nan)
    assert "yours is 7" in compare(lambda x: 1, lambda x: 7, 0, mistakes=[(lambda x: 1 / x, "Divide.")])
    pairs = ((1, 2, 3), "2 values"), (torch.tensor([1, 3]), "second is 2, yours is 3"), (np.array([1, 2]), "agree")
    for given, said in pairs:
        assert said in compare(lambda: (1, 2), lambda given=given: given, what=("first", "second"))


def test_in_a_notebook_a_result_has_buttons_and_on_a_static_page_its_words(monkeypatch):
    exercise = exercises.choice
    check = exercise.check(lambda *sizes: ["<b>"])
    assert "✘" in check._repr_html_() and "<b>," not in check._repr_html_() and check._repr_mimebundle_() == {}
    monkeypatch.setattr(limits, "in_notebook", lambda: True)
    monkeypatch.delenv("MOE_LESSONS_STATIC", raising=False)
    data, made = check._repr_mimebundle_(), []
    view = _instances[data["application/vnd.jupyter.widget-view+json"]["model_id"]]
    (words, bar, below, _), exercise.hints_seen = view.children, 0
    hint, solution = bar.children
    for button in (hint, hint, hint, hint, solution):
        button.click()
        made.append(below.outputs[0]["data"]["text/markdown"])
    assert words.value == check._repr_html_().replace(" Stuck? choice.hint()", "") != check._repr_html_()
    assert len(set(made[:3])) == 3 and made[3] == made[2]
    assert "def my_choice" in made[4]
