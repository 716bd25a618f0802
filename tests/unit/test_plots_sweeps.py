"""What many runs showed is drawn as it was measured, over all seeds."""

import numpy as np
import pandas as pd
import pytest

from moe_lessons.plots import THEMES, distinct_by_batch, loss_against, rate_tolerance, roofline, seed_sweep
from moe_lessons.plots import speed_by_batch as by_batch
from moe_lessons.plots.theme import model_looks

ACTIVE, TOTAL = "dense, same active", "dense, same total"
SIZES = {ACTIVE: 60_000, "MoE, E=4": 90_000, "MoE, E=16": 300_000, TOTAL: 120_000}
COLUMNS = {"steps": "step", "FLOPs": "flops", "seconds": "seconds"}


def make_results() -> pd.DataFrame:
    rows, rng = [], np.random.default_rng(0)
    for i, (model, parameters) in enumerate(SIZES.items()):
        for seed in range(3):
            for step in (100, 200, 300):
                loss = 3 - 0.1 * i - 0.005 * step + 0.05 * rng.random()
                spent = {"flops": step * 1e9 * (i + 1), "seconds": step * (0.01 + 0.001 * seed + 0.005 * i)}
                row = {"model": model, "seed": seed, "step": step, "loss": loss, "parameters": parameters}
                rows.append(row | spent)
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


@pytest.mark.parametrize("x", COLUMNS)
def test_a_line_is_the_mean_of_the_seeds_and_the_band_has_them_all(x):
    ax = loss_against(RESULTS.drop(columns="parameters"), x)
    assert set(lines(ax)) == set(SIZES) and ax.get_xscale() == ("linear" if x == "steps" else "log")
    assert x in ax.get_xlabel() and x in ax.get_title(loc="left") and "nats" in ax.get_ylabel()
    for (model, line), band in zip(lines(ax).items(), ax.collections, strict=True):
        steps = [RESULTS[(RESULTS.model == model) & (RESULTS.step == step)] for step in (100, 200, 300)]
        np.testing.assert_allclose(line.get_xydata(), [(own[COLUMNS[x]].mean(), own.loss.mean()) for own in steps])
        np.testing.assert_allclose(heights(band), [(own.loss.min(), own.loss.max()) for own in steps])


def test_against_parameters_the_last_losses_are_points_with_names_and_the_mixtures_are_joined():
    ax = loss_against(RESULTS, "parameters")
    last = RESULTS[RESULTS.step == 300].groupby("model").loss
    assert set(lines(ax)) == {ACTIVE, TOTAL, "mixtures"} and {text.get_text() for text in ax.texts} == set(SIZES)
    for name, models in ((ACTIVE, [ACTIVE]), (TOTAL, [TOTAL]), ("mixtures", ["MoE, E=4", "MoE, E=16"])):
        points = [(SIZES[model], last.mean()[model]) for model in models]
        np.testing.assert_allclose(lines(ax)[name].get_xydata(), points)
        band = ax.collections[list(lines(ax)).index(name)]
        np.testing.assert_allclose(heights(band), [(last.min()[model], last.max()[model]) for model in models])


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
    ax = by_batch(SPEEDS[SPEEDS.model == "MoE"], "speedup")  # over the dashed twin
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
        (lambda: loss_against(RESULTS, "hours"), "x must be one of 'steps', 'FLOPs', 'seconds', 'parameters', got"),
        (lambda: loss_against(RESULTS[:0]), "results must be a DataFrame with rows and the columns .*, got 0 rows"),
        (lambda: loss_against([1]), "results must be a DataFrame with rows and the columns .*, got list"),
        (lambda: loss_against(RESULTS.drop(columns="flops"), "FLOPs"), "and the columns .*, flops, got 36 rows with"),
        (lambda: loss_against(RESULTS.assign(lr=range(36))), "one learning rate for each model, got several"),
        (lambda: loss_against(RESULTS.assign(loss=np.nan)), "results must have finite losses, got others"),
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
