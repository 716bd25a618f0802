"""Facts by heart, live: the walls, the curve, and how often all entries are read."""

import numpy as np
import pytest
from live_tools import on_a_loop, words

from moe_lessons.nn import EQUAL_ACTIVE, EQUAL_TOTAL
from moe_lessons.plots.marks import Lamps, Line
from moe_lessons.plots.panels.facts import wall_panel
from moe_lessons.training import facts_runs
from moe_lessons.widgets import FactsLab


def marks(lab, place: int, kind: type) -> list:
    return [mark for mark in lab.panels()[place].marks if isinstance(mark, kind)]


@on_a_loop
async def test_the_walls_show_what_each_model_knows_and_the_curve_how_many():
    lab = FactsLab(4, num_entries=8, lr=0.01, play=20)
    await lab.finished()
    plain = facts_runs(4, num_entries=8, lr=0.01)
    for _ in range(20):
        assert all(run.step() for run in plain.values())
    for place, (name, run) in enumerate(plain.items()):
        known, panel = run.task.known(run.model), lab.panels()[place]
        (lamps,) = panel.marks
        assert lamps.lit.tolist() == known.tolist() and lamps.ink == place
        assert panel.title == f"{name}: {int(known.sum())} of 8"
        assert bytes(lamps.letters[7]).decode() == run.task.entries[7]
    for name, line in zip(["MoE", EQUAL_ACTIVE, EQUAL_TOTAL], marks(lab, 3, Line), strict=True):
        assert line.name == name and line.x.tolist() == list(range(0, 21, 5))
        assert line.y.tolist() == [int(known[name].sum()) for _, known in lab.readings]
    assert 0 < sum(marks(lab, 0, Lamps)[0].lit)
    for axis in ("seconds", "FLOPs"):
        lab.set(x_axis=axis)
        lines = marks(lab, 3, Line)
        assert all((np.diff(line.x) > 0).all() for line in lines) and lab.panels()[3].x.high >= lines[2].x[-1]


def test_in_a_pause_the_lamps_are_those_of_the_last_step_and_a_new_start_begins_anew():
    lab = FactsLab(4, num_entries=500)
    lab.advance(13)
    assert [step for step, _ in lab.readings] == [0, 6, 12, 13]
    lab.advance(1)
    assert [step for step, _ in lab.readings] == [0, 6, 12, 13, 14]
    lab.set(num_entries=1000)
    assert lab.step == 0 and [step for step, _ in lab.readings] == [0] and len(marks(lab, 0, Lamps)[0].lit) == 1000


def test_it_says_how_many_times_as_many_the_mixture_knows():
    lab = FactsLab(4, num_entries=250)
    assert words(lab).startswith("The mixture knows 0 of 250 entries by heart.")
    _, known = lab.readings[-1]
    known["MoE"][:90], known[EQUAL_ACTIVE][:20] = True, True
    assert lab.words() == "The mixture knows 90 of 250 entries by heart, 4.5 times as many as its equal-active twin."


@pytest.mark.parametrize("num", [1, 2, 7, 250, 2000])
def test_a_wall_has_room_for_all_its_lamps(num):
    panel = wall_panel(np.arange(num) % 3 == 0)
    (lamps,) = panel.marks
    assert lamps.columns * panel.y.low >= num > lamps.columns * (panel.y.low - 1)
    assert panel.title == f"known: {-(-num // 3):,} of {num:,}"
