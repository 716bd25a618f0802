"""The pictures of cost show the numbers they are given, without overlap."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from moe_lessons.analysis.counting import MODEL_SHAPES, ParameterCount, published_models
from moe_lessons.analysis.roofline import machines, published_sizes, sizes_of
from moe_lessons.plots.parameters import (
    cost_table,
    parameter_bars,
    parameter_growth,
    published_features,
    published_models_scatter,
    share_bars,
    speed_bars,
)

MIXTRAL = MODEL_SHAPES["Mixtral 8x7B"]


def test_each_published_model_is_a_point_with_a_name_that_covers_no_other():
    frame = published_models()
    ax = published_models_scatter(frame, theme="dark")
    points = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])
    table = np.column_stack([frame.total_params, frame.active_params]) / 1e9
    np.testing.assert_allclose(points[points[:, 0].argsort()], table[table[:, 0].argsort()])
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text() in set(frame.name)]
    assert len(boxes) == 16
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert ax.figure.bbox.x0 <= box.x0 and box.x1 <= ax.figure.bbox.x1


@pytest.mark.parametrize("name", MODEL_SHAPES)
def test_bars_add_up_and_a_name_in_a_bar_fits_into_it(name):
    shape = MODEL_SHAPES[name]
    ax = parameter_bars(shape.parameters())
    assert sum(bar.get_width() for bar in ax.patches) == shape.count.total + shape.count.active
    ax.figure.canvas.draw()
    bars = [bar.get_window_extent() for bar in ax.patches]
    inside = [text.get_window_extent() for text in ax.texts if text.get_ha() == "center" and text.get_text()]
    assert inside and all(any(bar.x0 <= text.x0 and text.x1 <= bar.x1 for bar in bars) for text in inside)


def test_shares_of_each_row_add_up():
    rows = {"parameters": {"FFN": 60, "attention": 30, "embedding": 10, "head": 0}, "work": {"FFN": 97, "attention": 3}}
    ax = share_bars(rows)
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
    sizes = {name: sizes_of(shape) for name, shape in shapes.items()}
    table = cost_table(sizes, 131072, "bfloat16", machines().loc["NVIDIA H100 SXM"])
    assert table.columns == ("moe", "active", "total")
    rows = dict(zip(table.rows, table.cells))
    assert rows["total parameters"] == ["46.7 B", "12.9 B", "46.7 B"]
    assert rows["weights in bfloat16"] == ["93.4 GB", "25.8 GB", "93.4 GB"]
    assert rows["KV cache of 1 text of 131,072 tokens"] == ["17.2 GB"] * 3  # no expert has a part in it
    assert rows["fits into 80 GB"] == ["no", "yes", "no"]
    large = cost_table({"large": published_sizes()["DeepSeek-V3"]}, 8, "float32", machines().iloc[0])
    assert large.cells[4] == ["2,684 GB"]
    unknown = {"unknown": replace(sizes["moe"], cached=None)}
    assert cost_table(unknown, 8, "fp8", machines().iloc[0]).cells[5] == ["not counted"]


def test_growth_and_times_are_drawn_as_they_are():
    total, active = parameter_growth({2: ParameterCount(10, 10), 4: ParameterCount(20, 12)}).lines
    assert total.get_xydata().tolist() == [[2, 10], [4, 20]] and active.get_xydata().tolist() == [[2, 10], [4, 12]]
    ax = speed_bars(pd.DataFrame({"model": ["MoE", "dense"], "tokens_per_second": [195.2, 44.0]}))
    assert [bar.get_width() for bar in ax.patches] == [195.2, 44.0]
    assert [text.get_text() for text in ax.texts] == ["195", "44"]


def test_published_features_stand_in_their_year_at_their_number_of_experts():
    frame = published_models()
    ax = published_features(frame, theme="dark")
    points = [tuple(point) for group in ax.collections for point in group.get_offsets()]
    assert sorted((int(year), experts) for year, experts in points) == sorted(zip(frame.year, frame.num_experts))
    assert len(set(points)) == len(frame)
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "sigmoid, fine, shared" in legend and "softmax, wide, shared" not in legend
    assert any("DeepSeek-V3 (8 of 256)" == text.get_text() for text in ax.texts)
