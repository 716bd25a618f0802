"""Text and losses are drawn as they are, in both themes, and stay inside the picture."""

import io
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure

from moe_lessons.plots import THEMES, WrittenText, attention_heatmap, byte_losses, written_text


@pytest.mark.parametrize("theme", THEMES)
def test_every_plot_draws_into_given_axes(theme):
    axes = Figure().subplots(3)
    assert written_text({"a": "b"}, ax=axes[0], theme=theme) is axes[0]
    assert byte_losses("ab", [1, 2], axes[1], theme) is axes[1]
    assert attention_heatmap(np.eye(2), "ab", axes[2], theme) is axes[2]


def test_text_is_wrapped_and_what_cannot_be_seen_is_marked():
    panel = WrittenText(Figure().subplots(), names=("one", "two"), width=4, lines=2)
    panel.update(["ab\ncd\x00 $e$", "αβ�鞖"])
    assert [text.get_text() for text in panel.texts] == ["ab↵c\nd· $", "αβ�·"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a letter that its font does not have
        panel.ax.figure.savefig(io.BytesIO())
    with pytest.raises(ValueError):
        panel.update(["only one"])


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
