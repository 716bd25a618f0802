"""The panels of the balancing laboratory: what is drawn equals the readings, and colours say what became of a tile."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from moe_lessons.plots import PANELS, THEMES, figure, tile
from moe_lessons.plots.marks import Band, Line, Rule, Stack
from moe_lessons.plots.panels.balance import balance
from moe_lessons.plots.panels.curves import CURVES, curves, outcomes

DEAD = {"nothing": 4, "jitter": 2, "auxiliary loss": 0, "capacity": 5, "top-2": 0}  # of the last reading


class Reading(NamedTuple):
    step: int
    dead: np.ndarray
    variation: np.ndarray
    accuracy: np.ndarray


class Band_(SimpleNamespace):
    __hash__ = object.__hash__


def make_tile(dead: int, steps: int, is_noisy: bool = False, seed: int = 0) -> SimpleNamespace:
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.full(8, 3), size=steps)
    records = [SimpleNamespace(loss=1.0, dead_experts=3, ms_per_step=1.0, load=[row.tolist()]) for row in shares]
    readings = [
        Reading(step, np.array([dead, dead, dead + (step < steps)]), random.random(3), 0.7 + 0.3 * random.random(3))
        for step in {0, steps // 2, steps}
    ]
    readings.sort()
    clean = random.dirichlet(np.ones(8), size=3)
    band = Band_(records=records, num_experts=[8])
    return SimpleNamespace(readings=readings, band=band, marks=[2], clean=clean, is_noisy=is_noisy, step=steps)


def lab(steps: int = 40, selected: str = "jitter", curve: str = "dead experts", dead=DEAD) -> SimpleNamespace:
    tiles = {name: make_tile(count, steps, name == "jitter", i) for i, (name, count) in enumerate(dead.items())}
    facts = {"num_experts": 8, "seeds": 3, "step": steps, "caption": lambda tile: f"{tile.readings[-1].dead[0]} dead"}
    return SimpleNamespace(tiles=tiles, selected=selected, curve=curve, **facts)


def lines(panel) -> dict:
    return {mark.model: mark for mark in panel.marks if isinstance(mark, Line) and mark.model is not None}


def test_tiles_are_coloured_by_what_became_of_them():
    assert outcomes(lab()) == [5, 1, 4, 5, 4]
    assert (
        list(curves(lab()).legend)
        == list(balance(lab()).legend)
        == [
            (4, "no dead expert: auxiliary loss, top-2"),
            (1, "fewer dead than nothing: jitter"),
            (5, "as many dead or more: nothing, capacity"),
        ]
    )


def test_before_the_first_step_all_start_alike():
    assert set(outcomes(lab(0))) == {5} and curves(lab(0)).legend == [(5, "all start alike")]


def test_a_tile_that_still_starts_does_not_take_the_colours_of_the_others():
    view = lab()
    view.tiles["new"] = make_tile(0, 0)
    assert outcomes(view)[:5] == [5, 1, 4, 5, 4]


def test_without_the_tile_nothing_the_worst_is_compared_with():
    view = lab(dead={"jitter": 2, "auxiliary loss": 0, "capacity": 5})
    assert outcomes(view) == [1, 4, 5]
    assert [text for _, text in curves(view).legend][1] == "fewer dead than the worst: jitter"


@pytest.mark.parametrize("curve", CURVES)
def test_curves_are_the_means_and_the_band_of_the_selected_one_its_extremes(curve):
    view, quantity = lab(curve=curve), CURVES[curve][2]
    panel = PANELS["curves"](view)
    for model, shown in enumerate(view.tiles.values()):
        line, values = lines(panel)[model], np.array([getattr(r, quantity) for r in shown.readings])
        assert line.x.tolist() == [r.step for r in shown.readings] and line.ink == outcomes(view)[model]
        np.testing.assert_allclose(line.y, values.mean(axis=1), rtol=1e-6)
        assert line.strong == (model == 1) and values.max() <= panel.y.high
        if model == 1:
            (band,) = [mark for mark in panel.marks if isinstance(mark, Band)]
            np.testing.assert_allclose([band.low, band.high], [values.min(axis=1), values.max(axis=1)], rtol=1e-6)
    noisy = [mark for mark in panel.marks if isinstance(mark, Line) and mark.model is None]
    assert [line.name for line in noisy] == ["jitter, with noise"] * (curve == "dead experts")
    assert panel.title == CURVES[curve][0] + " without noise (mean of 3)" and panel.width == 6


def test_only_a_noisy_tile_has_a_second_reading():
    assert all(mark.model is not None for mark in curves(lab(selected="capacity")).marks if isinstance(mark, Line))
    (second,) = [mark for mark in curves(lab()).marks if isinstance(mark, Line) and mark.model is None]
    assert second.x.tolist() == list(range(1, 41)) and (second.y == 3).all()


def test_spots_are_means_and_crosses_reach_over_all_seeds():
    view = lab()
    panel = PANELS["balance"](view)
    (spots,) = panel.marks
    last = [shown.readings[-1] for shown in view.tiles.values()]
    for mean, low, high, name in (("x", "x_low", "x_high", "variation"), ("y", "y_low", "y_high", "accuracy")):
        values = np.array([getattr(reading, name) for reading in last])
        found = [getattr(spots, part) for part in (mean, low, high)]
        np.testing.assert_allclose(found, [values.mean(axis=1), values.min(axis=1), values.max(axis=1)], rtol=1e-6)
    assert list(spots.names) == list(DEAD) and spots.selected == 1 and spots.ink.tolist() == outcomes(view)


@pytest.mark.parametrize("widest, lowest", [(0.1, 0.97), (1.2, 0.62), (3.7, 0.05), (0.0, 0.5)])
def test_the_axes_hold_every_seed(widest, lowest):
    view = lab()
    numbers = {"variation": np.array([0, widest]), "accuracy": np.array([lowest, 0.99])}
    for shown in view.tiles.values():
        shown.readings[-1] = shown.readings[-1]._replace(**numbers)
    panel = balance(view)
    assert panel.x.low == 0 and panel.x.high >= widest and panel.y.low <= lowest and panel.y.high == 1


def test_a_tile_has_its_name_its_film_its_strip_and_its_lines():
    view = lab()
    panel = tile(view, "jitter")
    (stack,) = [mark for mark in panel.marks if isinstance(mark, Stack)]
    np.testing.assert_allclose(stack.y, [r.load[0] for r in view.tiles["jitter"].band.records], rtol=1e-6)
    assert stack.second.tolist() == view.tiles["jitter"].clean[0].tolist()
    assert [rule.x for rule in panel.marks if isinstance(rule, Rule) and rule.kind == "mark"] == [2]
    assert (panel.title, panel.caption, panel.model, panel.selected) == ("jitter", "2 dead", 1, True)
    assert (panel.width, panel.y.ticks, panel.x.label) == (3, (), "")
    other = tile(view, "nothing")
    assert not other.selected and next(m for m in other.marks if isinstance(m, Stack)).second is None


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("steps", [0, 1, 40])
def test_the_whole_laboratory_is_drawn(theme, steps):
    view = lab(steps)
    panels = [curves(view), balance(view), *(tile(view, name) for name in view.tiles)]
    made = figure(panels, THEMES[theme], caption="No dead expert: auxiliary loss.")
    assert len(made.png()) > 10_000 and [len(ax.spines) for ax in made.axes] == [4] * 7
