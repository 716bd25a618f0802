"""The laboratory that all others are specifications of: controls are moved, applied, refused and shown."""

import ipywidgets as W
import pytest
from live_tools import button, ended, on_a_loop, settled, until, words, work

from moe_lessons.knobs import KNOBS, TRAINING
from moe_lessons.nn import MoE, NoisyTopKRouter, seeded
from moe_lessons.plots.marks import Bars, Panel
from moe_lessons.plots.panels._history import RECENT
from moe_lessons.tasks import PlaneClassifier, PlaneTask
from moe_lessons.training import Run
from moe_lessons.widgets import Lab, live, loop
from moe_lessons.widgets.controls import control, move


class SmallLab(Lab):
    """As short as a laboratory can be."""

    title = "A small laboratory"
    START, LOOK, LIVE = ("num_experts", "top_k"), ("x_axis", "token"), ("lr", "noise_std", "capacity_factor")
    USUAL = {"num_experts": 4, "top_k": 2, "lr": 0.02, "noise_std": 0.0, "capacity_factor": None}
    selected = property(lambda self: self.values["token"])

    def __init__(self, panels=("loss",), **settings):
        super().__init__(self.USUAL | {"token": 0} | settings, panels, given=settings)

    def check(self, values, given=()):
        if values["num_experts"] == 13:
            raise ValueError(f"num_experts must bring luck, got {values['num_experts']}")
        return super().check(values, given)

    def make_runs(self, values):
        experts, top_k = values["num_experts"], values["top_k"]
        if experts == 14:
            raise RuntimeError("too many")
        with seeded(0):
            router = NoisyTopKRouter(16, experts, top_k, noise="gaussian", noise_std=0.0)
            run = Run(PlaneClassifier(MoE(16, 4, experts, top_k, router=router), 8), PlaneTask(), batch_size=16)
        for name, value in self.in_force(values).items():
            setattr(run.knobs, name, value)
        return {"MoE": run}

    def comparable(self, values):
        return values["num_experts"] > 1


def in_force(lab: SmallLab, name: str):
    return getattr(lab.main_run.knobs, name)


def test_controls_stand_in_groups_that_say_when_they_apply():
    lab = SmallLab()
    assert list(lab.inputs) == [*lab.START, *lab.LIVE, *lab.LOOK] and Lab.LIVE == tuple(TRAINING)
    column = lab.children[-1].children[0].children
    headings = [w.value.split(">")[1].split(" ·")[0] for w in column if "moe-group" in str(getattr(w, "value", ""))]
    assert headings == ["Structure", "Live", "Look"] and set(lab.inputs.values()) <= set(column)
    for name, widget in lab.inputs.items():
        assert widget.description == KNOBS[name].description and widget.value == (lab.values[name] or 0)
        assert lab.canvas.words["tips"][widget.description] == widget.tooltip == KNOBS[name].tip


def test_a_control_is_made_for_what_the_table_says_and_reaches_further_when_it_has_to():
    ends = {"seed": (0, 9999), "noise_std": (0, 3), "d_ff": (2, 32), "lr": (0.001, 0.5), "capacity_factor": (0, 4)}
    kinds = W.BoundedIntText, W.FloatSlider, W.IntSlider, W.SelectionSlider, W.SelectionSlider
    for (name, (low, high)), kind in zip(ends.items(), kinds):
        widget = control(name)
        stops = [stop for _, stop in widget.options] if kind is W.SelectionSlider else [widget.min, widget.max]
        assert type(widget) is kind and (stops[0], stops[-1]) == (low, high)
        for value in (70, None if name == "capacity_factor" else 2):
            move(widget, value)
            assert widget.value == (value or 0)


@on_a_loop
async def test_of_several_moves_the_last_one_counts_and_moves_there_and_back_cost_nothing():
    lab = SmallLab(capacity_factor=1.25)
    lab.advance(3)
    run = lab.main_run
    for noise, experts in ((0.5, 9), (2.0, 10), (1.5, 4)):
        lab.inputs["noise_std"].value, lab.inputs["num_experts"].value = noise, experts
    assert lab.values["noise_std"] == 0.0  # not before the loop has its turn
    lab.inputs["capacity_factor"].value = 0.0
    await settled()
    assert lab.main_run is run and lab.step == 3 and in_force(lab, "noise_std") == lab.values["noise_std"] == 1.5
    assert lab.values["capacity_factor"] is in_force(lab, "capacity_factor") is None and lab.loop.trouble == ""
    lab.play(30)
    for noise in (0.25, 0.75):
        lab.inputs["noise_std"].value = noise
        await settled()
    await lab.finished()
    assert lab.step == 33 and in_force(lab, "noise_std") == 0.75


@on_a_loop
async def test_what_is_refused_changes_nothing_and_moves_the_controls_back():
    lab = SmallLab()
    lab.advance(3)
    lab.inputs["num_experts"].value, lab.inputs["lr"].value = 13, 0.05
    await settled()
    assert "num_experts must bring luck, got 13" in words(lab) and lab.step == 3 and in_force(lab, "lr") == 0.02
    assert [lab.inputs[name].value for name in ("num_experts", "lr")] == [4, 0.02] and lab.inputs["top_k"].max == 4
    lab.inputs["lr"].value = 0.05
    await settled()
    assert in_force(lab, "lr") == 0.05 and "luck" not in words(lab)
    lab.inputs["num_experts"].value = 14  # what cannot be made
    await settled()
    assert "RuntimeError: too many" in words(lab) and lab.step == 3 and lab.inputs["num_experts"].value == 4
    for wrong, message in (({"lr": -1}, "lr must be"), ({"num_experts": 13}, "luck"), ({"seed": 1}, "setting must be")):
        with pytest.raises(ValueError, match=message):
            lab.set(**{"noise_std": 0.5} | wrong)
    assert lab.values["noise_std"] == lab.inputs["noise_std"].value == 0 and lab.step == 3


@on_a_loop
async def test_set_comes_after_what_was_asked_before_it_and_is_shown_at_once(monkeypatch):
    lab = SmallLab()
    lab.inputs["lr"].value, lab.inputs["noise_std"].value = 0.5, 0.5
    lab.post(lambda: lab.advance(2))
    lab.set(lr=0.1)
    assert (lab.step, in_force(lab, "lr"), in_force(lab, "noise_std")) == (2, 0.1, 0.5)
    assert lab.marks == [2] and lab.canvas.words["step"] == 2
    lab.set(lr=0.2), lab.set(noise_std=1.0)
    lab.advance(1)
    lab.set(token=5, x_axis="FLOPs")  # looking changes nothing
    assert lab.marks == [2] and lab.canvas.panels[0].x.link == ""  # one mark for all that is moved at a step
    monkeypatch.setattr(loop, "FPS", 1e-9)  # of itself, there is no picture any more
    lab.play()
    await until(lambda: lab.step > 9)
    pictures, step = lab.loop.cost["pictures"], lab.step
    lab.set(lr=0.1)
    await until(lambda: lab.step > step + 1)
    assert lab.loop.cost["pictures"] == pictures + 1 and lab.canvas.words["step"] <= step + 1
    await ended(lab)


def test_the_run_before_stays_as_a_ghost_where_it_compares():
    lab = SmallLab()
    lab.advance(RECENT + 1)
    first = lab.main_run
    lab.set(num_experts=6)
    assert lab.ghost is first and lab.main_run is not first and lab.marks == []
    lab.advance(RECENT)
    lab.set(num_experts=8)
    assert lab.ghost is first  # the second was too short
    lab.set(num_experts=1)
    assert lab.ghost is None and lab.inputs["top_k"].max == 1
    assert repr(lab) == "SmallLab(num_experts=1, top_k=1)" and eval(repr(lab)).values == lab.values


@on_a_loop
async def test_reset_starts_the_same_again_and_a_new_start_plays_as_many_steps():
    lab = SmallLab()
    lab.advance(5)
    losses = [record.loss for record in lab.main_run.records]
    button(lab, "Reset").click()
    await settled()
    assert lab.step == 0
    lab.play(5)
    await lab.finished()
    assert [record.loss for record in lab.main_run.records] == losses
    lab.play(50)
    await until(lambda: lab.step > 5)
    lab.set(num_experts=3)
    assert lab.step == 0
    await lab.finished()
    assert lab.step == 50


@on_a_loop
async def test_a_dear_panel_comes_after_the_quick_ones_and_only_when_it_has_changed():
    drawn = []

    def dear(view) -> Panel:
        drawn.append((view.values["num_experts"], view.selected, view.canvas.words.get("experts")))
        work(1.5 * live.QUICK)
        return Panel("dear", [Bars([0.5])])

    lab = SmallLab(("loss", dear))
    lab.inputs["num_experts"].value = 6
    await settled()
    assert drawn == [(4, 0, None), (6, 0, 6)]  # in a second picture: the first had shown six experts
    lab.inputs["lr"].value = 0.05
    await settled()
    assert len(drawn) == 2
    lab.inputs["token"].value = 3
    await settled()
    assert drawn[2:] == [(6, 3, 6)]
