"""The pictures of cost show the numbers they are given, in both themes, without overlap."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from moe_lessons.analysis.cost import MODEL_SHAPES, ParameterCount, published_models
from moe_lessons.analysis.timing import step_times
from moe_lessons.plots.cost import (
    parameter_bars,
    parameter_growth,
    published_models_scatter,
    shape_costs,
    share_bars,
    short_number,
    step_time_bars,
)
from moe_lessons.plots.theme import THEMES

MIXTRAL = MODEL_SHAPES["Mixtral 8x7B"]
GROWTH = {2: ParameterCount(10, 10), 4: ParameterCount(20, 10)}


@pytest.mark.parametrize("theme", THEMES)
def test_points_are_where_the_table_says(theme):
    frame = published_models()
    ax = published_models_scatter(frame, theme=theme)
    points = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])
    table = np.column_stack([frame.total_params, frame.active_params]) / 1e9
    np.testing.assert_allclose(points[points[:, 0].argsort()], table[table[:, 0].argsort()])


def test_names_cover_neither_each_other_nor_leave_the_picture():
    ax = published_models_scatter(published_models())
    ax.figure.canvas.draw()
    names = set(published_models().name)
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text() in names]
    assert len(boxes) == 16
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert ax.figure.bbox.x0 <= box.x0 and box.x1 <= ax.figure.bbox.x1


@pytest.mark.parametrize("name", MODEL_SHAPES)
def test_bars_add_up(name):
    shape = MODEL_SHAPES[name]
    widths = [bar.get_width() for bar in parameter_bars(shape.parameters()).patches]
    assert sum(widths) == shape.count.total + shape.count.active


@pytest.mark.parametrize("name", MODEL_SHAPES)
def test_a_name_in_a_bar_fits_into_it(name):
    ax = parameter_bars(MODEL_SHAPES[name].parameters())
    ax.figure.canvas.draw()
    bars = [bar.get_window_extent() for bar in ax.patches]
    inside = [text.get_window_extent() for text in ax.texts if text.get_ha() == "center"]
    assert inside
    for text in inside:
        assert any(bar.x0 <= text.x0 and text.x1 <= bar.x1 for bar in bars)


@pytest.mark.parametrize("theme", THEMES)
def test_shares_of_each_row_add_up(theme):
    rows = {"parameters": {"FFN": 60, "attention": 30, "embedding": 10, "head": 0}, "work": {"FFN": 97, "attention": 3}}
    ax = share_bars(rows, theme=theme)
    bars = [bar for bar in ax.patches if bar.get_width() > 0]
    assert [round(bar.get_width(), 6) for bar in bars] == [0.6, 0.97, 0.3, 0.03, 0.1]
    assert bars[4].get_x() + bars[4].get_width() == pytest.approx(1) and bars[0].get_y() < bars[1].get_y()
    assert ax.yaxis_inverted() and {text.get_text() for text in ax.texts} >= {"60%", "30%", "10%", "97%"}
    legend = ax.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["FFN", "attention", "embedding"]
    colors = {text.get_text(): h.get_facecolor() for text, h in zip(legend.get_texts(), legend.legend_handles)}
    assert colors["FFN"] == bars[0].get_facecolor() == bars[1].get_facecolor() != colors["attention"]


def test_costs_of_twins():
    shapes = {"moe": MIXTRAL, "active": MIXTRAL.dense_twin("active"), "total": MIXTRAL.dense_twin("total")}
    rows = shape_costs(shapes)
    assert rows["total parameters"] == {"moe": "46.7 B", "active": "12.9 B", "total": "46.7 B"}
    assert rows["memory in bfloat16"] == {"moe": "93.4 GB", "active": "25.8 GB", "total": "93.4 GB"}


@pytest.mark.parametrize("theme", THEMES)
def test_every_plot_draws_into_given_axes(theme):
    axes = Figure().subplots(3)
    times = step_times({"linear": torch.nn.Linear(4, 4)}, torch.randn(2, 4), repeats=3)
    assert parameter_bars(MIXTRAL.parameters(), axes[0], theme) is axes[0]
    assert parameter_growth(GROWTH, axes[1], theme) is axes[1]
    assert step_time_bars(times, axes[2], theme) is axes[2]


@pytest.mark.parametrize(
    "number, text",
    [(0, "0"), (999, "999"), (999.9, "1 K"), (1000, "1 K"), (98_816, "98.8 K"), (999_949, "1 M"), (1.5e12, "1.5 T")],
)
def test_short_number(number, text):
    assert short_number(number) == text


def test_step_times_restore_the_threads_and_check_their_arguments():
    before = torch.get_num_threads()
    times = step_times({"a": torch.nn.Linear(4, 4), "b": torch.nn.Linear(4, 4)}, torch.randn(2, 4), 5, threads=1)
    assert torch.get_num_threads() == before
    assert {name: len(values) for name, values in times.items()} == {"a": 5, "b": 5}
    assert min(times["a"]) > 0
    with pytest.raises(ValueError, match="repeats must be a whole number of at least 1, got 0"):
        step_times({}, torch.randn(2, 4), repeats=0)
