"""The figures of lessons show the numbers that they are given, in the colours of models and experts."""

import io
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from moe_lessons import plots
from moe_lessons.analysis import check_published, plan
from moe_lessons.analysis.counting import MODEL_SHAPES, ParameterCount, published_models
from moe_lessons.analysis.roofline import published_speeds
from moe_lessons.analysis.step_parts import PARTS
from moe_lessons.nn import EQUAL_ACTIVE, EQUAL_TOTAL, TopKRouter, apply_capacity, seeded
from moe_lessons.plots import costs, experts, speeds, sweeps
from moe_lessons.plots.theme import LIGHT, RED, THEMES, expert_color, expert_hatch, ink_on, model_inks, model_looks


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
    assert model_inks(["MoE", "equally good dense", "equal-active twin"]) == [0, 3, 1]
    assert model_inks(["equal-total twin, 64", "nothing", "noise", "aux. loss", "more"]) == [2, 0, 3, 4, 5]
    looks = model_looks([*(f"MoE, E={e}" for e in (2, 4, 8, 16, 32)), EQUAL_ACTIVE, EQUAL_TOTAL])
    assert [looks[twin][0] for twin in (EQUAL_ACTIVE, EQUAL_TOTAL)] == list(LIGHT.lines[1:3])
    assert len(set(looks.values())) == 7 and all(contrast(look[0], LIGHT.background) >= 2.8 for look in looks.values())
    assert len({(expert_color(e), expert_hatch(e)) for e in range(32)}) == 32
    assert all(contrast(ink_on(expert_color(expert)), expert_color(expert)) >= 4.5 for expert in range(8))
    for theme in THEMES.values():
        assert all(contrast(color, theme.background) >= 4.5 for color in (theme.foreground, theme.muted))
        assert all(contrast(color, theme.background) >= 2.8 for color in theme.lines)
        assert not {color.lower() for color in theme.lines} & {expert_color(expert).lower() for expert in range(8)}


def test_a_figure_shows_itself_as_a_picture_with_a_name(monkeypatch):
    ax = costs.parameter_growth({2: ParameterCount(10, 10), 4: ParameterCount(20, 12)})
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[2, 10], [4, 20]], [[2, 10], [4, 12]]]
    (data, metadata), name = ax.figure._repr_mimebundle_(), "More experts, K unchanged: what grows"
    assert data["text/plain"] == f"Figure: {name}" and metadata["image/png"] == {"alt": name, "width": 900}
    assert data["text/html"].startswith(f'<img alt="{name}" width="900" src="data:image/png;base64,iVBORw0KGgo')
    assert Image.open(io.BytesIO(data["image/png"])).size == (900, 400)
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1")  # what is stored is the picture alone
    assert set(ax.figure._repr_mimebundle_()[0]) == set(data) - {"text/html"}


@pytest.mark.parametrize("draw", [costs.published_models_scatter, costs.published_features])
def test_each_published_model_is_a_point_with_a_name_that_covers_no_other(draw):
    frame = published_models()
    ax = draw(frame)
    points = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])
    table = np.column_stack([frame.total_params, frame.active_params]) / 1e9
    if draw is costs.published_features:
        points[:, 0] //= 1  # the place within a year
        table = frame[["year", "num_experts"]].to_numpy()
    np.testing.assert_allclose(sorted(points.tolist()), sorted(table.tolist()))
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text().split(" (")[0] in set(frame.name)]
    assert len(boxes) == 16 and all(ax.figure.bbox.x0 <= box.x0 and box.x1 <= ax.figure.bbox.x1 for box in boxes)
    assert not any(box.overlaps(other) for box, other in combinations(boxes, 2))


def test_the_parts_of_each_row_add_up_and_each_published_figure_stands_where_its_error_says():
    for shape in MODEL_SHAPES.values():
        bars = costs.parameter_bars(shape.parameters()).patches
        assert sum(bar.get_width() for bar in bars) == shape.count.total + shape.count.active
    ax = costs.share_bars({"parameters": {"FFN": 60, "attention": 40, "head": 0}, "work": {"FFN": 97, "head": 3}})
    assert [round(bar.get_width(), 6) for bar in ax.patches] == [0.6, 0.97, 0.4, 0, 0, 0.03]
    ax = costs.speed_bars(pd.DataFrame({"model": ["MoE", "dense"], "tokens_per_second": [195.2, 44.0]}))
    assert [bar.get_width() for bar in ax.patches] == [195.2, 44.0] and texts(ax.texts) == ["195", "44"]
    checked = check_published()
    points = np.concatenate([spots.get_offsets() for spots in costs.plot_published(checked).collections])
    points = points[points[:, 1].argsort(), 0]
    np.testing.assert_allclose(points, checked.planned / checked.published.astype(float))


def test_a_bar_over_each_character_and_a_row_for_each_token():
    ax = plots.byte_losses('{"a\n ', [0.5, 0, 2, 1, 0.1])
    assert heights(ax.patches) == [0.5, 0, 2, 1, 0.1] and texts(ax.get_xticklabels()) == ["{", '"', "a", "↵", "␣"]
    ax = plots.attention_heatmap(weights := np.array([[1.0, 0.0], [0.25, 0.75]]), "a ")
    np.testing.assert_array_equal(ax.images[0].get_array(), weights)


def test_each_number_of_a_layer_is_a_bar_and_what_is_not_as_in_the_first_model_is_coloured():
    bits = pd.DataFrame({"trained": [2.0, 1.5, 1.0], "shuffled": [0.0, 0.1, -0.1]}, index=[0, 1, 2])
    ax = experts.bars_by_layer({"byte": bits, "domain": bits.iloc[:2] / 2}, "bits", "Bits")
    given = [*bits.to_numpy().ravel(), *(bits.iloc[:2] / 2).to_numpy().ravel()]
    assert heights(sorted(ax.patches, key=lambda bar: bar.get_x())) == given
    figure = experts.bars_by_model({"byte": bits, "domain": bits / 2}, "bits")
    assert [heights(ax.patches)[:3] for ax in figure.axes] == [[2, 1.5, 1], [1, 0.75, 0.5]]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    table = pd.DataFrame({"experts": [8, 64, 8], "shared": [0, 0, 1]}, index=["Mixtral", "OLMoE", "third"])
    cells = experts.changes(table, "Families").tables[0].get_celld()
    assert [cells[2, column].get_text().get_text() for column in range(3)] == ["OLMoE", "64", "0"]
    assert {place for place, cell in cells.items() if cell.get_facecolor()[3]} == {(2, 1), (3, 2)}


def test_pictures_of_a_collapse_show_each_expert_each_seed_and_the_means():
    x, y = np.random.default_rng(0).random((2, 4, 3))
    for expert, points in enumerate(experts.share_scatter(x, y, ("x", "y"), "Shares").collections):
        np.testing.assert_allclose(points.get_offsets(), np.stack([x[:, expert], y[:, expert]], axis=1))
        assert to_hex(points.get_facecolor()[0]).upper() == expert_color(expert).upper()
    pushes = heights(experts.push_bars(np.array([1.0, 0.25]), np.array([-0.5, -2.0]), "Push").patches)
    assert pushes[:2] == [1.0, 0.25] and {-0.5, -2.0} <= set(pushes)
    ax = sweeps.dead_curves({"a": [[0, 1, 2], [0, 2, 4]]})
    assert ax.lines[0].get_xydata().tolist() == [[1, 0], [2, 1.5], [3, 3]]
    assert heights(sweeps.dead_histogram({"K = 1": [1, 1, 3]}).patches) == [0, 2, 0, 1, 0, 0, 0, 0]
    assert sweeps.accuracy_dots({"a": [0.8, 0.9]}, "Accuracy").lines[0].get_ydata() == pytest.approx([0.8, 0.9])


@pytest.mark.parametrize("tokens, num_experts, top_k, capacity", [(12, 4, 1, 2), (9, 3, 2, 4), (6, 2, 1, 6)])
def test_each_assignment_stands_in_its_place_and_what_is_dropped_is_framed(tokens, num_experts, top_k, capacity):
    with seeded(1):
        routing = TopKRouter(8, num_experts, top_k)(torch.randn(tokens, 8))
    ax = experts.buffers(apply_capacity(routing, capacity), capacity, "a title")
    for expert, demand in enumerate(routing.demand_per_expert.tolist()):
        row = [p for p in ax.patches if p.get_y() == expert and p.get_facecolor()[3] > 0]
        assert sorted(p.get_x() for p in row) == list(range(demand))
        assert {to_hex(p.get_facecolor()) for p in row} <= {expert_color(expert).lower()}
        framed = [p.get_x() for p in row if to_hex(p.get_edgecolor()) == RED]
        assert sorted(framed) == list(range(capacity, demand))


def test_each_cell_says_what_a_rank_sends_and_the_parts_of_a_bar_add_up_to_the_step():
    uneven = torch.tensor([[10, 30, 0], [20, 20, 0], [5, 30, 5]])
    ax = experts.plot_exchange({"step 1": uneven})
    assert texts(ax.texts) == [str(rows) for rows in uneven.flatten().tolist()]
    assert ax.get_title(loc="left") == "step 1: busiest rank 2 × the mean"
    figure = experts.plot_exchange({"one": torch.ones(4, 4), "two": torch.eye(4)}).figure
    figure.canvas.draw()
    np.testing.assert_allclose(figure.axes[0].collections[0].get_facecolor()[:, :3], [[1, 1, 1]] * 16, atol=0.01)
    made = {"devices": 8, "expert_parallel": 8, "tokens_per_device": 1024, "overlap": 0.5}
    given = {f"{node}": plan("DeepSeek-V3", node=node, **made) for node in (8, 1)}
    bars = costs.plot_plan(given).patches
    tops = [max(bar.get_y() + bar.get_height() for bar in bars if round(bar.get_x() + 0.35) == i) for i in (0, 1)]
    np.testing.assert_allclose(tops, [made.seconds for made in given.values()])
    np.testing.assert_allclose([b.get_height() for b in bars if b.get_hatch()], [m.hidden for m in given.values()])


VALUES = {EQUAL_ACTIVE: 10, "MoE, E=4": 30, "MoE, E=16": 50, EQUAL_TOTAL: 80}
RESULTS = pd.DataFrame(  # the later measurement is 10 times as much, that of seed 2 twice as much
    {"model": model, "seed": seed, "step": step, "known": value * seed * step, "loss": 10 - value * seed / 100}
    for model, value in VALUES.items()
    for seed in (1, 2)
    for step in (1, 10)
).sample(frac=1, random_state=0, ignore_index=True)  # in no order
RATES = pd.DataFrame(
    {"model": model, "lr": lr, "seed": seed, "step": 2, "loss": 1 + (np.log10(lr) + 2) ** 2 + 0.1 * seed + 0.2 * i}
    for i, model in enumerate(("MoE", EQUAL_ACTIVE))
    for lr in (0.1, 0.001, 0.01)
    for seed in (0, 1)
)


def band(ax) -> np.ndarray:
    """(N, 2): the lower and upper edge of the first band, from left to right."""
    vertices = pd.DataFrame(ax.collections[0].get_paths()[0].vertices)
    return vertices.groupby(0)[1].agg(["min", "max"]).to_numpy()


def test_the_front_has_its_points_and_the_best_dense_model_for_the_cost():
    rows = [
        ("equal-active twin", 64, 10, 1.0, 20),
        ("equal-active twin", 64, 20, 2.0, 30),
        ("dense, F=128", 128, 10, 2.0, 40),
        ("dense, F=128", 128, 20, 4.0, 35),
        ("equal-total twin", 512, 10, 8.0, 80),
        ("MoE, E=4", None, 10, 1.0, 60),
    ]
    ends = pd.DataFrame(rows, columns=["model", "width", "steps", "flops", "known"]).assign(seed=1)
    ends["seconds_per_token"] = ends.flops / ends.steps / 100
    figure = sweeps.front(ends, ("MoE, E=4", 10), {"flops": "work", "seconds_per_token": "speed"})
    work, speed = (lines(ax) for ax in figure.axes)
    best = "the best dense model for the cost"
    at_ends = [np.interp([0.99, 1, 2, 4, 8], *work[best].T, left=np.nan), np.interp([1e-3, 2e-3, 8e-3], *speed[best].T)]
    np.testing.assert_allclose(at_ends[0], [np.nan, 20, 40, 60, 80], rtol=1e-3)  # 4 is half-way by its logarithm
    np.testing.assert_allclose(at_ends[1], [30, 40, 80], rtol=1e-3)
    np.testing.assert_allclose(work["MoE, E=4"], [(1, 60)])
    assert [text.get_text() for text in figure.axes[0].texts] == ["", "4.0 times"]


@pytest.mark.parametrize("column, gains, total", [("known", (300, 600), 1050), ("loss", (0.3, 0.6), 1.05)])
def test_gains_are_against_the_same_seed(column, gains, total):
    ax = sweeps.gain_by_model(RESULTS, EQUAL_ACTIVE, column, "more")
    means = dict(zip(texts(ax.get_yticklabels()), (bar.get_width() for bar in ax.patches)))
    assert means == pytest.approx({"MoE, E=4": gains[0], "MoE, E=16": gains[1], EQUAL_TOTAL: total})
    with pytest.raises(ValueError, match="one learning rate for each model"):
        sweeps.gain_by_model(RESULTS.assign(lr=range(16)), EQUAL_ACTIVE, "known", "")


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


def test_the_parts_of_a_step_in_times_of_the_last_model_and_published_speeds_beside_what_was_promised():
    rows = [(1, "MoE", 1, 2, 3, 4, 5, 15, 1), (1, "dense", 2, 2, 2, 2, 2, 10, 2)]
    frame = pd.DataFrame(rows, columns=["batch", "model", *PARTS, "whole", "promise"])
    ax = speeds.plot_step_parts(frame)
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
    np.testing.assert_allclose(ends, [0.1, 0.2, 0.3, 0.4, 0.6, 0.6, 1, 0.8, 1.5, 1])  # part by part
    assert [line[0, 0] for line in ax.collections[0].get_segments()] == [0.1, 0.2]
    lead, parts = speeds.plot_lead(frame, 3.0).axes
    assert lines(lead)["measured"].tolist() == [[1, 10 / 15]] and lines(lead)["promised by bytes"].tolist() == [[1, 2]]
    assert len(parts.patches) == len(ends)
    ax = speeds.plot_published_speeds(others := published_speeds())
    had = np.concatenate([points[:, 0] for name, points in lines(ax).items() if name.startswith("had")])
    np.testing.assert_allclose(had, others.mixture_figure / others.dense_figure)


def test_a_sweep():
    ax = sweeps.seed_sweep({0.01: [0.2, 0.4], 0.1: [0.5, 0.9], 10.0: [0.1, 0.1]}, "Accuracy", "coefficient", 0.3)
    np.testing.assert_allclose(lines(ax)["mean, and all seeds"], [[0.01, 0.3], [0.1, 0.7], [10, 0.1]])
    np.testing.assert_allclose(band(ax), [(0.2, 0.4), (0.5, 0.9), (0.1, 0.1)])
    assert list(lines(ax)["without"][:, 1]) == [0.3, 0.3]
