"""The collapse and the facts by heart, live."""

import numpy as np
import pandas as pd
import pytest
from live_tools import mark, on_a_loop, words

from moe_lessons.nn import SAME_ACTIVE
from moe_lessons.plots.marks import Bars, Cells, Lamps, Line
from moe_lessons.training import facts_runs, train
from moe_lessons.widgets import CollapseLab, FactsLab, RoutersView


@on_a_loop
async def test_a_collapse_says_what_is_seen():
    lab = CollapseLab(play=25)
    assert "All 8 experts receive tokens" in words(lab)  # of the clean load, before the first step
    assert mark(lab, 1, Bars).y.tolist() == pytest.approx(lab.clean_load)
    await lab.finished()
    assert "experts are dead" in words(lab) and lab.canvas.panels[0].x.high == 25  # a collapse is over by then


def test_the_walls_show_what_each_model_knows_and_the_curve_how_many():
    lab, plain = FactsLab(4, num_entries=8, lr=0.01), facts_runs(4, num_entries=8)
    lab.advance(20)
    for place, (name, run) in enumerate(plain.items()):
        run.knobs.lr = 0.01
        train(run, 20)
        known, lamps, line = run.task.known(run.model), mark(lab, place, Lamps), mark(lab, 3, Line, place)
        assert lamps.lit.tolist() == known.tolist() and lamps.ink == place
        assert lab.canvas.panels[place].title == f"{name}: {int(known.sum())} of 8"
        assert bytes(lamps.letters[7]).decode() == run.task.entries[7]
        assert line.name == name and line.x.tolist() == list(range(0, 21, 5))
        assert line.y.tolist() == [int(known[name].sum()) for _, known in lab.readings]
    assert lab.readings[-1][1]["MoE"].any()
    for axis in ("seconds", "FLOPs"):
        lab.set(x_axis=axis)
        for line in (mark(lab, 3, Line, number) for number in range(3)):
            assert (np.diff(line.x) > 0).all() and lab.canvas.panels[3].x.high >= line.x[-1]


def test_the_lamps_are_those_of_the_last_step_and_it_says_how_many_times_as_many_the_mixture_knows():
    lab = FactsLab(4, num_entries=500)
    lab.advance(13)
    lab.advance(1)
    assert [step for step, _ in lab.readings] == [0, 6, 12, 13, 14]
    lab.set(num_entries=1000)
    assert lab.step == 0 and [step for step, _ in lab.readings] == [0]
    (lamps,), low = lab.canvas.panels[0].marks, lab.canvas.panels[0].y.low  # there is room for all, and no row too many
    assert len(lamps.lit) == 1000 and lamps.columns * low >= 1000 > lamps.columns * (low - 1)
    _, known = lab.readings[-1]
    known["MoE"][:90], known[SAME_ACTIVE][:20] = True, True
    assert " 90 of 1,000 facts" in lab.words() and " 4.5 times " in lab.words()


def test_a_view_of_routers_shows_the_layers_in_shares_of_each_row():
    def table(*rows):
        return pd.DataFrame(list(rows), ["code", "json"])

    view = RoutersView(
        {
            "a": {3: table([30, 10], [5, 5]), 9: table([1, 1], [3, 1])},
            "b": {3: table([1] * 4, [7, 1, 0, 0]), 9: table([1] * 4, [2] * 4)},
        }
    )
    assert mark(view, 0, Cells).z.tolist() == [[0.5, 0.5], [0.75, 0.25]] and "a: E0, 1.5× for json" in words(view)
    view.slider.value = 0
    assert mark(view, 0, Cells).z.tolist() == [[0.75, 0.25], [0.5, 0.5]] and view.canvas.panels[1].title == "b, layer 3"
    assert "a: E0, 1.5× for code; b: E0, 3.5× for json" in words(view)
    with pytest.raises(ValueError, match="counts must have for each model a table of each of the same layers, got "):
        RoutersView({"a": {0: table([1, 1], [1, 1])}, "b": {1: table([1, 1], [1, 1])}})
