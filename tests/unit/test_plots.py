"""The figures of lessons show the numbers that they are given, in the colours of models and experts."""

import io
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import dates as mdates
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from moe_lessons import plots
from moe_lessons.analysis.counting import MODEL_SHAPES, TransformerShape, modern_models
from moe_lessons.analysis.roofline import published_speeds
from moe_lessons.analysis.step_parts import PARTS
from moe_lessons.nn import SAME_ACTIVE, SAME_TOTAL, TopKRouter, apply_capacity, seeded
from moe_lessons.plots import costs, loads, speeds, sweeps
from moe_lessons.plots.job import plot_job
from moe_lessons.plots.theme import DARK_LINES, LIGHT, RED, expert_color, expert_hatch, ink_on, model_inks, model_styles


def subplot():
    return plots.LessonFigure().add_subplot()


def texts(labels) -> list[str]:
    return [text.get_text() for text in labels]


def heights(bars) -> list[float]:
    return [round(bar.get_height(), 9) for bar in bars]


def lines(ax) -> dict:
    return {line.get_label(): line.get_xydata() for line in ax.lines if not line.get_label().startswith("_")}


def contrast(one: str, other: str) -> float:
    """Of two colours, 1 to 21; text wants 4.5 or more (WCAG 2.2, relative luminance)."""
    rgb = np.array([to_rgb(one), to_rgb(other)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ (0.2126, 0.7152, 0.0722))
    return (light + 0.05) / (dark + 0.05)


def test_models_and_experts_look_different_and_words_and_lines_can_be_seen():
    assert model_inks(["MoE", "equally good dense", "dense, same active"]) == [0, 3, 1]
    assert model_inks(["dense, same total, 64", "nothing", "noise", "aux. loss", "more"]) == [2, 0, 3, 4, 5]
    styles = model_styles([*(f"MoE, E={e}" for e in (2, 4, 8, 16, 32)), SAME_ACTIVE, SAME_TOTAL])
    assert [styles[baseline][0] for baseline in (SAME_ACTIVE, SAME_TOTAL)] == list(LIGHT.lines[1:3])
    assert len(set(styles.values())) == 7
    assert all(contrast(color, LIGHT.background) >= 2.8 for color, _, _ in styles.values())
    assert len({(expert_color(e), expert_hatch(e)) for e in range(32)}) == 32
    assert all(contrast(ink_on(expert_color(expert)), expert_color(expert)) >= 4.5 for expert in range(8))
    assert all(contrast(color, LIGHT.background) >= 4.5 for color in (LIGHT.foreground, LIGHT.muted))
    for lines_, background in ((LIGHT.lines, LIGHT.background), (DARK_LINES, "#111111")):  # JupyterLab's
        assert all(contrast(color, background) >= 2.8 for color in lines_)
        assert not {color.lower() for color in lines_} & {expert_color(expert).lower() for expert in range(8)}


def test_a_figure_shows_itself_as_a_picture_with_a_name(monkeypatch):
    ax = costs.speed_bars(pd.DataFrame({"model": ["MoE", "dense"], "tokens_per_second": [195.2, 44.0]}))
    (data, metadata), name = ax.figure._repr_mimebundle_(), "Decoding at batch size 1: tokens per second"
    assert [bar.get_width() for bar in ax.patches] == [195.2, 44.0]
    assert metadata["image/png"] == {"alt": name, "width": 900}
    assert f'alt="{name}"' in data["text/html"]
    assert Image.open(io.BytesIO(data["image/png"])).size == (900, 260)
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1")  # what is stored is the picture alone
    assert set(ax.figure._repr_mimebundle_()[0]) == set(data) - {"text/html"}


def test_each_release_stands_at_its_day_in_both_panels():
    models = modern_models()
    assert (models.top_k <= models.num_experts).all() and models.day.is_monotonic_increasing and models.name.is_unique
    assert not (models.active_params_b > models.total_params_b).any() and models.source.ne("").all()
    assert (models.balancing_from.isin(["maker", "code"]) == models.balancing.ne("")).all()
    assert (models.day.dt.strftime("%Y-%m") == models.release_date.str[:7]).all() and models.d_ff.count() == 56
    for ax, y in zip(
        costs.designs_over_time(models, ["Mixtral 8x7B"]).axes,
        (models.num_experts / models.top_k, models.d_ff / models.d_model),
    ):
        points = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections if len(c.get_offsets())])
        points, days = points[points[:, 1] > 0], mdates.date2num(models.day)
        np.testing.assert_allclose(sorted(points[:, 1]), sorted(y[y > 0]))
        for day, height in points:  # no further from its day than one dot beside two others
            assert np.abs(days - day)[np.isclose(y, height)].min() <= costs.APART
        assert len(np.unique(points.round(3), axis=0)) == len(points)  # none covers another
        assert [text.get_text() for text in ax.texts if text.get_text()] == ["Mixtral 8x7B"]


def test_the_parts_of_each_row_add_up():
    for shape in MODEL_SHAPES.values():
        (bars,) = costs.parameter_panel(shape.parameters()).marks
        assert bars.values.sum() == shape.count.total + shape.count.active
    ax = costs.share_bars({"parameters": {"FFN": 60, "attention": 40, "head": 0}, "work": {"FFN": 97, "head": 3}})
    assert [round(bar.get_width(), 6) for bar in ax.patches] == [0.6, 0.97, 0.4, 0, 0, 0.03]
    panel = costs.layer_panel(ours := TransformerShape(256, 64, 2, 4, 2, 16, 192), 64, "A layer")
    (_, matrices, heads), (free,) = panel.marks, [i for i, fill in enumerate(panel.marks[1].fill) if fill == 1]
    areas = np.prod(np.array(matrices.places)[:, 2:], axis=1)
    work = (ours.flops_per_token(64) - 2 * 256 * 64) // 2
    np.testing.assert_allclose(areas / areas.sum() * work, [8192, 4096, 4096, 16384, 8192, *[24576] * 3])
    assert free == 3 and {"parameters 36,864: 75%", f"FLOPs 73,728: {73728 / work:.0%}"} < set(heads.texts)


def test_a_row_for_each_token_and_no_colour_where_there_is_no_share():
    ax = plots.attention_heatmap(np.array([[1.0, 0.0], [0.25, 0.75]]), "a\n")
    assert ax.images[0].get_array().tolist() == [[1, None], [0.25, 0.75]] and texts(ax.get_xticklabels()) == ["a", "↵"]


def test_each_number_of_a_layer_is_a_bar():
    bits = pd.DataFrame({"trained": [2.0, 1.5, 1.0], "shuffled": [0.0, 0.1, -0.1]}, index=[0, 1, 2])
    ax = loads.known_share_bars({"byte": bits, "domain": bits.iloc[:2] / 2})
    given = [*(100 * bits).to_numpy().ravel(), *(50 * bits.iloc[:2]).to_numpy().ravel()]
    assert heights(sorted(ax.patches, key=lambda bar: bar.get_x())) == given


def test_pictures_of_a_collapse_show_each_expert_each_seed_and_the_means():
    x, y = np.random.default_rng(0).random((2, 4, 3))
    for expert, points in enumerate(loads.share_scatter(x, y, ("x", "y"), "Shares").collections):
        np.testing.assert_allclose(points.get_offsets(), np.stack([x[:, expert], y[:, expert]], axis=1))
        assert to_hex(points.get_facecolor()[0]).upper() == expert_color(expert).upper()
    drawn = loads.logit_gradient_bars(
        np.array([1.0, 0.25]), np.array([-0.5, -2.0]), [0.02, 0.98], "Gradients", subplot()
    )
    assert heights(drawn.patches)[:2] == [1.0, 0.25] and {-0.5, -2.0} <= set(heights(drawn.patches))
    assert texts(drawn.get_xticklabels()) == ["E0\n2%", "E1\n98%"]
    ax = sweeps.dead_curves({"a": [[0, 1, 2], [0, 2, 4]]})
    assert ax.lines[0].get_xydata().tolist() == [[1, 0], [2, 1.5], [3, 3]]
    ax = sweeps.dead_curves({"a": [[0, 12]]}, steps=[25, 50], num_experts=24)
    assert ax.lines[0].get_xydata().tolist() == [[25, 0], [50, 12]] and ax.get_ylim()[1] == 24
    cells = pd.DataFrame(product(("sure", "random"), ("p", "p / sum"), (0.001, 0.01), (300, 600)))
    cells = cells.set_axis(["start", "weights", "lr", "step"], axis=1)
    (ax,) = sweeps.collapse_map(cells.assign(dead=np.arange(16)), ("random", "p / sum", 0.01)).axes
    assert texts(ax.texts) == ["3.0", "7.0", "11.0", "15.0"]  # of step 600 and this rate
    assert [frame.get_xy() for frame in ax.patches] == [(0.52, 0.52)]


@pytest.mark.parametrize("tokens, num_experts, top_k, capacity", [(12, 4, 1, 2), (9, 3, 2, 4), (6, 2, 1, 6)])
def test_each_assignment_stands_in_its_place_and_what_is_dropped_is_framed(tokens, num_experts, top_k, capacity):
    with seeded(1):
        routing = TopKRouter(8, num_experts, top_k)(torch.randn(tokens, 8))
    ax = loads.buffers(apply_capacity(routing, capacity), capacity, "a title", subplot())
    for expert, demand in enumerate(routing.demand_per_expert.tolist()):
        row = [p for p in ax.patches if p.get_y() == expert and p.get_facecolor()[3] > 0]
        assert sorted(p.get_x() for p in row) == list(range(demand))
        assert {to_hex(p.get_facecolor()) for p in row} <= {expert_color(expert).lower()}
        framed = [p.get_x() for p in row if to_hex(p.get_edgecolor()) == RED]
        assert sorted(framed) == list(range(capacity, demand))


def test_each_cell_says_what_a_rank_sends_and_the_parts_of_a_bar_add_up_to_the_step():
    uneven = torch.tensor([[10, 30, 0], [20, 20, 0], [5, 30, 5]])
    ax = loads.plot_exchange({"step 1": uneven})
    assert texts(ax.texts) == [str(rows) for rows in uneven.flatten().tolist()]
    assert ax.get_title(loc="left") == "step 1: busiest rank 2 × the mean"  # 80 of 120 rows on three ranks
    ax = loads.plot_exchange({"step 1, with drops": uneven}, even=64)
    assert ax.get_title(loc="left") == "step 1, with drops: busiest rank 1.2 × uniform"
    figure = loads.plot_exchange({"one": torch.ones(4, 4), "two": torch.eye(4)}).figure
    figure.canvas.draw()
    np.testing.assert_allclose(figure.axes[0].collections[0].get_facecolor()[:, :3], [[1, 1, 1]] * 16, atol=0.01)


RATES = pd.DataFrame(
    {"model": model, "lr": lr, "seed": seed, "step": 2, "loss": 1 + (np.log10(lr) + 2) ** 2 + 0.1 * seed + 0.2 * i}
    for i, model in enumerate(("MoE", SAME_ACTIVE))
    for lr in (0.1, 0.001, 0.01)
    for seed in (0, 1)
)


def band(ax) -> np.ndarray:
    """(N, 2): the lower and upper edge of the first band, from left to right."""
    vertices = pd.DataFrame(ax.collections[0].get_paths()[0].vertices)
    return vertices.groupby(0)[1].agg(["min", "max"]).to_numpy()


def test_the_front_has_its_points_and_the_best_dense_model_for_the_cost():
    rows = [
        ("dense, same active", 64, 10, 1.0, 20),
        ("dense, same active", 64, 20, 2.0, 30),
        ("dense, F=128", 128, 10, 2.0, 40),
        ("dense, F=128", 128, 20, 4.0, 35),
        ("dense, same total", 512, 10, 8.0, 80),
        ("MoE, E=4", None, 10, 1.0, 60),
    ]
    ends = pd.DataFrame(rows, columns=["model", "width", "steps", "flops", "known"]).assign(seed=1)
    ax = sweeps.front(ends.assign(teraflops=ends.flops), ("MoE, E=4", 10))
    best = lines(ax)["dense, the best at each cost"]
    at_ends = np.interp([0.99, 1, 2, 4, 8], *best.T, left=np.nan)
    np.testing.assert_allclose(at_ends, [np.nan, 20, 40, 60, 80], rtol=1e-3)  # 4 is half-way by its logarithm
    np.testing.assert_allclose(lines(ax)["MoE, E=4"], [(1, 60)])
    assert [text.get_text() for text in ax.texts] == ["", "4.0×"]


def test_a_mixture_stands_at_its_active_width_and_leads_to_the_dense_model_that_knows_as_much():
    rows = [("dense, same active", 64, 10, 20), ("dense, F=256", 256, 10, 60), ("MoE, E=4", None, 10, 40)]
    ax = sweeps.matched_widths(pd.DataFrame(rows, columns=["model", "width", "steps", "known"]).assign(seed=1), 10)
    np.testing.assert_allclose(lines(ax)["dense"], [(1, 20), (4, 60)])
    np.testing.assert_allclose(lines(ax)["MoE, E=4"], [(1, 40)])
    (way,) = [line.get_xydata() for line in ax.lines if len(line.get_xydata()) == 3]
    np.testing.assert_allclose(way, [(1, 40), (2, 40), (2, 0)])  # half-way over the logarithm of the width
    assert [text.get_text() for text in ax.texts] == ["2.0×"]


def test_width_curves_have_the_range_of_the_seeds_and_end_at_the_widest():
    frame = pd.DataFrame({"step": [250, 500, 1000], "width": [0, 2, 4], "low": [0, 1.5, 3], "high": [1.2, 3, np.inf]})
    ax = sweeps.width_curves({"prose": frame, "source": frame.assign(width=np.inf)}, 8)
    np.testing.assert_allclose(lines(ax)["prose"], [(250, 0.9), (500, 2), (1000, 4)])
    np.testing.assert_allclose(lines(ax)["source"][:, 1], 1.15 * 8)  # better than the widest: at the upper edge
    np.testing.assert_allclose(band(ax), [(0.9, 1.2), (1.5, 3), (3, 9.2)])


def test_gain_curves_are_means_of_pairs_in_their_interval():
    rows = [(model, seed, step, 1 + seed - gain * seed * step) for model, gain in (("a", 0), ("b", 0.1), ("c", -0.2))
            for seed in (1, 2, 3) for step in (10, 20)]  # fmt: skip
    ax = sweeps.gain_curves(pd.DataFrame(rows, columns=["model", "seed", "step", "loss"]), "a")
    np.testing.assert_allclose(lines(ax)["b"], [(10, 2), (20, 4)])
    np.testing.assert_allclose(lines(ax)["c"], [(10, -4), (20, -8)])
    half = 4.303 / 3**0.5
    np.testing.assert_allclose(band(ax), [(2 - half, 2 + half), (4 - 2 * half, 4 + 2 * half)])


@pytest.mark.parametrize("bad", [{}, {"loss": np.nan}, {"diverged": True}])
def test_loss_against_the_learning_rate_and_the_best_one_without_rates_at_which_a_run_diverged(bad):
    frame = pd.concat([RATES.assign(diverged=False), RATES.assign(step=1, loss=9.0)])  # the last measurement counts
    failed = (frame.model == "MoE") & (frame.lr == 0.01) & (frame.seed == 1) & (frame.step == 2)
    frame.loc[failed, list(bad)] = list(bad.values())
    ax = sweeps.rate_tolerance(frame)
    left = [(0.001, 2.05), (0.01, 1.05), (0.1, 2.05)][:: 2 if bad else 1]
    np.testing.assert_allclose(lines(ax)["MoE"], left)
    np.testing.assert_allclose(band(ax), [(y - 0.05, y + 0.05) for _, y in left])
    rings = [line.get_xydata()[0] for line in ax.lines if line.get_label().startswith("_")]
    np.testing.assert_allclose(rings, [(0.001, 2.05) if bad else (0.01, 1.05), (0.01, 1.25)])


def test_the_parts_of_a_step_in_milliseconds_and_published_speeds_beside_what_was_promised():
    rows = [(1, "MoE", 3, 3, 4, 5, 15, 0.0, 1), (1, "dense", 4, 2, 2, 2, 10, 0.07, 2)]
    frame = pd.DataFrame(rows, columns=["batch", "model", *PARTS, "whole", "missed", "promise"])
    ax = speeds.plot_step_parts(frame)
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
    np.testing.assert_allclose(ends, [3, 4, 6, 6, 10, 8, 15, 10])  # part by part
    assert [line[0, 0] for line in ax.collections[0].get_segments()] == [1, 2]
    assert [text.get_text() for text in ax.texts] == ["15 ms", "10 ms"]
    ax = speeds.plot_published_speeds(others := published_speeds())
    had = np.concatenate([lines(ax)[kind][:, 0] for kind in ("batch size 1", "full load", "training")])
    np.testing.assert_allclose(had, others.mixture_figure / others.dense_figure)


def test_a_sweep():
    values = {0.01: [0.2, 0.4], 0.1: [0.5, 0.9], 10.0: [0.1, 0.1]}
    ax = sweeps.seed_sweep(values, "Accuracy", "coefficient", 0.3, subplot())
    np.testing.assert_allclose(lines(ax)["mean, and all seeds"], [[0.01, 0.3], [0.1, 0.7], [10, 0.1]])
    np.testing.assert_allclose(band(ax), [(0.2, 0.4), (0.5, 0.9), (0.1, 0.1)])
    assert list(lines(ax)["without"][:, 1]) == [0.3, 0.3]


def test_a_job_is_drawn_with_a_line_for_each_start_and_what_happened():
    def steps(*numbers):
        return [{"event": "step", "step": n, "loss": 5 - n / 2} for n in numbers]

    first, again = ({"event": "start", "restart": n, "from_step": 2 * n} for n in (0, 1))
    fault = {"event": "fault", "how": "kill", "rank": 1, "step": 3}
    records = [first, *steps(1, 2, 3), fault, again, *steps(3, 4), {"event": "end"}]
    drawn = plot_job(records)
    lines = {line.get_label(): list(line.get_xdata()) for line in drawn.subfigs[0].axes[0].lines}
    assert {name: x for name, x in lines.items() if name[0] != "_"} == {
        "loss": [1, 2, 3], "after restart 1": [3, 4], "rank 1 is killed": [3, 3], "the last checkpoint": [2, 2],
    }  # fmt: skip
    assert drawn.get_supxlabel() == "After a fault, all ranks went on from step 2."
    with pytest.raises(ValueError, match="records must have a step, got 1 without one"):
        plot_job(records[-1:])
