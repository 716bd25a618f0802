"""A prediction: nothing is chosen for you, what you chose is kept, and it is compared with what happened."""

import asyncio
import re

import ipywidgets as W
import numpy as np
import pytest
from traitlets import TraitError

from moe_lessons.course import CurvePrediction, NumberPrediction, Prediction, progress, question
from moe_lessons.widgets import CollapseLab

pytestmark = pytest.mark.usefixtures("own_progress")
QUESTION, OPTIONS = "How many experts will be left?", ("all", "some", "one")
X, Y = ("step", 0, 100), ("loss, nats", 0, 4)
WIDGET = "application/vnd.jupyter.widget-view+json"
MAKERS = {
    "choice": lambda key=None: Prediction(QUESTION, OPTIONS, key=key),
    "number": lambda key=None: NumberPrediction(QUESTION, "experts", 0, 8, key=key),
    "curve": lambda key=None: CurvePrediction(QUESTION, X, Y, key=key),
}
ANSWERS = {"choice": "some", "number": 3, "curve": [[0.0, 4], [50.0, 1], [100.0, 1]]}


@pytest.fixture(params=MAKERS)
def kind(request) -> str:
    return request.param


def test_an_answer_with_a_key_is_there_in_the_next_session(kind, new_session):
    for key in ("07.left", None):
        assert MAKERS[kind](key).answer is None
        MAKERS[kind](key).answer = ANSWERS[kind]
    new_session()
    assert MAKERS[kind]("07.left").answer == ANSWERS[kind]
    assert MAKERS[kind]("08.left").answer is None and MAKERS[kind]().answer is None
    assert list(progress.read()["predictions"]) == ["07.left"]


def test_what_is_kept_but_no_longer_allowed_counts_as_not_answered(kind):
    for old in ("none of these", 9, [[0, 5], [1, 1]], float("nan"), True):
        progress.record("predictions", "07.left", answer=old)
        prediction = MAKERS[kind]("07.left")
        with pytest.raises(TraitError, match="answer must be"):
            prediction.answer = old
        assert prediction.answer is None


def test_a_live_page_gets_the_widget_a_static_one_text(kind, monkeypatch):
    data, _ = MAKERS[kind]()._repr_mimebundle_()
    assert WIDGET in data
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1")
    data, _ = MAKERS[kind]()._repr_mimebundle_()
    assert set(data) == {"text/plain", "text/markdown"} and QUESTION in data["text/markdown"]


def test_it_says_what_was_predicted_and_what_happened():
    prediction = Prediction(QUESTION, OPTIONS)
    assert "<details>" in prediction.compare("some")._repr_markdown_()
    for choice, second in (("some", "As you predicted"), ("all", "What happened")):
        prediction.answer = choice
        assert repr(prediction.compare("some")) == f"You predicted: {choice}.\n{second}: some."
    with pytest.raises(ValueError, match="outcome must be one of 'all', 'some', 'one', got 'none'"):
        prediction.compare("none")


@pytest.mark.parametrize(
    "answer, value, words",
    [
        (93.4, 93.412, "93.4 GB.\nWhat happened: 93.4 GB. As you predicted."),
        (1500, 46_702, "1,500 GB.\nWhat happened: 46,700 GB. That is 45,200 GB more than you said, 31 times as much."),
        (0, 5, "0 GB.\nWhat happened: 5 GB. That is 5 GB more than you said."),
    ],
)
def test_a_number_is_compared_by_difference_and_by_factor(answer, value, words):
    prediction = NumberPrediction("How large?", "GB", 0, 2000)
    assert repr(prediction.compare(value)) == words.split("\n")[1].split(". ")[0] + "."
    prediction.answer = answer
    assert repr(prediction.compare(value)) == f"You predicted: {words}"


def test_a_curve_is_compared_where_both_are():
    prediction = CurvePrediction("How does it fall?", X, Y)
    happened = "What happened, loss, nats over step: a fall, from 4 at 0 to 2 at 100."
    assert repr(prediction.compare([0, 100], [4, 2])) == happened
    assert prediction.measured == []
    prediction.answer = [[0, 4], [100, 4]]
    assert prediction.measured == [[0, 1], [1, 0.5]]  # it is shown once there is an answer
    words = "Your curve is {} away on average (loss, nats), {} what happened. You drew a level line, and {}."
    assert repr(prediction.compare([0, 100], [4, 2])) == words.format(1, "mostly above", "it is a fall")
    assert repr(prediction.compare([0, 100], [4.5, 4.5])) == words.format(0.5, "mostly below", "so it is")
    assert prediction.measured == [[0, 1.125], [1, 1.125]]
    prediction.answer = [[60.4, 1], [49.6, 1]]  # in order, at the nearest places
    assert repr(prediction.compare([0, 50, 60, 100], [9, 2, 2, 9])) == words.format(1, "mostly below", "it is a valley")
    assert repr(prediction.compare([70, 100], [1, 1])) == "You drew nothing where it was measured."


def test_along_a_logarithmic_axis_each_doubling_counts_as_much():
    prediction = CurvePrediction("How many?", ("experts", 1, 64), ("share", 0, 6), log_x=True)
    assert [text for _, text in prediction.ticks[0]] == ["1", "2", "4", "8", "16", "32", "64"]
    assert [part for part, _ in prediction.ticks[0]] == pytest.approx(np.arange(7) / 6)
    prediction.answer = [[1, 0], [64, 6]]
    assert repr(prediction.compare([1, 2, 4, 8, 16, 32, 64], range(7))).startswith("Your curve is 0 away")


@pytest.mark.parametrize("way", ["answered", "skipped"])
def test_in_a_notebook_what_happened_waits_for_an_answer_or_for_skip(kind, way, monkeypatch):
    monkeypatch.setattr(question, "in_notebook", lambda: True)
    prediction, view = MAKERS[kind](), W.HTML("a view")
    outcome = {"choice": ("some",), "number": (5,), "curve": ([0, 100], [4, 2])}[kind]
    waiting = [prediction.compare(*outcome), prediction.reveal(view)]
    for one in waiting:
        (bar,) = one.children
        assert "Answer above, or skip" in bar.children[0].value
    assert "<details>" in waiting[0].still() and "What happened" in repr(waiting[0])  # where the page is saved
    if way == "answered":
        prediction.answer = ANSWERS[kind]
        assert prediction.reveal(view) is view and "You " in prediction.compare(*outcome)
    else:
        waiting[1].children[0].children[1].click()
        assert prediction.reveal(view) is view
    (said,), (shown,) = (one.children for one in waiting)
    text = said.outputs[0]["data"]["text/markdown"]
    assert ("<details>" not in text) and re.search("appened|predicted", text) and shown is view
    for name, value in (("MOE_LESSONS_PROGRESS", "off"), ("MOE_LESSONS_STATIC", "1")):
        monkeypatch.setenv(name, value)
        assert MAKERS[kind]().reveal(view) is view and isinstance(MAKERS[kind]().compare(*outcome), str)


@pytest.mark.parametrize("way", ["answered", "a cell waits for it"])
def test_a_view_that_answers_trains_from_the_answer_on_or_when_a_cell_waits_for_it(way, monkeypatch):
    monkeypatch.setattr(question, "in_notebook", lambda: True)

    async def steps() -> list[int]:
        prediction, view = MAKERS["choice"](), CollapseLab(play=5)
        waiting = prediction.reveal(view)
        await asyncio.sleep(0.2)
        found = [view.step]
        if way == "answered":
            prediction.answer = "all"
            assert waiting.children == (view,)
            while view.step < 5:
                await asyncio.sleep(0.02)
        else:
            await view.finished()
            assert view not in waiting.children
            prediction.skipped = True
            await asyncio.sleep(0.2)
            assert waiting.children == (view,)
        found.append(view.step)
        view.close()
        return found

    assert asyncio.run(asyncio.wait_for(steps(), 30)) == [0, 5]


def test_what_is_printed_before_an_answer_waits_too(monkeypatch):
    shown, prediction = [], Prediction(QUESTION, OPTIONS)
    monkeypatch.setattr(question, "in_notebook", lambda: True)
    monkeypatch.setattr(question, "display", shown.append)
    with prediction.reveal():
        pass
    prediction.answer = "all"
    (held,) = shown[0].children
    assert isinstance(held, W.Output)
