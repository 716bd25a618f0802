"""The collapse and the facts by heart, live."""

import numpy as np
import pandas as pd
import pytest
import torch
from live_tools import mark

from moe_lessons.plots.marks import Bars, Cells, Lamps, Line
from moe_lessons.plots.panels.compared import columns_of
from moe_lessons.plots.theme import model_inks
from moe_lessons.training import facts_runs, train
from moe_lessons.widgets import CollapseLab, FactsLab, RaceLab, RoutersView, small_labs


def test_a_collapse_shows_the_load_of_the_clean_router_until_it_trains():
    lab = CollapseLab()
    assert mark(lab, 1, Bars).y.tolist() == pytest.approx(lab.clean_load)
    lab.advance(25)
    assert lab.main_run.records[-1].dead_experts > 0 and lab.canvas.panels[0].x.high == 25  # it is over by then


def test_the_walls_show_what_each_model_knows_and_the_curve_how_many():
    lab, plain = FactsLab(4, num_entries=8, lr=0.01), facts_runs(4, num_entries=8)
    lab.advance(20)
    for place, (name, run) in enumerate(plain.items()):
        run.knobs.lr = 0.01
        train(run, 20)
        known, lamps, line = run.task.known(run.model), mark(lab, place, Lamps), mark(lab, 3, Line, place)
        assert (lamps.right == 4).tolist() == known.tolist() and lamps.ink == line.ink == model_inks(plain)[place]
        assert bytes(lamps.entries[7]).decode() == run.task.entries[7]
        digits = lamps.entries[:, -4:] == lamps.answers
        assert digits.sum(axis=1).tolist() == lamps.right.tolist()
        assert digits.mean() == pytest.approx(run.evaluate()["accuracy"], abs=0.05)  # of entries that are drawn
        with torch.no_grad():
            logits, _ = run.model(run.task.x)
        assert digits.mean() == (logits.argmax(dim=2) == run.task.y)[:, 4:].float().mean().item()
        assert line.name == name and line.x.tolist() == list(range(0, 21, 5))
        assert line.y.tolist() == [int(known[name].sum()) for _, known in lab.readings]
    assert lab.readings[-1][1]["MoE"].any()
    for axis in ("seconds", "FLOPs"):
        lab.set(x_axis=axis)
        for line in (mark(lab, 3, Line, number) for number in range(3)):
            assert (np.diff(line.x) > 0).all() and lab.canvas.panels[3].x.high >= line.x[-1]


def test_where_both_baselines_are_one_model_it_is_shown_once():
    lab = FactsLab(4, num_entries=8)
    assert list(lab.runs) == ["MoE", "dense, 1×", "dense, 2×"] and len(lab.canvas.panels) == 6
    for top_k, names in ((4, ["dense, 1×"]), (1, ["dense, 1×", "dense, 4×"])):
        lab.set(top_k=top_k)
        titles = [panel.title.partition(":")[0] for panel in lab.panels()[:-3]]
        assert list(lab.runs) == titles == ["MoE", *names]


def test_the_lamps_are_those_of_the_last_step():
    lab = FactsLab(4, num_entries=500)
    lab.advance(13)
    lab.advance(1)
    assert [step for step, _ in lab.readings] == [0, 6, 12, 13, 14]
    lab.set(num_entries=1000)
    assert lab.step == 0 and [step for step, _ in lab.readings] == [0]
    (lamps,), low = lab.canvas.panels[0].marks, lab.canvas.panels[0].y.low  # there is room for all, and no row too many
    assert [columns_of(count) for count in (200, 400, 800, 8, 251)] == [20, 20, 32, 4, 16]
    assert len(lamps.right) == 1000 and lamps.columns * low >= 1000 > lamps.columns * (low - 1)


def test_a_race_gives_each_model_the_time_of_the_largest(monkeypatch):
    ticks = iter(range(10**6))
    cost = {"MoE": 2, "dense, 1×": 1, "dense, 8×": 5}
    monkeypatch.setattr(small_labs, "READ_EVERY", 2)
    lab = RaceLab(seed=1)
    name_of = {id(run): name for name, run in lab.runs.items()}

    def step(runs, *_):
        (run,) = runs
        run.step()
        for _ in range(cost[name_of[id(run)]] - 1):
            next(ticks)

    monkeypatch.setattr(small_labs, "step_together", step)
    monkeypatch.setattr(small_labs.time, "thread_time", lambda: float(next(ticks)))
    lab.advance(2)
    assert lab.step == 2 and lab.clocks == {"MoE": 10, "dense, 1×": 10, "dense, 8×": 10}
    assert [len(run.records) for run in lab.runs.values()] == [5, 10, 2]
    for place, (name, run) in enumerate(lab.runs.items()):
        loss = run.evaluate(small_labs.NUM_READ)["loss"]
        assert lab.readings[name] == [(len(run.records), 10, pytest.approx(loss))]
        assert mark(lab, 0, Line, place).x.tolist() == [10] and mark(lab, 0, Line, place).y[0] == pytest.approx(loss)
    work = [mark(lab, 1, Line, place).x[0] / len(run.records) for place, run in enumerate(lab.runs.values())]
    assert work[1] < work[0] < 1.05 * work[1] and work[2] > 3 * work[0]
    lab.set(x_axis="steps")
    assert [mark(lab, 0, Line, place).x.tolist() for place in range(3)] == [[5], [10], [2]]
    lab.set(seed=2)
    assert not any(lab.readings.values()) and not any(lab.clocks.values()) and lab.step == 0


def test_a_view_of_routers_shows_the_layers_in_shares_of_each_row():
    def table(*rows):
        return pd.DataFrame(list(rows), ["code", "json"])

    view = RoutersView(
        {
            "a": {3: table([30, 10], [5, 5]), 9: table([1, 1], [3, 1])},
            "b": {3: table([1] * 4, [7, 1, 0, 0]), 9: table([1] * 4, [2] * 4)},
        }
    )
    assert mark(view, 0, Cells).z.tolist() == [[0.5, 0.5], [0.75, 0.25]]
    view.slider.value = 0
    assert mark(view, 0, Cells).z.tolist() == [[0.75, 0.25], [0.5, 0.5]]
    with pytest.raises(ValueError, match="^counts must "):
        RoutersView({"a": {0: table([1, 1], [1, 1])}, "b": {1: table([1, 1], [1, 1])}})
