"""What many runs showed is drawn as it was measured, over all seeds."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color, to_rgb
from matplotlib.figure import Figure

from moe_lessons.plots import THEMES, distinct_by_batch, loss_against, rate_tolerance, roofline, speed_by_batch
from moe_lessons.plots.sweeps import model_looks
from moe_lessons.plots.theme import contrast

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
                rows.append(
                    {"model": model, "seed": seed, "step": step, "loss": loss, "parameters": parameters} | spent
                )
    return pd.DataFrame(rows).sample(frac=1, random_state=0, ignore_index=True)  # in no order


RESULTS = make_results()
RATES = pd.DataFrame(
    [
        {"model": model, "lr": lr, "seed": seed, "loss": 1 + (np.log10(lr) + 2) ** 2 + 0.1 * seed + 0.2 * i}
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
DISTINCT = pd.DataFrame({"batch": [4, 1, 2], "distinct": [4.6, 2, 3.3], "union_law": [5.5, 2, 3.5]})
POINTS = pd.DataFrame({"name": ["a", f"{TOTAL}, batch 64"], "intensity": [0.5, 40], "flops_per_second": [4e9, 8e10]})


def lines(ax) -> dict:
    """The named lines, by name."""
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def heights(band) -> np.ndarray:
    """(N, 2): the lower and upper edge of a band, from left to right."""
    vertices = pd.DataFrame(band.get_paths()[0].vertices)
    return vertices.groupby(0)[1].agg(["min", "max"]).to_numpy()


# --- loss against what was spent -------------------------------------------------------------------------


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("x", COLUMNS)
def test_a_line_is_the_mean_of_the_seeds_and_the_band_has_them_all(x, theme):
    ax = loss_against(RESULTS, x, theme=theme)
    assert set(lines(ax)) == set(SIZES) and len(ax.collections) == 4
    for (model, line), band in zip(lines(ax).items(), ax.collections, strict=True):
        runs = RESULTS[RESULTS.model == model]
        expected = [
            (runs[runs.step == step][COLUMNS[x]].mean(), runs[runs.step == step].loss.mean())
            for step in (100, 200, 300)
        ]
        np.testing.assert_allclose(line.get_xydata(), expected)
        edges = [(runs[runs.step == step].loss.min(), runs[runs.step == step].loss.max()) for step in (100, 200, 300)]
        np.testing.assert_allclose(heights(band), edges)


def test_the_legend_is_in_the_order_in_which_the_lines_end():
    names = [text.get_text() for text in loss_against(RESULTS).get_legend().get_texts()]
    last = RESULTS[RESULTS.step == 300].groupby("model").loss.mean()
    assert names == last.sort_values(ascending=False).index.tolist()


def test_the_axes_say_what_they_show():
    ax = loss_against(RESULTS, "FLOPs")
    assert ax.get_xlabel() == "training FLOPs" and "nats" in ax.get_ylabel() and "FLOPs" in ax.get_title(loc="left")
    assert (ax.get_xscale(), loss_against(RESULTS, "steps").get_xscale()) == ("log", "linear")


@pytest.mark.parametrize("theme", THEMES)
def test_against_parameters_the_last_losses_are_points_and_the_mixtures_are_joined(theme):
    ax = loss_against(RESULTS, "parameters", theme=theme)
    last = RESULTS[RESULTS.step == 300].groupby("model").loss
    points = {name: tuple(line.get_xydata()[0]) for name, line in lines(ax).items()}
    assert points == {model: (size, pytest.approx(last.mean()[model])) for model, size in SIZES.items()}
    family = ax.lines[0].get_xydata()
    np.testing.assert_allclose(family, [points["MoE, E=4"], points["MoE, E=16"]])
    bars = {bar.get_segments()[0][0][0]: bar.get_segments()[0][:, 1] for bar in ax.collections}
    for model, size in SIZES.items():
        np.testing.assert_allclose(bars[size], [last.min()[model], last.max()[model]])
    assert {text.get_text() for text in ax.texts} == set(SIZES)
    assert len({lines(ax)[model].get_marker() for model in (ACTIVE, TOTAL, "MoE, E=4")}) == 3


@pytest.mark.parametrize(
    "change, x, message",
    [
        (lambda frame: frame, "hours", "x must be one of 'steps', 'FLOPs', 'seconds', 'parameters', got 'hours'"),
        (lambda frame: frame[:0], "steps", "results must be a DataFrame with at least one row, got an empty one"),
        (lambda frame: [1], "steps", "results must be a DataFrame with at least one row, got list"),
        (lambda frame: frame.drop(columns=["seed", "flops"]), "FLOPs", "got none called seed, flops"),
        (
            lambda frame: frame.assign(lr=np.arange(len(frame))),
            "steps",
            "one learning rate for each model, got several",
        ),
        (lambda frame: frame.assign(loss=np.nan), "steps", "finite losses above 0"),
    ],
)
def test_results_that_cannot_be_drawn(change, x, message):
    with pytest.raises(ValueError, match=message):
        loss_against(change(RESULTS), x)


def test_a_column_that_is_not_drawn_may_be_missing():
    assert loss_against(RESULTS.drop(columns=["flops", "seconds", "parameters"])).lines


# --- looks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_the_twins_look_as_elsewhere_and_no_two_models_look_alike(theme):
    names = [ACTIVE, *(f"MoE, E={e}" for e in (2, 4, 8, 16, 32)), TOTAL]
    looks = model_looks(names, theme)
    assert looks[ACTIVE][0] == theme.lines[1] and looks[TOTAL][0] == theme.lines[2]
    assert model_looks([TOTAL, "MoE"], theme)["MoE"][0] == theme.lines[0]
    assert len({looks[name] for name in names}) == len(names)


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_lines_can_be_seen_on_the_page(theme):
    for color, _, _ in model_looks([ACTIVE, TOTAL, *map(str, range(6))], theme).values():
        assert contrast(color, theme.background) >= 2.8


# --- learning rates --------------------------------------------------------------------------------------


def test_loss_against_the_learning_rate_and_the_best_one():
    ax = rate_tolerance(RATES)
    found = lines(ax)
    assert set(found) == {"MoE", ACTIVE}
    np.testing.assert_allclose(found["MoE"].get_xydata(), [(0.001, 2.05), (0.01, 1.05), (0.1, 2.05)])
    np.testing.assert_allclose(heights(ax.collections[0]), [(2, 2.1), (1, 1.1), (2, 2.1)])
    rings = [line.get_xydata()[0] for line in ax.lines if line.get_label().startswith("_")]
    np.testing.assert_allclose(rings, [(0.01, 1.05), (0.01, 1.25)])


def test_a_run_of_which_nobody_said_that_it_diverged_did_not():
    frame = pd.concat([RATES, RATES.assign(seed=2, diverged=False)])  # NaN in the first part
    assert set(lines(rate_tolerance(frame))) == {"MoE", ACTIVE}


@pytest.mark.parametrize("bad", [{"loss": np.nan}, {"loss": np.inf}, {"diverged": True}])
def test_a_run_that_diverged_is_a_cross_and_in_no_mean(bad):
    frame = RATES.assign(diverged=False)
    frame.loc[(frame.model == "MoE") & (frame.lr == 0.1) & (frame.seed == 1), list(bad)] = list(bad.values())
    found = lines(rate_tolerance(frame))
    np.testing.assert_allclose(found["MoE: diverged"].get_xydata(), [(0.1, 1)])
    np.testing.assert_allclose(found["MoE"].get_ydata(), [2.05, 1.05, 2])
    assert f"{ACTIVE}: diverged" not in found


def test_a_rate_at_which_a_run_diverged_is_not_the_best():
    frame = RATES.copy()
    frame.loc[(frame.model == "MoE") & (frame.lr == 0.01) & (frame.seed == 1), "loss"] = np.nan
    frame.loc[(frame.model == ACTIVE) & (frame.seed == 1), "loss"] = np.nan  # one seed at every rate: no ring
    rings = [line.get_xydata() for line in rate_tolerance(frame).lines if line.get_label().startswith("_")]
    np.testing.assert_allclose(np.concatenate(rings), [(0.001, 2.05)])


def test_where_all_runs_diverged_there_are_only_crosses():
    found = lines(rate_tolerance(RATES.assign(loss=np.nan)))
    assert list(found) == ["MoE: diverged", f"{ACTIVE}: diverged"]


def test_of_a_run_that_was_measured_often_the_last_loss_counts():
    often = pd.concat([RATES.assign(step=2), RATES.assign(step=1, loss=9.0)])
    np.testing.assert_allclose(lines(rate_tolerance(often))["MoE"].get_ydata(), [2.05, 1.05, 2.05])


# --- speed -----------------------------------------------------------------------------------------------


def test_speed_is_the_median_of_what_was_measured():
    ax = speed_by_batch(SPEEDS)
    found = lines(ax)["MoE"].get_xydata()
    np.testing.assert_allclose(found, [(batch, 200 * batch**0.5 + 1) for batch in (1, 2, 4)])
    np.testing.assert_allclose(heights(ax.collections[0])[0], (200, 207))
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4"]


def test_a_speed_up_is_over_the_dashed_twin():
    found = lines(speed_by_batch(SPEEDS[SPEEDS.model == "MoE"], "speedup"))
    assert set(found) == {"MoE", TOTAL} and list(found[TOTAL].get_ydata()) == [1, 1]
    np.testing.assert_allclose(found["MoE"].get_ydata(), [200, 100, 50])


def test_the_band_of_a_speed_up_has_the_ends_that_were_measured():
    frame = SPEEDS.assign(low=SPEEDS.speedup - 3, high=SPEEDS.speedup + 5)
    np.testing.assert_allclose(
        heights(speed_by_batch(frame, "speedup").collections[0]), [(197, 205), (97, 105), (47, 55)]
    )


@pytest.mark.parametrize("names", [[], ["2 of 8", "2 of 16"]])
def test_distinct_experts_beside_the_law(names):
    frame = pd.concat([DISTINCT.assign(model=name) for name in names]) if names else DISTINCT
    law, *measured = distinct_by_batch(frame).lines
    assert law.get_xydata().tolist() == [[1, 2], [2, 3.5], [4, 5.5]] and law.get_linestyle() == "--"
    assert len(measured) == max(len(names), 1)
    for points in measured:
        assert points.get_xydata().tolist() == [[1, 2], [2, 3.3], [4, 4.6]] and points.get_label().endswith("measured")


def test_models_with_other_laws_have_a_curve_each():
    other = DISTINCT.assign(model="2 of 16", union_law=[6.6, 2.0, 3.75])  # of 4, 1 and 2
    lines = distinct_by_batch(pd.concat([DISTINCT.assign(model="2 of 8"), other])).lines
    assert [line.get_linestyle() for line in lines].count("--") == 2 and len(lines) == 4
    assert lines[2].get_ydata().tolist() == [2.0, 3.75, 6.6] and lines[2].get_label().startswith("2 of 16")


@pytest.mark.parametrize("theme", THEMES)
def test_the_roof_is_the_lesser_of_memory_and_arithmetic(theme):
    ax = roofline(1e10, 2e11, POINTS, theme=theme)
    x, y = ax.lines[0].get_data()
    np.testing.assert_allclose(y, np.minimum(1e10 * x, 2e11))
    assert x[1] == 20  # the ridge
    left, right = ax.get_xlim()
    assert x[0] == left and x[2] == right and ax.get_ylim()[1] > 2e11
    points = [line.get_xydata()[0] for line in ax.lines[2:]]
    np.testing.assert_allclose(points, POINTS[["intensity", "flops_per_second"]])
    assert [line.get_color() for line in ax.lines[2:]] == [THEMES[theme].lines[0], THEMES[theme].lines[2]]
    assert {*POINTS.name, "200 GFLOP/s", "10 GB/s"} <= {text.get_text().strip() for text in ax.texts}
    assert all(left < px < right and ax.get_ylim()[0] < py for px, py in points)


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: speed_by_batch(SPEEDS, "loss"), "y must be one of 'tokens_per_second', 'speedup', got 'loss'"),
        (lambda: speed_by_batch(SPEEDS.drop(columns="speedup"), "speedup"), "got none called speedup"),
        (lambda: speed_by_batch(SPEEDS[:0]), "frame must be a DataFrame with at least one row"),
        (lambda: distinct_by_batch(DISTINCT.drop(columns="union_law")), "got none called union_law"),
        (lambda: rate_tolerance(RATES.drop(columns="lr")), "got none called lr"),
        (lambda: rate_tolerance(RATES.assign(loss="low")), "results must have numbers in the columns loss, got"),
        (lambda: loss_against(RESULTS.assign(loss="low")), "results must have numbers in the columns loss, got"),
        (lambda: speed_by_batch(SPEEDS.assign(batch="one")), "frame must have numbers in the columns batch, got"),
        (lambda: roofline(0, 1e9, POINTS), "bandwidth must be a finite number above 0, got 0"),
        (lambda: roofline(1e9, np.inf, POINTS), "flops must be a finite number above 0, got inf"),
        (lambda: roofline(1e9, 1e9, POINTS.drop(columns="name")), "got none called name"),
    ],
)
def test_measurements_that_cannot_be_drawn(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


@pytest.mark.parametrize("theme", THEMES)
def test_every_plot_draws_into_given_axes(theme):
    ink = THEMES[theme]
    for draw, arguments in (
        (loss_against, (RESULTS, "steps")),
        (loss_against, (RESULTS, "parameters")),
        (rate_tolerance, (RATES,)),
        (speed_by_batch, (SPEEDS, "tokens_per_second")),
        (distinct_by_batch, (DISTINCT,)),
        (roofline, (1e10, 1e11, POINTS)),
    ):
        ax = Figure().subplots()
        assert draw(*arguments, ax, theme) is ax and ax.get_title(loc="left")
        assert same_color(ax.get_facecolor(), ink.background) and to_rgb(ax.xaxis.label.get_color()) == to_rgb(
            ink.foreground
        )
        with pytest.raises(ValueError, match="theme must be one of"):
            draw(*arguments, theme="pink")
