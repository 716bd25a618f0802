"""A prediction: nothing is chosen for you, what you chose is kept, and it is compared with what happened."""

import pytest

from moe_lessons.widgets import Prediction, predict

QUESTION, OPTIONS = "How many experts will be left?", ("all", "some", "one")


@pytest.fixture
def prediction(monkeypatch, on_a_page) -> Prediction:
    monkeypatch.setattr(predict, "_answers", {})
    return Prediction(QUESTION, OPTIONS)


def test_it_says_what_was_predicted_and_what_happened(prediction):
    assert repr(prediction.compare("some")) == "What happened: some."
    for choice, second in (("some", "As you predicted"), ("all", "What happened")):
        prediction.radio.value = choice
        assert repr(prediction.compare("some")) == f"You predicted: {choice}.\n{second}: some."


def test_the_button_that_is_pressed_is_the_value_also_when_the_cell_runs_again(prediction):
    prediction.radio.index = 1
    assert Prediction(QUESTION, OPTIONS).radio.value == "some"
    assert Prediction("Another question?", OPTIONS).radio.value is None
    assert Prediction(QUESTION, ("few", "many")).radio.value is None  # it is no longer offered
    with pytest.raises(ValueError, match="outcome must be one of 'all', 'some', 'one', got 'none'"):
        prediction.compare("none")


def test_who_has_not_predicted_yet_unfolds_what_happened(prediction):
    folded = "<details><summary>What happened</summary>\n\nWhat happened: some.\n\n</details>"
    assert prediction.compare("some")._repr_mimebundle_()["text/markdown"] == folded
    prediction.radio.value = "some"
    assert not hasattr(prediction.compare("some"), "_repr_mimebundle_")


def test_a_live_page_gets_the_widget_and_a_static_one_lists_the_options(prediction, monkeypatch):
    assert "application/vnd.jupyter.widget-view+json" in prediction._repr_mimebundle_()
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1")
    data = prediction._repr_mimebundle_()
    assert set(data) == {"text/plain", "text/markdown"}
    assert data["text/markdown"] == f"**Predict.** {QUESTION}\n\n- all\n- some\n- one"


def test_its_repr_makes_the_same_question_which_is_text_and_not_html():
    again = eval(repr(Prediction("Is 1 < 2 & 2 < 3?", OPTIONS)))
    assert (again.question, again.options) == ("Is 1 < 2 & 2 < 3?", OPTIONS)
    assert "Is 1 &lt; 2 &amp; 2 &lt; 3?" in again.children[0].value
