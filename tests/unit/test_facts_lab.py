"""Facts by heart, live: the walls, the curve, how often all entries are read, and what starts afresh."""

from types import SimpleNamespace

import numpy as np
import pytest
from live_tools import button, on_a_loop, settled, words
from oracle import refused

from moe_lessons.nn import EQUAL_ACTIVE, EQUAL_TOTAL
from moe_lessons.plots.marks import Lamps, Line
from moe_lessons.plots.panels.models import wall
from moe_lessons.training import facts_runs
from moe_lessons.widgets import FactsLab

NAMES = ["MoE", EQUAL_ACTIVE, EQUAL_TOTAL]


def small(**own) -> FactsLab:
    return FactsLab(4, **{"num_entries": 250} | own)


def mark(lab, place: int, kind: type):
    return [mark for mark in lab.panels()[place].marks if isinstance(mark, kind)]


@on_a_loop
async def test_the_walls_show_what_each_model_knows_and_the_curve_how_many():
    lab = small(num_entries=8, lr=0.01, play=20)
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
    for place, line in enumerate(mark(lab, 3, Line)):
        assert line.name == NAMES[place] and line.x.tolist() == list(range(0, 21, 5))
        assert line.y.tolist() == [int(known[line.name].sum()) for _, known in lab.readings]
    assert 0 < sum(mark(lab, 0, Lamps)[0].lit)


def test_in_a_pause_the_lamps_are_those_of_the_last_step_and_a_new_start_begins_anew():
    lab = FactsLab(4, num_entries=500)
    lab.advance(13)
    assert [step for step, _ in lab.readings] == [0, 6, 12, 13]
    lab.advance(1)
    assert [step for step, _ in lab.readings] == [0, 6, 12, 13, 14]
    lab.set(num_entries=1000)
    assert lab.step == 0 and [step for step, _ in lab.readings] == [0]
    assert len(mark(lab, 0, Lamps)[0].lit) == 1000 and lab.ghost is None


def test_reading_all_entries_takes_about_a_tenth_of_what_training_computes():
    for num in (1000, 4000):
        lab = FactsLab(4, num_entries=num)
        every = next(step for step in range(1, 200) if step % (num // 80) == 0)
        forward = num / every  # entries read for each step; a step reads 256, and its backward pass costs twice that
        assert 0.05 < forward / (3 * lab.main_run.batch_size) < 0.15


@on_a_loop
async def test_the_curve_is_drawn_against_what_was_spent():
    lab = small()
    lab.advance(10)
    for axis, last in (("seconds", None), ("FLOPs", None), ("steps", 10)):
        lab.inputs["x_axis"].value = axis
        await settled()
        lines = mark(lab, 3, Line)
        assert all((np.diff(line.x) > 0).all() for line in lines) and lab.panels()[3].x.high >= lines[2].x[-1]
        assert last is None or lines[0].x[-1] == last
    assert lines[0].x[0] == 0


@on_a_loop
async def test_the_rate_is_live_and_sizes_start_afresh():
    lab = small()
    lab.advance(3)
    run, lab.inputs["lr"].value = lab.main_run, 0.01
    await settled()
    assert lab.main_run is run and {run.knobs.lr for run in lab.runs.values()} == {0.01}
    lab.inputs["num_experts"].value = 8
    await settled()
    assert lab.step == 0 and lab.main_run.num_experts == [8, 8] and lab.values["lr"] == 0.01
    assert {run.knobs.lr for run in lab.runs.values()} == {0.01}
    button(lab, "Reset").click()
    assert lab.step == 0 and repr(lab) == "FactsLab(8, num_entries=250, lr=0.01)"


def test_it_says_how_many_times_as_many_the_mixture_knows():
    lab = small()
    assert words(lab).startswith("The mixture knows 0 of 250 entries by heart.")
    _, known = lab.readings[-1]
    known["MoE"][:90], known[EQUAL_ACTIVE][:20] = True, True
    assert lab.words() == "The mixture knows 90 of 250 entries by heart, 4.5 times as many as its equal-active twin."


def test_bad_sizes_are_refused_and_change_nothing():
    for bad, message in (
        ({"num_entries": 0}, "num_entries must be a whole number of at least 1, got 0"),
        ({"top_k": 5}, r"top_k must be between 1 and num_experts \(4\), got 5"),
        ({"num_experts": 0}, "num_experts must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number from 0 to 9999, got -1"),
        ({"lr": 0}, "lr must be a finite number above 0, got 0"),
    ):
        with refused(message):
            FactsLab(**{"num_experts": 4} | bad)
    lab = small()
    run = lab.main_run
    with refused("num_entries must be at most 45697, got 50000"):
        lab.set(num_entries=50_000)
    assert lab.main_run is run and lab.values["num_entries"] == 250


@pytest.mark.parametrize("num", [1, 2, 7, 250, 2000])
def test_a_wall_has_room_for_all_its_lamps_and_is_drawn(num):
    known, task = {"known": np.arange(num) % 3 == 0}, SimpleNamespace(entries=["a = 1"] * num)
    panel = wall(SimpleNamespace(readings=[(0, known)], runs=known, main_run=SimpleNamespace(task=task)), "known")
    (lamps,) = panel.marks
    assert lamps.columns * panel.y.low >= num > lamps.columns * (panel.y.low - 1)
    assert panel.title == f"known: {-(-num // 3):,} of {num:,}"
