"""A prediction: nothing is chosen for you, what you chose is kept, and it is compared with what happened."""

import pytest

from moe_lessons.widgets import Prediction, predict

QUESTION, OPTIONS = "How many experts will be left?", ("all", "some", "one")


@pytest.fixture(autouse=True)
def no_answers(monkeypatch, on_a_page):
    monkeypatch.setattr(predict, "_answers", {})


def test_nothing_is_chosen_at_first_and_then_it_only_says_what_happened():
    prediction = Prediction(QUESTION, OPTIONS)
    assert prediction.value is None
    assert repr(prediction.compare("some")) == "You made no prediction.\nWhat happened: some."


@pytest.mark.parametrize("choice, second_line", [("some", "As you predicted: some."), ("all", "What happened: some.")])
def test_it_compares(choice, second_line):
    prediction = Prediction(QUESTION, OPTIONS)
    prediction.value = choice
    assert repr(prediction.compare("some")) == f"You predicted: {choice}.\n{second_line}"


def test_the_button_that_is_pressed_is_the_value_also_when_the_cell_runs_again():
    Prediction(QUESTION, OPTIONS)._radio.index = 1
    assert Prediction(QUESTION, OPTIONS).value == "some"
    assert Prediction("Another question?", OPTIONS).value is None
    assert Prediction(QUESTION, ("few", "many")).value is None  # it is no longer offered


def test_what_is_not_offered_is_refused():
    prediction = Prediction(QUESTION, OPTIONS)
    with pytest.raises(ValueError, match="value must be one of 'all', 'some', 'one', got 'none'"):
        prediction.value = "none"
    with pytest.raises(ValueError, match="outcome must be one of 'all', 'some', 'one', got 'none'"):
        prediction.compare("none")
    assert prediction.value is None


def test_a_live_page_gets_the_widget_and_a_static_one_lists_the_options(monkeypatch):
    assert "application/vnd.jupyter.widget-view+json" in Prediction(QUESTION, OPTIONS)._repr_mimebundle_()
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1")
    data = Prediction(QUESTION, OPTIONS)._repr_mimebundle_()
    assert set(data) == {"text/plain", "text/markdown"}
    assert data["text/markdown"] == f"**Predict.** {QUESTION}\n\n- all\n- some\n- one"


def test_its_repr_makes_the_same_question_which_is_text_and_not_html():
    again = eval(repr(Prediction("Is 1 < 2 & 2 < 3?", OPTIONS)))
    assert (again.question, again.options) == ("Is 1 < 2 & 2 < 3?", OPTIONS)
    assert "Is 1 &lt; 2 &amp; 2 &lt; 3?" in again.children[0].value
