"""Text and losses are drawn as they are, in both themes, and stay inside the picture."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from moe_lessons.nn import LanguageModel, TransformerConfig, seeded
from moe_lessons.plots import PANELS, THEMES, attention_heatmap, byte_losses, write, writing, written_text
from moe_lessons.tasks import PRESETS, TextTask
from moe_lessons.training import Run, plane_runs


@pytest.mark.parametrize("theme", THEMES)
def test_every_plot_draws_into_given_axes(theme):
    axes = Figure().subplots(3)
    assert written_text({"a": "b"}, ax=axes[0], theme=theme) is axes[0]
    assert byte_losses("ab", [1, 2], axes[1], theme) is axes[1]
    assert attention_heatmap(np.eye(2), "ab", axes[2], theme) is axes[2]


def test_text_is_wrapped_and_what_cannot_be_seen_is_marked():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a letter that its font does not have
        ax = written_text({"one": "ab\ncd\x00 $e$", "two": "αβ�鞖" * 40})
        ax.figure.png()
    texts = [text.get_text() for text in ax.texts]
    assert texts[:3] == ["one", "two", "ab↵cd· $e$"] and "".join(texts[3:]) == "αβ�·" * 40
    assert ax.get_title(loc="left") == "What it writes"


def test_a_model_goes_on_from_prompts_of_a_view():
    with seeded(0):
        model = LanguageModel(TransformerConfig(d_model=16, num_layers=1, d_ff=8, num_experts=2))
    run = Run(model, TextTask(["english", "code"]))
    view = SimpleNamespace(main_run=run)
    (text,) = writing({"a": "The ", "b": "def "}, num_bytes=6)(view).marks
    assert list(text.texts) == [write(model, prompt, 6) for prompt in ("The ", "def ")] and text.names == ("a", "b")
    (text,) = PANELS["writing"](view).marks
    assert text.names == ("english", "code") and all(len(written) > 60 for written in text.texts)
    with pytest.raises(ValueError, match="model must be a LanguageModel where it writes, got PlaneClassifier"):
        PANELS["writing"](SimpleNamespace(main_run=plane_runs(PRESETS["healthy"])["MoE"]))
    bytes_only = SimpleNamespace(batch=run.task.batch)
    with pytest.raises(ValueError, match="task must be a TextTask where the model writes, got SimpleNamespace"):
        PANELS["writing"](SimpleNamespace(main_run=Run(model, bytes_only)))


@pytest.mark.parametrize("theme", THEMES)
def test_the_lines_stay_in_their_place(theme):
    """Full lines of the widest signs, two dollars among them: no text reaches another or the edge."""
    ax = written_text({name: "$W_" * 100 for name in ("english", "code", "json", "greek")}, theme=theme)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert ax.figure.bbox.y0 <= box.y0 and box.x1 <= ax.figure.bbox.x1


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
