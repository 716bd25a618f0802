"""The panels of the balancing laboratory: what is drawn equals the readings, and colours say what became of a tile."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from moe_lessons.plots import PANELS, THEMES, figure, tile
from moe_lessons.plots.marks import Line
from moe_lessons.plots.panels.curves import balance, curves, outcomes

DEAD = {"nothing": 4, "jitter": 2, "auxiliary loss": 0, "capacity": 5, "top-2": 0}  # of the last reading


class Reading(NamedTuple):
    step: int
    dead: np.ndarray
    max_over_mean: np.ndarray
    accuracy: np.ndarray


class FakeBand(SimpleNamespace):
    __hash__ = object.__hash__


def make_tile(dead: int, steps: int, is_noisy: bool = False, seed: int = 0) -> SimpleNamespace:
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.full(8, 3), size=steps)
    records = [SimpleNamespace(loss=1.0, dead_experts=3, ms_per_step=1.0, load=[row.tolist()]) for row in shares]
    readings = [
        Reading(step, np.array([dead, dead, dead + (step < steps)]), 1 + random.random(3), 0.7 + 0.3 * random.random(3))
        for step in sorted({0, steps // 2, steps})
    ]
    clean, band = random.dirichlet(np.ones(8), size=3), FakeBand(records=records, num_experts=[8])
    return SimpleNamespace(readings=readings, band=band, marks=[2], clean=clean, is_noisy=is_noisy, step=steps)


def lab(steps: int = 40, selected: str = "jitter", curve: str = "dead experts", dead=DEAD) -> SimpleNamespace:
    tiles = {name: make_tile(count, steps, name == "jitter", i) for i, (name, count) in enumerate(dead.items())}
    facts = {"num_experts": 8, "seeds": 3, "step": steps, "caption": lambda tile: f"{tile.readings[-1].dead[0]} dead"}
    return SimpleNamespace(tiles=tiles, selected=selected, curve=curve, **facts)


def of(panel, kind: type) -> list:
    return [mark for mark in panel.marks if isinstance(mark, kind)]


def test_tiles_are_coloured_by_what_became_of_them():
    view = lab()
    view.tiles["new"] = make_tile(0, 0)  # it still starts, and does not take the colours of the others
    assert outcomes(view)[0][:5] == outcomes(lab())[0] == [5, 1, 4, 5, 4]
    assert list(curves(lab()).legend) == list(balance(lab()).legend) == [
        (4, "no dead expert: auxiliary loss, top-2"),
        (1, "fewer dead than nothing: jitter"),
        (5, "as many dead or more: nothing, capacity"),
    ]  # fmt: skip
    assert set(outcomes(lab(0))[0]) == {5} and curves(lab(0)).legend == [(5, "all start alike")]


def test_without_the_tile_nothing_the_worst_is_compared_with():
    view = lab(dead={"jitter": 2, "auxiliary loss": 0, "capacity": 5})
    assert outcomes(view)[0] == [1, 4, 5]
    assert [text for _, text in curves(view).legend][1] == "fewer dead than the worst: jitter"


def test_only_a_noisy_tile_has_a_second_reading():
    assert all(line.model is not None for line in of(curves(lab(selected="capacity")), Line))
    (second,) = [line for line in of(curves(lab()), Line) if line.model is None]
    assert second.x.tolist() == list(range(1, 41)) and (second.y == 3).all()


@pytest.mark.parametrize("widest, lowest", [(1.1, 0.97), (2.2, 0.62), (8.7, 0.05), (1.0, 0.5)])
def test_spots_are_means_and_crosses_and_axes_reach_over_all_seeds(widest, lowest):
    view = lab()
    view.tiles["top-2"].readings[-1] = Reading(40, np.zeros(2), np.array([1, widest]), np.array([lowest, 0.99]))
    for name in list(view.tiles)[:4]:
        view.tiles[name].readings[-1] = view.tiles["top-2"].readings[-1]._replace(dead=np.full(2, DEAD[name]))
    panel = PANELS["balance"](view)
    (spots,) = panel.marks
    for mean, values in (("x", [1, widest]), ("y", [lowest, 0.99])):
        found = [getattr(spots, part)[0] for part in (mean, f"{mean}_low", f"{mean}_high")]
        np.testing.assert_allclose(found, [np.mean(values), min(values), max(values)], rtol=1e-6)
    assert list(spots.names) == list(DEAD) and spots.selected == 1 and spots.ink.tolist() == outcomes(view)[0]
    assert panel.x.low < 1 and panel.x.high >= widest and panel.y.low <= lowest and panel.y.high == 1


@pytest.mark.parametrize("steps", [0, 1, 40])
def test_the_whole_laboratory_is_drawn(steps):
    view = lab(steps)
    panels = [curves(view), balance(view), *(tile(view, name) for name in view.tiles)]
    made = figure(panels, THEMES["dark"], caption="No dead expert: auxiliary loss.")
    assert len(made.png()) > 10_000 and len(made.axes) == 7
    shown = [(panel.title, panel.model, panel.selected, panel.width) for panel in panels[2:]]
    assert shown == [(name, model, name == "jitter", 3) for model, name in enumerate(DEAD)]
