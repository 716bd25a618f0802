"""The pictures of the benchmark show the ratios that they are given."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from moe_lessons.analysis.timing import Ratio
from moe_lessons.plots import THEMES, cost_by_experts, time_ratios

ROWS = {
    "small": {"dense": Ratio(4, 3, 5), "loop": Ratio(9, 8, 12)},
    "large": {"loop": Ratio(1.1, 1.05, 1.2), "HF eager": Ratio(1.5, 1.4, 1.6)},
}
GROWTH = {"forward": [Ratio(1, 1, 1), Ratio(1.2, 1.1, 1.3)], "forward + backward": [Ratio(1, 1, 1), Ratio(2, 1.5, 3)]}


def points(ax):
    """For each way the medians and the rows they stand in."""
    return {line.get_label(): line.get_xydata() for line in ax.lines if not line.get_label().startswith("_")}


def test_a_point_for_every_ratio_in_the_band_of_its_row():
    found = points(time_ratios(ROWS))
    assert list(found) == ["dense", "loop", "HF eager"]
    for way, xy in found.items():
        rows = [i for i, ratios in enumerate(ROWS.values()) if way in ratios]
        np.testing.assert_allclose(xy[:, 0], [list(ROWS.values())[i][way].median for i in rows])
        np.testing.assert_array_equal(np.round(xy[:, 1]), rows)


def test_bars_go_from_quartile_to_quartile():
    ax = time_ratios(ROWS)
    bars = [segment[:, 0] for c in ax.collections if isinstance(c, LineCollection) for segment in c.get_segments()]
    wanted = [(r.low, r.high) for way in points(ax) for ratios in ROWS.values() if (r := ratios.get(way))]
    np.testing.assert_allclose(bars, wanted)


def test_ways_keep_their_colour_where_some_are_missing():
    ways = ["dense", "padded", "loop", "HF eager"]
    colors = [
        {line.get_label(): line.get_color() for line in time_ratios(rows, ways).lines}
        for rows in (ROWS, {"large": ROWS["large"]})
    ]
    assert colors[0]["loop"] == colors[1]["loop"] and colors[0]["HF eager"] == colors[1]["HF eager"]
    assert len({colors[0][way] for way in points(time_ratios(ROWS, ways))}) == 3


def test_no_two_of_many_ways_look_alike():
    ax = time_ratios({"row": {f"way {i}": Ratio(1 + i, 1, 12) for i in range(10)}})
    looks = [(line.get_color(), line.get_marker()) for line in ax.lines if line.get_label().startswith("way")]
    assert len(looks) == len(set(looks)) == 10


def test_rows_are_named_from_top_to_bottom_and_equal_is_marked():
    ax = time_ratios(ROWS)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(ROWS)
    assert ax.yaxis_inverted() and ax.get_xscale() == "log"
    assert any(line.get_linestyle() == "--" and set(line.get_xdata()) == {1} for line in ax.lines)


@pytest.mark.parametrize("high", [12, 4000])
def test_tick_labels_do_not_touch(high):
    ax = time_ratios({"one": {"loop": Ratio(2, 0.05, high)}, "two": {"loop": Ratio(2, 1, 3)}})
    ax.figure.canvas.draw()
    left, right = ax.get_xlim()
    shown = [label for label in ax.get_xticklabels() if left <= label.get_position()[0] <= right]
    labels = [label.get_window_extent() for label in shown if label.get_text()]
    assert len(labels) >= 2
    assert not any(a.overlaps(b) for a, b in zip(labels, labels[1:]))


def test_cost_by_experts_shows_the_medians_and_starts_at_zero():
    ax = cost_by_experts([8, 64], GROWTH)
    for name, xy in points(ax).items():
        np.testing.assert_allclose(xy, [(e, r.median) for e, r in zip((8, 64), GROWTH[name])])
    assert ax.get_ylim()[0] == 0 and ax.get_ylim()[1] >= 3
    assert [label.get_text() for label in ax.get_xticklabels()] == ["8", "64"]
    assert "E = 8" in ax.get_title(loc="left")


@pytest.mark.parametrize("theme", THEMES)
def test_they_draw_into_given_axes(theme):
    axes = Figure().subplots(2)
    assert time_ratios(ROWS, ax=axes[0], theme=theme) is axes[0]
    assert cost_by_experts([8, 64], GROWTH, axes[1], theme) is axes[1]
    assert axes[0].xaxis.label.get_color() == THEMES[theme].foreground


def test_an_unknown_theme():
    with pytest.raises(ValueError, match="theme must be one of"):
        time_ratios(ROWS, theme="pink")
