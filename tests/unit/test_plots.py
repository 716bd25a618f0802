"""Figures of lessons show the numbers that they are given, in the colours of models and experts."""

import io
from base64 import b64decode
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from moe_lessons import plots
from moe_lessons.analysis.counting import MODEL_SHAPES, TransformerShape
from moe_lessons.analysis.releases import release_costs
from moe_lessons.analysis.roofline import published_speeds
from moe_lessons.nn import TopKRouter, apply_capacity, seeded
from moe_lessons.plots import costs, loads, speeds, sweeps
from moe_lessons.plots import theme as style
from moe_lessons.plots.job import plot_job
from moe_lessons.plots.theme import DARK, LIGHT, RED, expert_color, expert_hatch


def subplot():
    return plots.LessonFigure().add_subplot()


def heights(bars) -> list[float]:
    return [round(bar.get_height(), 9) for bar in bars]


def lines(ax) -> dict:
    return {line.get_label(): line.get_xydata() for line in ax.lines if not line.get_label().startswith("_")}


def band(ax) -> np.ndarray:
    """(N, 2): the lower and upper edge of the first band, from left to right."""
    vertices = pd.DataFrame(ax.collections[0].get_paths()[0].vertices)
    return vertices.groupby(0)[1].agg(["min", "max"]).to_numpy()


def test_models_and_experts_look_different():
    assert len({(expert_color(e), expert_hatch(e)) for e in range(32)}) == 32
    assert not {color.lower() for color in LIGHT.lines} & {expert_color(expert).lower() for expert in range(8)}


def test_a_figure_shows_itself_as_a_picture_with_a_name_and_a_dark_version():
    ax = costs.speed_bars(pd.DataFrame({"model": ["MoE", "dense"], "tokens_per_second": [195.2, 44.0]}))
    data, metadata = ax.figure._repr_mimebundle_()
    assert [bar.get_width() for bar in ax.patches] == [195.2, 44.0]
    said = metadata["image/png"]
    assert said["alt"] and set(data) == {"image/png", "text/plain"}
    pair = [
        np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        for png in map(b64decode, (data["image/png"], said["dark"]))
    ]
    assert pair[0].shape == pair[1].shape and pair[0].shape[1] == said["width"]
    at = [ax.transData.transform((10, bar.get_y() + bar.get_height() / 2)).round().astype(int) for bar in ax.patches]
    for picture, theme in zip(pair, (LIGHT, DARK)):
        found = [to_hex(picture[len(picture) - y, x] / 255) for x, y in ((0, len(picture)), *at)]
        assert found == [theme.background, *(theme.lines[ink] for ink in style.model_inks(["MoE", "dense"]))]


def test_in_a_dark_version_experts_keep_their_colours_and_shades_begin_near_the_background():
    figure = plots.LessonFigure(4, 2)
    ax = figure.subplots()
    ax.axis("off")
    shades = style.shades(LIGHT.background, LIGHT.directions[1])
    ax.imshow([[0, 1]], cmap=shades, extent=(0, 2, 0, 1), aspect="auto")
    ax.fill_between([0, 2], 1, 2, color=expert_color(0))
    light, dark = figure.png(), figure.dark_png()
    assert figure.png() == light  # it is light again
    picture = np.asarray(Image.open(io.BytesIO(b64decode(dark))).convert("RGB"))
    at = [ax.transData.transform(place).astype(int) for place in ((0.5, 0.5), (1.5, 0.5), (0.5, 1.5))]
    found = [to_hex(picture[len(picture) - y, x] / 255) for x, y in at]
    assert found == [style.between(0.16, DARK), DARK.directions[1], expert_color(0).lower()]


def test_each_release_stands_at_its_upper_edge():
    found = release_costs()
    ax = costs.edges_over_time(found, ["DeepSeek-V3"])
    heights = np.concatenate([np.reshape(c.get_offsets(), (-1, 2))[:, 1] for c in ax.collections])
    np.testing.assert_allclose(sorted(heights[heights > 0]), sorted(found.upper.dropna()))
    assert [text.get_text() for text in ax.texts if text.get_text()] == ["DeepSeek-V3"]


def test_the_parts_of_each_row_add_up():
    for shape in MODEL_SHAPES.values():
        (bars,) = costs.parameter_panel(shape.parameters()).marks
        assert bars.values.sum() == shape.count.total + shape.count.active
    ax = costs.share_bars({"parameters": {"FFN": 60, "attention": 40, "head": 0}, "work": {"FFN": 97, "head": 3}})
    assert [round(bar.get_width(), 6) for bar in ax.patches] == [0.6, 0.97, 0.4, 0, 0, 0.03]
    shape = TransformerShape(256, 64, 2, 4, 2, 16, 192)
    areas = np.prod(np.array(costs.layer_panel(shape, 64, "A layer").marks[1].places)[:, 2:], axis=1)
    work = (shape.flops_per_token(64) - 2 * 256 * 64) // 2
    np.testing.assert_allclose(areas / areas.sum() * work, [8192, 4096, 4096, 16384, 8192, *[24576] * 3])


def test_each_number_of_a_heatmap_and_of_a_layer_is_shown():
    ax = plots.attention_heatmap(np.array([[1.0, 0.0], [0.25, 0.75]]), "a\n")
    assert ax.images[0].get_array().tolist() == [[1, None], [0.25, 0.75]]
    bits = pd.DataFrame({"trained": [2.0, 1.5, 1.0], "shuffled": [0.0, 0.1, -0.1]}, index=[0, 1, 2])
    ax = loads.told_bars({"byte": bits, "domain": bits.iloc[:2] / 2})
    given = [*bits.to_numpy().ravel(), *(bits.iloc[:2] / 2).to_numpy().ravel()]
    assert heights(sorted(ax.patches, key=lambda bar: bar.get_x())) == given
    tables = (pd.DataFrame(rows, ["code", "sea"], ["E0", "E1"]) for rows in ([[0.9, 0.1], [0.2, 0.8]], [[0, 3]] * 2))
    found = [("90 10 20 80", [0, 1]), ("0.00 3.00 0.00 3.00", [1, 1])]
    for ax, (texts, framed) in zip(loads.muting_maps(*tables).axes, found):
        assert " ".join(text.get_text() for text in ax.texts) == texts
        assert [round(patch.get_x() + 0.46) for patch in ax.patches] == framed


def test_pictures_of_a_collapse_show_each_expert_each_seed_and_the_means():
    x, y = np.random.default_rng(0).random((2, 4, 3))
    for expert, points in enumerate(loads.share_scatter(x, y, ("x", "y"), "Shares").collections):
        np.testing.assert_allclose(points.get_offsets(), np.stack([x[:, expert], y[:, expert]], axis=1))
        assert to_hex(points.get_facecolor()[0]).upper() == expert_color(expert).upper()
    own, others = np.array([1.0, 0.25]), np.array([-0.5, -2.0])
    drawn = heights(loads.logit_gradient_bars(own, others, [0.02, 0.98], "Gradients", subplot()).patches)
    assert drawn[:2] == [1.0, 0.25] and {-0.5, -2.0} <= set(drawn)
    dots = loads.fates([[0.1, 0.9]], [[-2.0, 3.0]], [[True, False]]).collections
    assert [part.get_offsets().tolist() for part in dots] == [[[0.9, 3.0]], [[0.1, -2.0]]]  # lives on, dies
    ax = sweeps.dead_curves({"a": [[0, 1, 2], [0, 2, 4]]})
    assert ax.lines[0].get_xydata().tolist() == [[1, 0], [2, 1.5], [3, 3]]
    ax = sweeps.dead_curves({"a": [[0, 12]]}, steps=[25, 50], num_experts=24)
    assert ax.lines[0].get_xydata().tolist() == [[25, 0], [50, 12]]
    cells = pd.DataFrame(product(("sure", "random"), ("p", "p / sum"), (0.001, 0.01), (300, 600)))
    cells = cells.set_axis(["start", "weights", "lr", "step"], axis=1)
    (ax,) = sweeps.collapse_map(cells.assign(dead=np.arange(16)), ("random", "p / sum", 0.01)).axes
    assert [float(text.get_text()) for text in ax.texts] == [3, 7, 11, 15]  # of step 600 and this rate


def test_each_assignment_stands_in_its_place_and_what_is_dropped_is_framed(capacity=4):
    with seeded(1):
        routing = TopKRouter(8, 3, 2)(torch.randn(9, 8))
    ax = loads.buffers(apply_capacity(routing, capacity), capacity, "a title", subplot())
    assert routing.demand_per_expert.max() > capacity
    for expert, demand in enumerate(routing.demand_per_expert.tolist()):
        row = [p for p in ax.patches if p.get_y() == expert and p.get_facecolor()[3] > 0]
        assert sorted(p.get_x() for p in row) == list(range(demand))
        assert {to_hex(p.get_facecolor()) for p in row} <= {expert_color(expert).lower()}
        framed = [p.get_x() for p in row if to_hex(p.get_edgecolor()) == RED]
        assert sorted(framed) == list(range(capacity, demand))


def test_each_cell_says_what_a_rank_sends_and_the_title_how_much_the_busiest_gets():
    rows = torch.tensor([[10, 30, 0], [20, 20, 0], [5, 30, 5]])
    for even, times in ((None, "2 ×"), (64, "1.2 ×")):  # 80 of 120 rows on three ranks; of 64
        ax = loads.plot_exchange({"step": rows}, even)
        assert [int(text.get_text()) for text in ax.texts] == rows.flatten().tolist()
        assert times in ax.get_title(loc="left")


def test_quality_matched_widths_in_their_intervals_with_an_arrow_where_they_end_beyond_what_was_trained():
    ours = pd.DataFrame(
        [(2, 1.5, 3, 1, 8, "2 (1.5 to 3)"), (np.inf, 3, np.inf, 1, 4, "above 4 (3 to above 4)")],
        columns=["width", "low", "high", "narrowest", "widest", "said"], index=[64, 128],
    )  # fmt: skip
    ax = sweeps.width_rows(ours, pd.DataFrame({"width": [2.5]}, index=["theirs"]))
    drawn = [line.get_xydata().tolist() for line in ax.lines if len(line.get_xydata())]
    assert drawn[:5] == [[[1.5, 0], [3, 0]], [[2, 0]], [[3, 1], [4, 1]], [[4, 1]], [[2.5, 2]]]
    assert [line.get_marker() for line in ax.lines if len(line.get_xydata()) == 1] == ["o", ">", "D"]


def test_published_speeds_beside_what_was_promised():
    ax = speeds.plot_published_speeds(others := published_speeds())
    had = np.concatenate([lines(ax)[kind][:, 0] for kind in ("batch size 1", "full load", "training")])
    np.testing.assert_allclose(had, others.mixture_figure / others.dense_figure)


def test_a_sweep_over_seeds_has_their_mean_and_range():
    values = {0.01: [0.2, 0.4], 0.1: [0.5, 0.9], 10.0: [0.1, 0.1]}
    ax = sweeps.seed_sweep(values, "Accuracy", "coefficient", 0.3, subplot())
    np.testing.assert_allclose(lines(ax)["mean, and all seeds"], [[0.01, 0.3], [0.1, 0.7], [10, 0.1]])
    np.testing.assert_allclose(band(ax), [(0.2, 0.4), (0.5, 0.9), (0.1, 0.1)])
    assert list(lines(ax)["without"][:, 1]) == [0.3, 0.3]


def test_a_picture_of_strengths_has_the_means_and_ranges_of_the_last_step_and_each_line_its_name():
    rows = product(("no balancing", "jitter", "z-loss"), (1.0, 2.0), (100, 300), (0, 1))
    frame = pd.DataFrame(rows, columns=["method", "strength", "step", "seed"])
    frame.loc[frame.method == "no balancing", "strength"] = np.nan
    frame = frame.assign(dead=frame.index)
    drawn = sweeps.strength_multiples({"early": frame, "late": frame.assign(dead=0)}, {("z-loss", 2.0): "somebody"})
    early, late, unbalanced = (line.get_xydata() for line in drawn.axes[1].lines)
    own = frame[(frame.method == "z-loss") & (frame.step == 300)].groupby("strength").dead
    assert early[:, 1].tolist() == own.mean().tolist() and not late[:, 1].any()
    assert unbalanced[0][1] == frame[(frame.method == "no balancing") & (frame.step == 300)].dead.mean()
    assert [text.get_text() for text in drawn.legends[0].texts] == ["early", "late", "no balancing"]
    assert [text.get_text() for text in drawn.axes[1].get_xticklabels()] == ["1", "2\nsomebody"]


def test_a_job_is_drawn_with_a_line_for_each_start_and_what_happened():
    def steps(*numbers):
        return [{"event": "step", "step": n, "loss": 5 - n / 2} for n in numbers]

    first, again = ({"event": "start", "restart": n, "from_step": 2 * n} for n in (0, 1))
    fault = {"event": "fault", "how": "kill", "rank": 1, "step": 3}
    drawn = plot_job([first, *steps(1, 2, 3), fault, again, *steps(3, 4), {"event": "end"}])
    shown = lines(drawn.subfigs[0].axes[0])
    assert [list(xy[:, 0]) for xy in shown.values()] == [[1, 2, 3], [3, 4], [3, 3], [2, 2]]
    with pytest.raises(ValueError, match="records must .*, got 1 "):
        plot_job([{"event": "end"}])
