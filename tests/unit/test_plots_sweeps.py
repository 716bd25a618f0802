"""What many runs showed is drawn as it was measured, over all seeds."""

import numpy as np
import pandas as pd
import pytest

from moe_lessons.plots import (
    THEMES,
    dense_family,
    distinct_by_batch,
    gain_by_model,
    gain_over_twin,
    rate_tolerance,
    roofline,
    seed_sweep,
)
from moe_lessons.plots import speed_by_batch as by_batch
from moe_lessons.plots.theme import model_looks

ACTIVE, TOTAL = "equal-active twin", "equal-total twin"
FAMILY = {64: [0.1, 0.2], 128: [0.3, 0.4], 512: [0.7, 0.8]}


def make_results() -> pd.DataFrame:
    """Two measurements of each run; the later one is 10 times as much for the seed 1 and 20 times for the seed 2."""
    known = {ACTIVE: 10, "MoE, E=4": 30, "MoE, E=16": 50, TOTAL: 80}
    rows = [
        {"model": model, "seed": seed, "step": step, "known": value * seed * step, "loss": 10 - value * seed / 100}
        for model, value in known.items()
        for seed in (1, 2)
        for step in (1, 10)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0, ignore_index=True)  # in no order


RESULTS = make_results()
RATES = pd.DataFrame(
    [
        {"model": model, "lr": lr, "seed": seed, "step": 2, "loss": 1 + (np.log10(lr) + 2) ** 2 + 0.1 * seed + 0.2 * i}
        for i, model in enumerate(("MoE", ACTIVE))
        for lr in (0.1, 0.001, 0.01)
        for seed in (0, 1)
    ]
)
SPEEDS = pd.DataFrame(
    [
        {"model": model, "batch": batch, "tokens_per_second": speed * batch**0.5 + more, "speedup": speed / batch}
        for model, speed in (("MoE", 200.0), (TOTAL, 60.0))
        for batch in (4, 1, 2)
        for more in (0, 7, 1)
    ]
)
SPEEDS = SPEEDS.assign(low=SPEEDS.speedup - 3, high=SPEEDS.speedup + 5)
DISTINCT = pd.DataFrame({"batch": [4, 1, 2], "distinct": [4.6, 2, 3.3], "union_law": [5.5, 2, 3.5]})
POINTS = pd.DataFrame({"name": ["a", f"{TOTAL}, batch 64"], "intensity": [0.5, 40], "flops_per_second": [4e9, 8e10]})


def lines(ax) -> dict:
    """The named lines, by name."""
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def heights(band) -> np.ndarray:
    """(N, 2): the lower and upper edge of a band, from left to right."""
    vertices = pd.DataFrame(band.get_paths()[0].vertices)
    return vertices.groupby(0)[1].agg(["min", "max"]).to_numpy()


def test_the_dense_family_is_a_line_through_its_means_and_the_width_that_is_as_good_is_marked():
    ax = dense_family(FAMILY, [0.5, 0.6], "known")
    drawn = lines(ax)
    np.testing.assert_allclose(drawn["dense, mean of its seeds"].get_xydata(), [(64, 0.15), (128, 0.35), (512, 0.75)])
    assert set(drawn["the mixture, mean of its seeds"].get_ydata()) == {0.55}
    assert ax.lines[-1].get_xdata() == pytest.approx([256, 256]) and "256" in ax.get_title(loc="left")
    assert ax.get_xscale() == "log" and ax.get_ylabel() == "known"
    above = dense_family(FAMILY, [0.9, 0.9], "known")
    assert "above 512" in above.get_title(loc="left") and len(above.lines) == 3 and not above.patches


@pytest.mark.parametrize("column, gains, total", [("known", (0, 300, 600), 1050), ("loss", (0, 0.3, 0.6), 1.05)])
def test_gains_are_against_the_twin_of_the_same_seed(column, gains, total):
    ax = gain_over_twin(RESULTS, column, "gain")
    drawn = lines(ax)
    np.testing.assert_allclose(drawn["mixtures, mean of their seeds"].get_xydata(), list(zip((1, 4, 16), gains)))
    assert drawn["equal-total twin"].get_ydata() == pytest.approx([total, total])
    dots = sorted(map(tuple, ax.lines[1].get_xydata()))
    np.testing.assert_allclose(dots, [(e, gain * s * 2 / 3) for e, gain in zip((1, 4, 16), gains) for s in (1, 2)])
    assert "equal-total twin" not in lines(gain_over_twin(RESULTS[RESULTS.model != TOTAL], column, "gain"))


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_the_twins_look_as_elsewhere_and_no_two_models_look_alike(theme):
    names = [ACTIVE, *(f"MoE, E={e}" for e in (2, 4, 8, 16, 32)), TOTAL]
    looks = model_looks(names, theme)
    assert looks[ACTIVE][0] == theme.lines[1] and looks[TOTAL][0] == theme.lines[2]
    assert model_looks([TOTAL, "MoE"], theme)["MoE"][0] == theme.lines[0]
    assert len({looks[name] for name in names}) == len(names)


def test_loss_against_the_learning_rate_and_the_best_one():
    often = pd.concat([RATES, RATES.assign(step=1, loss=9.0, diverged=False)])  # the last measurement counts
    ax = rate_tolerance(often)
    assert set(lines(ax)) == {"MoE", ACTIVE}
    np.testing.assert_allclose(lines(ax)["MoE"].get_xydata(), [(0.001, 2.05), (0.01, 1.05), (0.1, 2.05)])
    np.testing.assert_allclose(heights(ax.collections[0]), [(2, 2.1), (1, 1.1), (2, 2.1)])
    rings = [line.get_xydata()[0] for line in ax.lines if line.get_label().startswith("_")]
    np.testing.assert_allclose(rings, [(0.01, 1.05), (0.01, 1.25)])


@pytest.mark.parametrize("bad", [{"loss": np.nan}, {"loss": np.inf}, {"diverged": True}])
def test_of_a_rate_at_which_a_run_diverged_nothing_is_drawn_and_it_is_not_the_best(bad):
    frame = RATES.assign(diverged=False)
    frame.loc[(frame.model == "MoE") & (frame.lr == 0.01) & (frame.seed == 1), list(bad)] = list(bad.values())
    ax = rate_tolerance(frame)
    np.testing.assert_allclose(lines(ax)["MoE"].get_xydata(), [(0.001, 2.05), (0.1, 2.05)])
    rings = [line.get_xydata()[0] for line in ax.lines if line.get_label().startswith("_")]
    np.testing.assert_allclose(rings, [(0.001, 2.05), (0.01, 1.25)])
    assert not rate_tolerance(frame.assign(loss=np.nan)).lines


def test_speed_is_the_median_of_what_was_measured():
    ax = by_batch(SPEEDS)
    np.testing.assert_allclose(lines(ax)["MoE"].get_xydata(), [(b, 200 * b**0.5 + 1) for b in (1, 2, 4)])
    np.testing.assert_allclose(heights(ax.collections[0])[0], (200, 207))
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4"]
    ax = by_batch(SPEEDS, "speedup")  # over the last model, a dashed line
    assert set(lines(ax)) == {"MoE", TOTAL} and list(lines(ax)[TOTAL].get_ydata()) == [1, 1]
    np.testing.assert_allclose(lines(ax)["MoE"].get_ydata(), [200, 100, 50])
    np.testing.assert_allclose(heights(ax.collections[0]), [(197, 205), (97, 105), (47, 55)])


@pytest.mark.parametrize("names", [["measured"], ["2 of 8", "2 of 16"]])
def test_distinct_experts_beside_the_law(names):
    frame = pd.concat([DISTINCT.assign(model=name) for name in names]) if len(names) > 1 else DISTINCT
    drawn = distinct_by_batch(frame).lines
    for law, points, name in zip(drawn[::2], drawn[1::2], names, strict=True):
        assert law.get_xydata().tolist() == [[1, 2], [2, 3.5], [4, 5.5]] and law.get_linestyle() == "--"
        assert points.get_xydata().tolist() == [[1, 2], [2, 3.3], [4, 4.6]] and points.get_label() == name


def test_the_roof_is_the_lesser_of_memory_and_arithmetic():
    ax = roofline(1e10, 2e11, POINTS)
    x, y = ax.lines[0].get_data()
    np.testing.assert_allclose(y, np.minimum(1e10 * x, 2e11))
    left, right = ax.get_xlim()
    assert x.tolist() == [left, 20, right] and ax.get_ylim()[1] > 2e11  # 20: the ridge
    points = [line.get_xydata()[0] for line in ax.lines[1:]]
    np.testing.assert_allclose(points, POINTS[["intensity", "flops_per_second"]])
    assert [line.get_color() for line in ax.lines[1:]] == [THEMES["light"].lines[0], THEMES["light"].lines[2]]
    assert {*POINTS.name, "200 GFLOP/s", "10 GB/s"} <= {text.get_text().strip() for text in ax.texts}
    assert all(left < px < right and ax.get_ylim()[0] < py for px, py in points)


def test_a_sweep_shows_the_mean_and_all_seeds():
    values = {0.01: np.array([0.2, 0.4]), 0.1: np.array([0.5, 0.9]), 10.0: np.array([0.1, 0.1])}
    ax = seed_sweep(values, "Accuracy", "coefficient", baseline=0.3)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0.01, 0.3], [0.1, 0.7], [10, 0.1]])
    np.testing.assert_allclose(heights(ax.collections[0]), [(0.2, 0.4), (0.5, 0.9), (0.1, 0.1)])
    assert list(ax.lines[1].get_ydata()) == [0.3, 0.3]
    assert ax.get_xscale() == "log" and [text.get_text() for text in ax.get_xticklabels()] == ["0.01", "0.1", "10"]
    assert len(seed_sweep(values, "Accuracy", "coefficient").lines) == 1


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: gain_over_twin(RESULTS[:0], "known", ""), "results must be .* columns .*, got 0 rows"),
        (lambda: gain_over_twin([1], "known", ""), "results must be a DataFrame with rows and the .*, got list"),
        (lambda: gain_over_twin(RESULTS, "flops", ""), "and the columns .*, flops, got 16 rows with"),
        (lambda: gain_over_twin(RESULTS.assign(lr=range(16)), "known", ""), "one learning rate for each model"),
        (lambda: dense_family({64: [1]}, [1], ""), "family must have at least two widths"),
        (lambda: by_batch(SPEEDS, "loss"), "y must be one of 'tokens_per_second', 'speedup', got 'loss'"),
        (lambda: by_batch(SPEEDS.drop(columns="speedup"), "speedup"), "frame must be .* the columns model, batch, sp"),
        (lambda: distinct_by_batch(DISTINCT.drop(columns="union_law")), "frame must be .* union_law, got"),
        (lambda: rate_tolerance(RATES.drop(columns="lr")), "results must be .* the columns model, lr"),
        (lambda: roofline(0, 1e9, POINTS), "bandwidth must be a finite number above 0, got 0"),
        (lambda: roofline(1e9, np.inf, POINTS), "flops must be a finite number above 0, got inf"),
        (lambda: roofline(1e9, 1e9, POINTS.drop(columns="name")), "points must be .* the columns name"),
    ],
)
def test_what_cannot_be_drawn(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("column, sign", [("known", 1), ("loss", -1)])
def test_gain_by_model_has_each_seed_against_the_base_of_the_same_seed(theme, column, sign):
    ax = gain_by_model(RESULTS, ACTIVE, column, "more", theme=theme)
    last = RESULTS[RESULTS.step == 10].pivot(index="seed", columns="model", values=column)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert sorted(names) == sorted({"MoE, E=4", "MoE, E=16", TOTAL})
    gains = {line.get_ydata()[0]: line.get_xdata() for line in ax.lines if line.get_marker() == "o"}
    for name, bar in zip(names, ax.patches):
        expected = sign * (last[name] - last[ACTIVE])
        assert list(gains[name]) == pytest.approx(list(expected)) and bar.get_width() == pytest.approx(expected.mean())


def test_gain_by_model_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="results must be a DataFrame with rows and the columns"):
        gain_by_model(RESULTS.drop(columns="seed"), ACTIVE, "known", "more")
