"""Text and losses are drawn as they are, and stay inside the picture."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from moe_lessons.nn import LanguageModel, TransformerConfig, seeded
from moe_lessons.plots import PANELS, attention_heatmap, byte_losses, write, writing
from moe_lessons.plots.panels.writing import written_panel
from moe_lessons.plots.still import plot
from moe_lessons.tasks import TextTask
from moe_lessons.training import PRESETS, Run, plane_runs


def test_text_is_wrapped_stays_in_the_picture_and_what_cannot_be_seen_is_marked():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a letter that its font does not have
        passages = {"one": "ab\ncd\x00 $e$", "two": "αβ�鞖" * 40, "three": "$W_" * 100}
        ax = plot(written_panel(passages, passages.values()), None, "dark", 8)
        ax.figure.png()
    texts = [text.get_text() for text in ax.texts]
    assert texts[:3] == ["one", "two", "three"]
    assert "".join(texts[3:]) == "ab↵cd·$e$" + "αβ�·" * 40 + "$W_" * 100
    assert ax.get_title(loc="left") == "What it writes"
    boxes = [text.get_window_extent() for text in ax.texts]
    assert min(box.y0 for box in boxes) >= 0 and max(box.x1 for box in boxes) <= ax.figure.bbox.x1
    assert not any(box.overlaps(other) for box, other in zip(boxes[3:], boxes[4:]))


def test_a_model_goes_on_from_prompts_of_a_view():
    with seeded(0):
        model = LanguageModel(TransformerConfig(d_model=16, num_layers=1, d_ff=8, num_experts=2))
    run = Run(model, TextTask(["english", "code"]))
    view = SimpleNamespace(main_run=run)
    (text,) = writing({"a": "The ", "b": "def "}, num_bytes=6)(view).marks
    assert list(text.texts) == [write(model, prompt, 6) for prompt in ("The ", "def ")] and text.names == ("a", "b")
    (text,) = PANELS["writing"](view).marks
    assert text.names == ("english", "code") and all(len(written) > 60 for written in text.texts)
    for other in (plane_runs(PRESETS["healthy"])["MoE"], Run(model, SimpleNamespace(batch=run.task.batch))):
        with pytest.raises(ValueError, match="must be a LanguageModel with a TextTask where it writes, got"):
            PANELS["writing"](SimpleNamespace(main_run=other))


def test_a_bar_over_each_character():
    ax = byte_losses('{"a\n ', [0.5, 0, 2, 1, 0.1])
    assert [bar.get_height() for bar in ax.patches] == [0.5, 0, 2, 1, 0.1]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["{", '"', "a", "↵", "␣"]
    with pytest.raises(ValueError, match="losses must have one number for each of the 3 characters, got 2"):
        byte_losses("abc", [1, 2])


def test_a_row_for_each_token():
    weights = np.array([[1.0, 0.0], [0.25, 0.75]])
    ax = attention_heatmap(weights, "a ")
    np.testing.assert_array_equal(ax.images[0].get_array(), weights)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "␣"]
    with pytest.raises(ValueError, match=r"weights must have the shape \(3, 3\) of the text, got \(2, 2\)"):
        attention_heatmap(weights, "abc")
