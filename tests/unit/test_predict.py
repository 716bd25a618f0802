"""A prediction: nothing is chosen for you, what you chose is kept, and it is compared with what happened."""

import pytest

from moe_lessons.widgets import Prediction, predict

QUESTION, OPTIONS = "How many experts will be left?", ("all", "some", "one")


@pytest.fixture(autouse=True)
def no_answers(monkeypatch):
    monkeypatch.setattr(predict, "_answers", {})
    monkeypatch.delenv("MOE_LESSONS_STATIC", raising=False)


def test_nothing_is_chosen_at_first():
    assert Prediction(QUESTION, OPTIONS).value is None


def test_without_a_prediction_it_says_what_happened():
    outcome = Prediction(QUESTION, OPTIONS).compare("some")
    assert repr(outcome) == "You made no prediction.\nWhat happened: some."


@pytest.mark.parametrize("choice, second_line", [("some", "As you predicted: some."), ("all", "What happened: some.")])
def test_it_compares(choice, second_line):
    prediction = Prediction(QUESTION, OPTIONS)
    prediction.value = choice
    assert repr(prediction.compare("some")) == f"You predicted: {choice}.\n{second_line}"


def test_the_button_that_is_pressed_is_the_value():
    prediction = Prediction(QUESTION, OPTIONS)
    prediction._radio.index = 2
    assert prediction.value == "one"


def test_running_the_cell_again_keeps_the_answer():
    Prediction(QUESTION, OPTIONS).value = "some"
    assert Prediction(QUESTION, OPTIONS).value == "some"
    assert Prediction("Another question?", OPTIONS).value is None


def test_an_answer_that_is_no_longer_offered_is_forgotten():
    Prediction(QUESTION, OPTIONS).value = "some"
    assert Prediction(QUESTION, ("few", "many")).value is None


def test_what_is_not_offered_is_refused():
    prediction = Prediction(QUESTION, OPTIONS)
    with pytest.raises(ValueError, match="value must be one of 'all', 'some', 'one', got 'none'"):
        prediction.value = "none"
    with pytest.raises(ValueError, match="outcome must be one of 'all', 'some', 'one', got 'none'"):
        prediction.compare("none")
    assert prediction.value is None


def test_a_static_page_lists_the_options_and_has_no_widget(monkeypatch):
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1")
    data = Prediction(QUESTION, OPTIONS)._repr_mimebundle_()
    assert set(data) == {"text/plain", "text/markdown"}
    assert data["text/markdown"] == f"**Predict.** {QUESTION}\n\n- all\n- some\n- one"


def test_a_live_page_gets_the_widget():
    assert "application/vnd.jupyter.widget-view+json" in Prediction(QUESTION, OPTIONS)._repr_mimebundle_()


def test_its_repr_makes_the_same_question():
    again = eval(repr(Prediction(QUESTION, OPTIONS)))
    assert (again.question, again.options) == (QUESTION, OPTIONS)


def test_the_question_is_text_and_not_html():
    prediction = Prediction("Is 1 < 2 & 2 < 3?", ("yes", "no"))
    assert "Is 1 &lt; 2 &amp; 2 &lt; 3?" in prediction.children[1].value
