"""What all laboratories have in common: how they are made, and how controls are moved, applied, refused and shown."""

import inspect
import json
import math
import sys
from itertools import product

import ipywidgets as W
import pytest
import torch
from live_tools import LABS, MyMoE, assert_consistent, button, click, losses, on_a_loop, settled, until, words

from moe_lessons import widgets
from moe_lessons.analysis.collapse import watched_run
from moe_lessons.nn import LanguageModel, seeded
from moe_lessons.plots.marks import Bars, Panel
from moe_lessons.plots.panels._history import RECENT
from moe_lessons.training import BALANCING_METHODS, PRESETS, Run, SeedBand, balancing_setting, facts_runs, plane_runs
from moe_lessons.widgets import Lab, Playground, live
from moe_lessons.widgets.picture import descendants
from moe_lessons.widgets.routing_lab import KNOBS_AT_FIRST, corpus


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setitem(inspect.unwrap(Run.__init__).__kwdefaults__, "batch_size", 32)


BAD = [
    ("Playground", {"top_k": 9}, r"top_k must be between 1 and num_experts \(8\), got 9"),
    ("Playground", {"expert_bias_rate": 0.1}, "expert_bias_rate must be off here, since the bias needs a sigmoid"),
    ("Playground", {"controls": ("lr", "colour")}, "control must be one of 'task', .*, got 'colour'|setting must"),
    ("RoutingLab", {"router": "hash", "router_aux_loss_coef": 0.1}, "router_aux_loss_coef must be off here, since a h"),
    ("RoutingLab", {"moe_layers": ()}, "moe_layers must name at least one layer, got none|setting must"),
    ("BalancingLab", {"methods": ("top-2 3",)}, "method must be one of .*, got 'top-2 3'"),
    ("BalancingLab", {"methods": ("bias update + expert choice",)}, "expert choice do not go together"),
    ("FactsLab", {"num_entries": 50_000}, "num_entries must be at most 45697, got 50000"),
]
NO_VALUES = [
    *product(["Playground", "RoutingLab", "FactsLab"], ["num_experts", "top_k"], ["3", 2.0, None, math.nan, True]),
    *product(["RoutingLab"], ["router"], [len, int, 5, None]),
    *product(["Playground"], ["router", "task"], [len, 5, None]),
    *product(["BalancingLab"], ["seeds", "apply_from", "first_seed"], ["3", 2.0, None]),
    *product(["CollapseLab"], ["seed", "learns"], ["3", 2.0, None]),
]
BAD += [(lab, {name: value}, f"^{name} must be [^\n]*, got [^\n]*$") for lab, name, value in NO_VALUES]


@pytest.fixture(scope="module")
def untouched() -> dict[str, Lab]:
    return {name: make() for name, make in LABS.items()}


@pytest.mark.parametrize("name, change, message", BAD)
def test_what_is_bad_is_refused_and_moves_nothing(untouched, name, change, message):
    with pytest.raises((ValueError, TypeError), match=f"{message}|unexpected keyword argument"):
        LABS[name](**change)
    lab = untouched[name]
    run, values, good = lab.main_run, lab.state.values, {"router_z_loss_coef": 0.1, "lr": 0.01}
    with pytest.raises(ValueError, match=message):
        lab.set(**{name: value for name, value in good.items() if name in lab.inputs} | change)
    assert lab.main_run is run and lab.state.values == values
    assert_consistent(lab)


def text_run(config) -> Run:
    with seeded(3):
        run = Run(LanguageModel(config), corpus(("code", "json")), lr=0.01, batch_size=4, seed=3)
    run.knobs.router_aux_loss_coef = KNOBS_AT_FIRST["router_aux_loss_coef"]
    return run


TILES = {"methods": tuple(BALANCING_METHODS), "seeds": 2, "first_seed": 5, "num_experts": 4}
ALONE = {
    "Playground": ({"preset": "noise", "seed": 1}, lambda lab: plane_runs(PRESETS["noise"], 1)),
    "RoutingLab": ({"seed": 3, "lr": 0.01}, lambda lab: {"MoE": text_run(lab.main_run.model.config)}),
    "BalancingLab": (
        TILES,
        lambda lab: {n: SeedBand(balancing_setting(n, num_experts=4), (5, 6)) for n in BALANCING_METHODS},
    ),
    "CollapseLab": ({"seed": 2}, lambda lab: {"MoE": watched_run(PRESETS["collapse"], 2)}),
    "FactsLab": ({}, lambda lab: facts_runs(4, num_entries=250)),
}


@pytest.mark.parametrize("name", LABS)
def test_it_trains_as_runs_do_alone_whatever_is_drawn(name):
    arguments, alone = ALONE[name]
    lab = LABS[name](**arguments)
    for _ in range(2):
        lab.advance(2)
        torch.rand(1)
    assert losses(lab) == {name: [run.step().loss for _ in range(4)] for name, run in alone(lab).items()}
    assert_consistent(lab)


@pytest.mark.parametrize("name", LABS)
def test_a_static_page_gets_the_picture_after_training(name, static):
    lab = LABS[name](play=12)
    data, metadata = lab._repr_mimebundle_()
    assert set(data) == {"text/plain", "image/png"} and lab.step == 12
    assert data["text/plain"] == repr(lab) and "play=12" in repr(lab)
    assert metadata["image/png"]["alt"] == f"Step 12. {lab.words()}" and len(lab.words()) > 20


@pytest.mark.parametrize("name", LABS)
@on_a_loop
async def test_what_is_of_the_structure_starts_afresh_and_reset_does_so_too(name, monkeypatch):
    monkeypatch.setattr("moe_lessons.widgets.laboratory.RECENT", 1)  # then two steps are enough for a ghost
    lab = LABS[name]()
    for control in lab.spec.start:
        lab.advance(2)
        old, widget = lab.main_run, lab.inputs[control]
        stops = (3,) if isinstance(widget, W.BoundedIntText) else lab.stops(control, lab.state.values)
        others = [stop[-1] if isinstance(stop, tuple) else stop for stop in stops if stop != widget.value]
        free = {"domains": ("greek",), "points": "3xy7"}  # where nothing is chosen from a list
        widget.value = value = free[control] if control in free else others[:2][-1]
        await settled()
        assert lab.step == 0 and lab.state.values[control] == value and lab.state.changes == []
        assert lab.state.ghost is (None if control in lab.spec.same else old)  # another task is not comparable
        assert_consistent(lab)
    again = eval(repr(lab), vars(widgets))
    again.advance(2)
    for _ in range(2):
        lab.advance(2)
        assert losses(lab) == losses(again)
        button(lab, "Reset").click()
        await settled()
        assert lab.step == 0


@on_a_loop
async def test_what_is_refused_changes_nothing_and_moves_the_controls_back(monkeypatch):
    def refuse(name: str, number: int, error: Exception) -> None:
        whole = getattr(Playground, name)

        def refusing(self, values, *given):
            if values["num_experts"] == number:
                raise error
            return whole(self, values, *given)

        monkeypatch.setattr(Playground, name, refusing)

    refuse("check", 13, ValueError("num_experts must bring luck, got 13"))
    refuse("make_runs", 14, RuntimeError("too many"))
    lab = Playground()
    lab.advance(3)
    lab.inputs["num_experts"].value, lab.inputs["lr"].value = 13, 0.05
    await settled()
    assert "num_experts must bring luck, got 13" in words(lab) and lab.step == 3 and lab.main_run.knobs.lr == 0.02
    assert [lab.inputs[name].value for name in ("num_experts", "lr")] == [8, 0.02] and lab.inputs["top_k"].max == 8
    lab.inputs["lr"].value = 0.05
    await settled()
    assert lab.main_run.knobs.lr == 0.05 and "luck" not in words(lab)
    lab.inputs["num_experts"].value = 14  # it cannot be made
    await settled()
    assert "RuntimeError: too many" in words(lab) and lab.step == 3 and lab.inputs["num_experts"].value == 8


@on_a_loop
async def test_set_comes_after_what_was_asked_before_it_and_is_shown_at_once():
    lab = Playground()
    lab.inputs["lr"].value, lab.inputs["noise_std"].value = 0.5, 0.5
    lab.post(lambda: lab.advance(2))
    lab.set(lr=0.1)
    assert (lab.step, lab.main_run.knobs.lr, lab.main_run.knobs.noise_std) == (2, 0.1, 0.5)
    assert lab.state.changes == [2] and lab.canvas.words["step"] == 2
    lab.set(lr=0.2), lab.set(noise_std=1.0)
    lab.advance(1)
    lab.set(token=5, x_axis="FLOPs")  # looking changes nothing
    assert lab.state.changes == [2] and lab.canvas.panels[4].x.link == ""  # one mark for all that is moved at a step


@on_a_loop
async def test_a_click_selects_what_can_be_clicked_and_nothing_else():
    for name, kind, others in (("Playground", "token", ("layer", "?")), ("RoutingLab", "layer", ("token", "model"))):
        lab = LABS[name]()
        for what, index in ((kind, 1), *product(others, [0]), (kind, 99), (kind, 10**400)):
            click(lab, what, index)
            await settled()
            assert lab.state.values[kind] == lab.inputs[kind].value == 1 and lab.canvas.words["trouble"] == ""


@on_a_loop
async def test_a_new_start_plays_as_many_steps_and_keeps_a_run_that_was_long_enough_as_a_ghost():
    lab = Playground()
    lab.play(RECENT + 1)
    await lab.finished()
    first = lab.main_run
    lab.set(num_experts=6)
    assert lab.step == 0
    lab.play(RECENT)
    await until(lambda: lab.step > 5)
    lab.set(num_experts=1)
    assert lab.step == 0 and lab.state.ghost is first and lab.inputs["top_k"].max == lab.state.values["top_k"] == 1
    await lab.finished()
    assert lab.step == RECENT


@on_a_loop
async def test_a_costly_panel_comes_after_the_quick_ones_and_only_when_it_has_changed(monkeypatch):
    monkeypatch.setattr(live, "QUICK", 0)
    drawn = []

    def costly(view) -> Panel:
        drawn.append((view.state.values["num_experts"], view.state.layer, view.canvas.words.get("experts")))
        return Panel("costly", [Bars([0.5])])

    lab = LABS["RoutingLab"](panels=("loss", costly))
    lab.inputs["num_experts"].value = 8
    await settled()
    await settled()  # nothing has changed
    lab.inputs["layer"].value = 1
    await settled()
    assert drawn == [(4, 0, None), (8, 0, 8), (8, 1, 8)]  # in a second picture: the first had shown eight experts


@on_a_loop
async def test_what_is_asked_while_the_kernel_is_busy_happens_in_its_order_or_is_taken_back():
    lab = LABS["Playground"]()
    for taken_back in (True, False):
        button(lab, "collapse").click()
        for name, value in (("num_experts", 4), ("seed", 3)):
            lab.inputs[name].value = value  # the loop has no turn meanwhile
        button(lab, "Step").click()
        if taken_back:
            click(lab, "take back", 0)
            assert lab.inputs["num_experts"].value == 8 and lab.inputs["seed"].value == 0
        await settled()
        assert lab.step == (not taken_back)
        found = [lab.state.values[name] for name in ("preset", "num_experts", "top_k", "seed")]
        assert found == (["healthy", 8, 2, 0] if taken_back else ["collapse", 4, 1, 3])
        assert_consistent(lab)


@pytest.mark.parametrize("name", LABS)
@on_a_loop
async def test_a_closed_view_says_so_when_it_is_asked_to_train(name):
    lab = LABS[name]()
    lab.play(50)
    await until(lambda: lab.step > 0)
    lab.close()
    a_control = next(iter(lab.inputs))
    for ask in (lab.play, lambda: lab.advance(1), lambda: lab.set(**{a_control: 1}), lambda: lab.main_run):
        with pytest.raises(RuntimeError, match="this view is closed: run its cell again"):
            ask()
    lab.pause(), button(lab, "Reset").click(), lab.post(lab.advance), lab.show()
    await settled()
    assert await lab.finished() is lab and lab.step == 0 and not lab.running


@pytest.mark.parametrize("name", ["Playground", "RoutingLab", "FactsLab"])
@on_a_loop
async def test_fewer_experts_lower_top_k_and_move_its_slider(name):
    lab = LABS[name](num_experts=8, top_k=4)
    lab.inputs["num_experts"].value = 2
    await settled()
    assert (lab.state.values["num_experts"], lab.state.values["top_k"]) == (2, 2) and lab.loop.trouble == ""
    assert lab.inputs["top_k"].value == lab.inputs["top_k"].max == 2


@pytest.mark.parametrize("name", ["Playground", "BalancingLab", "FactsLab"])
def test_an_interrupt_of_advance_leaves_all_runs_after_the_same_step(name, monkeypatch):
    lab, again, update, calls = LABS[name](), LABS[name](), Run.update, []

    def interrupted(run, *arguments):
        update(run, *arguments)
        calls.append(run)
        if len(calls) == 2 * len(lab.runs) + 1:  # the first run has done its third step, the others have not
            raise KeyboardInterrupt  # as one that was held back until the step was done

    again.advance(5)
    monkeypatch.setattr(Run, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lab.advance(5)
    assert {len(run.records) for run in lab.runs.values()} == {2}
    lab.advance(3)
    assert losses(lab) == losses(again)  # as if nothing had been


@on_a_loop
async def test_sys_exit_in_a_learners_block_is_said_and_an_interrupt_stays_one():
    class Leaves(MyMoE):
        steps = 0

        def forward(self, x):
            Leaves.steps += self.training
            if Leaves.steps > 3:
                sys.exit("enough")
            return super().forward(x)

    lab = Playground(block=Leaves)
    lab.play(10)
    await lab.finished()
    assert "SystemExit: enough" in words(lab) and lab.canvas.words["state"] == "paused"
    Leaves.steps = 0
    lab.play(2)
    await lab.finished()
    assert "SystemExit" not in words(lab)


def test_a_message_that_sets_what_a_part_of_a_view_says_does_not_stop_later_pictures():
    lab = LABS["CollapseLab"]()
    message = {"method": "update", "state": {"tooltip": "\ud800"}, "buffer_paths": []}
    for part in (lab, *descendants(lab)):  # the canvas and rows of controls have a tooltip, too, and no description
        part._handle_msg({"content": {"data": message}, "buffers": []})
    lab.show()
    assert lab.loop.trouble == ""
    json.dumps(lab.canvas.words, ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize("name", LABS)
@on_a_loop
async def test_a_device_is_chosen_where_there_is_more_than_one_and_refused_where_it_is_not_here(name, monkeypatch):
    assert "device" not in LABS[name](device="auto").inputs
    for device in ("cuda:7", "meta", "tpu", 3, None):
        with pytest.raises(ValueError, match="^device must be one of [^\\n]*, got "):
            LABS[name](device=device)
    monkeypatch.setattr("moe_lessons.widgets.laboratory.devices", lambda: ("cpu", "cuda:0"))
    lab = LABS[name]()
    assert lab.inputs["device"].options == ("cpu", "cuda:0") and "device" not in repr(lab)
    lab.advance(1)
    monkeypatch.setattr("moe_lessons.widgets.laboratory.check_device", torch.device)
    asked = []
    monkeypatch.setattr(lab, "make_runs", lambda values: asked.append(values["device"]) or lab.runs)
    lab.inputs["device"].value = "cuda:0"
    await settled()
    assert asked == ["cuda:0"] and "device='cuda:0'" in repr(lab)  # it starts afresh there
