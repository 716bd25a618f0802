"""A prediction: nothing is chosen for you, what you chose is kept, and it is compared with what happened."""

import asyncio
import re
from base64 import b64decode

import ipywidgets as W
import numpy as np
import pytest
from traitlets import TraitError

from moe_lessons.course import CurvePrediction, NumberPrediction, Prediction, progress, question
from moe_lessons.plots import LessonFigure
from moe_lessons.widgets import CollapseLab

pytestmark = pytest.mark.usefixtures("own_progress")
QUESTION, OPTIONS = "How many experts will be left?", ("all", "some", "one")
X, Y = ("step", 0, 100), ("loss, nats", 0, 4)
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


def test_a_choice_is_set_beside_what_happened():
    prediction = Prediction(QUESTION, OPTIONS)
    assert "<details>" in prediction.compare("some")._repr_markdown_()
    said = {}
    for choice in ("some", "all"):
        prediction.answer = choice
        said[choice] = repr(prediction.compare("some"))
        assert repr(prediction.compare("some", "3 of 8")) == f"{said[choice]}\nMeasured: 3 of 8."
        assert choice in said[choice] and said[choice].endswith(": some.")
    assert said["some"].replace("some", "all") != said["all"]


@pytest.mark.parametrize(
    "answer, value, numbers",
    [(93.4, 93.412, ["93.4"]), (1500, 46_702, ["1,500", "46,700", "45,200", "31"]), (0, 5, ["0", "5", "5"])],
)
def test_a_number_is_compared_by_difference_and_by_factor(answer, value, numbers):
    prediction = NumberPrediction("How large?", "GB", 0, 2000)
    prediction.answer = answer
    assert re.findall(r"\d[\d,.]*\d|\d", repr(prediction.compare(value))) == numbers


@pytest.mark.parametrize(
    "unit, said",
    [("%", "1 point more"), ("%", "10.4 points less"), ("×", "1.6 less"), ("times", "1.6 less"), ("GB", "1.6 GB less")],
)
def test_percentages_differ_by_points_and_ratios_by_a_number(unit, said):
    by = float(said.split()[0]) * (1 if "more" in said else -1)
    prediction = NumberPrediction("How much?", unit, 0, 100)
    prediction.answer = 20
    assert repr(prediction.compare(20 + by)).endswith(f"That is {said} than you said.")


def test_what_is_right_is_said_to_be_and_what_is_not_is_not(kind):
    prediction = MAKERS[kind]()
    outcome = {"choice": ("some",), "number": (3,), "curve": ([0, 50, 100], [4, 1, 1])}[kind]
    prediction.answer = ANSWERS[kind]
    said = prediction.compare(*outcome)
    assert said.startswith("✔") == (kind != "curve")
    prediction.answer = {"choice": "all", "number": 4, "curve": [[0, 1], [100, 1]]}[kind]
    assert said != prediction.compare(*outcome) and not prediction.compare(*outcome).startswith("✔")


def test_a_curve_is_compared_where_both_are():
    prediction = CurvePrediction("How does it fall?", X, Y)

    def said(answer, x, y) -> str:
        prediction.answer = answer
        return repr(prediction.compare(x, y))

    assert "from 4 at 0 to 2 at 100" in repr(prediction.compare([0, 100], [4, 2])) and prediction.measured == []
    words = said([[0, 4], [100, 4]], [0, 100], [4, 2])
    assert "1 away" in words and "above" in words and "level" in words and "a fall" in words
    assert prediction.measured == [[0, 1], [1, 0.5]]  # it is shown once there is an answer
    words = said([[0, 4], [100, 4]], [0, 100], [4.5, 4.5])
    assert "0.5 away (loss, nats)" in words and "below" in words and prediction.measured == [[0, 1.125], [1, 1.125]]
    words = said([[60.4, 1], [49.6, 1]], [0, 50, 60, 100], [9, 2, 2, 9])  # in order, at the nearest places
    assert "1 away" in words and "below" in words and "a valley" in words
    assert "nothing" in said([[60.4, 1], [49.6, 1]], [70, 100], [1, 1])


def test_along_a_logarithmic_axis_each_doubling_counts_as_much():
    prediction = CurvePrediction("How many?", ("experts", 1, 64), ("share", 0, 6), log_x=True)
    assert [text for _, text in prediction.ticks[0]] == ["1", "2", "4", "8", "16", "32", "64"]
    assert [part for part, _ in prediction.ticks[0]] == pytest.approx(np.arange(7) / 6)
    prediction.answer = [[1, 0], [64, 6]]
    assert repr(prediction.compare([1, 2, 4, 8, 16, 32, 64], range(7))).startswith("Your curve is on average 0 away")
    percent = CurvePrediction("How accurate?", X, ("accuracy, %", 0, 100))
    percent.answer = [[0, 40], [100, 44]]
    assert " 2 points away, mostly above" in repr(percent.compare([0, 100], [40, 40]))


@pytest.mark.parametrize("way", ["answered", "skipped"])
def test_in_a_notebook_what_happened_waits_for_an_answer_or_for_skip(kind, way, monkeypatch):
    monkeypatch.setattr(question, "in_notebook", lambda: True)
    prediction, view = MAKERS[kind](), W.HTML("a view")
    outcome = {"choice": ("some",), "number": (5,), "curve": ([0, 100], [4, 2])}[kind]
    waiting = [prediction.compare(*outcome), prediction.reveal(view)]
    assert "<details>" in waiting[0].still()  # where the page is saved
    if way == "answered":
        prediction.answer = ANSWERS[kind]
    else:
        waiting[1].children[0].children[1].click()
    (said,), (shown,) = (one.children for one in waiting)
    assert "<details>" not in said.outputs[0]["data"]["text/markdown"] and shown is view
    assert prediction.reveal(view) is view
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
            unseen = view.main_run
            prediction.skipped = True
            while view.main_run is unseen or view.running:
                await asyncio.sleep(0.02)
            assert waiting.children == (view,) and view.state.ghost is None  # it trains again, before one's eyes
        found.append(view.step)
        view.close()
        return found

    assert asyncio.run(asyncio.wait_for(steps(), 30)) == [0, 5]


def test_a_figure_that_waited_is_shown_as_a_picture(monkeypatch):
    monkeypatch.setattr(question, "in_notebook", lambda: True)
    prediction = Prediction(QUESTION, OPTIONS)
    waiting = prediction.reveal(LessonFigure(2, 2))
    prediction.skipped = True
    (shown,) = waiting.children
    assert b64decode(shown.outputs[0]["data"]["image/png"]).startswith(b"\x89PNG")


def test_what_is_printed_before_an_answer_waits_too(monkeypatch):
    shown, prediction = [], Prediction(QUESTION, OPTIONS)
    monkeypatch.setattr(question, "in_notebook", lambda: True)
    monkeypatch.setattr(question, "display", shown.append)
    with prediction.reveal():
        pass
    prediction.answer = "all"
    (held,) = shown[0].children
    assert isinstance(held, W.Output)
