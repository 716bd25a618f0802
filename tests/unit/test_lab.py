"""What all laboratories have in common: how they are made, and how controls are moved, applied, refused and shown."""

import inspect
import json
import math
import threading
from itertools import product

import ipywidgets as W
import pytest
import torch
from live_tools import LABS, assert_consistent, button, click, ended, losses, on_a_loop, settled, until, words

from moe_lessons import widgets
from moe_lessons.plots.marks import Bars, Panel
from moe_lessons.training import Run
from moe_lessons.widgets import Lab, Playground, live
from moe_lessons.widgets.picture import descendants


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setitem(inspect.unwrap(Run.__init__).__kwdefaults__, "batch_size", 32)


BAD = [
    *product(["Playground", "RoutingLab", "FactsLab"], ["num_experts", "top_k"], ["3", 2.0, None, math.nan, True]),
    *product(["RoutingLab"], ["router"], [len, int, 5, None]),
    *product(["Playground"], ["router", "task", "points"], [len, 5, None]),
    *product(["BalancingLab"], ["seeds", "apply_from", "first_seed"], ["3", 2.0, None]),
    *product(["CollapseLab"], ["seed", "learns"], ["3", 2.0, None]),
    ("Playground", "top_k", 9),
    ("Playground", "expert_bias_rate", 0.1),  # it is idle
    ("RoutingLab", "top_k", 5),
    ("BalancingLab", "methods", ("top-2 3",)),
    ("BalancingLab", "methods", ("bias update + expert choice",)),
    ("FactsLab", "num_entries", 50_000),
]


@pytest.fixture(scope="module")
def untouched() -> dict[str, Lab]:
    return {name: make() for name, make in LABS.items()}


@pytest.mark.parametrize("name, argument, value", BAD)
def test_what_is_bad_is_refused_and_moves_nothing(untouched, name, argument, value):
    lab, message = untouched[name], f"^[^\n]*{argument[:5]}[^\n]*$"
    run, values, good = lab.main_run, lab.state.values, {"router_z_loss_coef": 0.1, "lr": 0.01}
    with pytest.raises(ValueError, match=message):
        LABS[name](**{argument: value})
    with pytest.raises(ValueError, match=message):
        lab.set(**{name: value for name, value in good.items() if name in lab.inputs} | {argument: value})
    assert lab.main_run is run and lab.state.values == values
    assert_consistent(lab)


@pytest.mark.parametrize("name", LABS)
def test_a_static_page_gets_the_picture_after_training_and_its_repr_makes_it_again(name, static):
    lab = LABS[name](play=12)
    data, metadata = lab._repr_mimebundle_()
    assert set(data) == {"text/plain", "image/png"} and lab.step == 12
    alt = metadata["image/png"]["alt"]
    assert alt == lab.sentence() and lab.words() in alt and "step" in alt.lower() and "12" in alt
    again = eval(data["text/plain"], vars(widgets))
    assert losses(again) == losses(lab) and repr(again) == repr(lab)


@pytest.mark.parametrize("name", LABS)
@on_a_loop
async def test_a_new_start_keeps_a_run_to_compare_with_and_a_closed_view_says_so(name, monkeypatch):
    monkeypatch.setattr("moe_lessons.widgets.laboratory.RECENT", 1)  # then two steps are enough
    lab = LABS[name]()
    for control in lab.spec.structural:
        lab.advance(2)
        old, widget = lab.main_run, lab.inputs[control]
        stops = (3,) if isinstance(widget, W.IntText) else lab.stops(control, lab.state.values)
        others = [stop[-1] if isinstance(stop, tuple) else stop for stop in stops if stop != widget.value]
        free = {"domains": ("greek",), "points": "3xy7"}  # where nothing is chosen from a list
        widget.value = free[control] if control in free else others[:2][-1]
        await until(lambda old=old: lab.main_run is not old)
        assert lab.running and lab.state.ghost is (None if control in lab.spec.same else old)  # not comparable
        lab.pause()
        await settled()
    lab.play(50)
    await until(lambda: lab.step > 0)
    lab.close()
    for ask in (lab.play, lambda: lab.advance(1), lambda: lab.set(**{control: 1}), lambda: lab.main_run):
        with pytest.raises(RuntimeError, match="this view is closed: run its cell again"):
            ask()
    lab.pause(), button(lab, "Restart").click(), lab.post(lab.advance), lab.show()
    await settled()
    assert await lab.finished() is lab and not lab.running


@on_a_loop
async def test_what_is_refused_changes_nothing_and_moves_the_controls_back(monkeypatch):
    make_runs = Playground.make_runs

    def refuse(self, values):
        if values["num_experts"] > 12:
            raise RuntimeError("too many")
        return make_runs(self, values)

    monkeypatch.setattr(Playground, "make_runs", refuse)
    lab = Playground()
    lab.advance(3)
    for value in (13, 14):
        lab.inputs["num_experts"].value, lab.inputs["lr"].value = value, 0.05
        await settled()
        assert "RuntimeError: too many" in words(lab) and lab.step == 3 and lab.main_run.knobs.lr == 0.02
        assert_consistent(lab)
    lab.inputs["lr"].value = 0.05
    await settled()
    assert lab.main_run.knobs.lr == 0.05 and "too many" not in words(lab)
    lab.inputs["seed"].value = 12345
    await settled()
    assert "seed must be a whole number from 0 to 9,999, got 12345" in words(lab) and lab.step == 3
    assert_consistent(lab)


@on_a_loop
async def test_a_control_that_is_moved_again_meanwhile_keeps_its_newer_value(monkeypatch):
    lab, make_runs, shown = Playground(), Playground.make_runs, []
    experts, z_loss = lab.inputs["num_experts"], lab.inputs["router_z_loss_coef"]

    def by_page(widget, value) -> None:
        page = threading.Thread(target=setattr, args=(widget, "value", value))
        page.start(), page.join()

    with monkeypatch.context() as patch:
        patch.setattr(Playground, "make_runs", lambda *args: (by_page(experts, 7), make_runs(*args))[1])
        experts.observe(lambda change: shown.append(change["new"]), "value")
        by_page(experts, 5)
        await settled()
    assert shown == [5, 7]  # it does not jump back meanwhile
    lab.inputs["token"].observe(lambda _: by_page(z_loss, 1.0), "value")
    lab.set(token=3)  # while this control is moved by the laboratory
    await settled()
    assert (lab.state.values["num_experts"], experts.value, z_loss.value) == (7, 7, 1.0)
    assert_consistent(lab)


@on_a_loop
async def test_what_is_asked_while_the_kernel_is_busy_happens_in_its_order_or_is_taken_back():
    lab = LABS["Playground"]()
    for taken_back in (True, False):
        button(lab, "top-1 collapse").click()
        for name, value in (("num_experts", 4), ("seed", 2), ("seed", 3)):
            lab.inputs[name].value = value  # the loop has no turn meanwhile
        button(lab, "Step").click()
        if taken_back:
            click(lab, "take back", 0)
            assert lab.inputs["num_experts"].value == 8 and lab.inputs["seed"].value == 0
        await settled()
        found = [lab.running, *(lab.state.values[name] for name in ("preset", "num_experts", "top_k", "seed"))]
        assert found == ([False, "healthy", 8, 2, 0] if taken_back else [True, "collapse", 4, 1, 3])
        assert_consistent(lab)
    await ended(lab)
    step = lab.step
    lab.inputs["lr"].value = 0.5
    button(lab, "+50").click()
    lab.set(lr=0.1)  # after what was asked before it
    assert (lab.step, lab.main_run.records[-1].lr, lab.main_run.knobs.lr) == (step + 50, 0.5, 0.1)


@on_a_loop
async def test_a_turned_knob_leaves_one_mark_which_goes_with_a_step_that_is_taken_back():
    lab = Playground()
    lab.advance(2)
    lab.set(lr=0.1), lab.set(noise_std=1.0), lab.set(token=5, x_axis="FLOPs")  # looking changes nothing
    assert lab.state.changes == [2] and lab.canvas.panels[2].x.link == ""
    lab.set(lr=1e15)
    lab.advance(1)
    lab.set(noise_std=0.5)
    assert lab.state.changes == [2, 3]
    lab.advance(1)
    assert lab.step == 2 and lab.state.changes == [2]


@on_a_loop
async def test_a_click_selects_what_can_be_clicked_and_nothing_else():
    for name, kind, others in (("Playground", "token", ("layer", "?")), ("RoutingLab", "layer", ("token", "model"))):
        lab = LABS[name]()
        for what, index in ((kind, 1), *product(others, [0]), (kind, 99), (kind, 10**400)):
            click(lab, what, index)
            await settled()
            assert lab.state.values[kind] == lab.inputs[kind].value == 1 and lab.canvas.words["trouble"] == ""


@on_a_loop
async def test_a_costly_panel_comes_after_the_quick_ones_and_only_when_it_has_changed(monkeypatch):
    monkeypatch.setattr(live, "QUICK", 0)
    drawn = []

    def costly(view) -> Panel:
        drawn.append((view.state.values["num_experts"], view.state.layer, view.canvas.words.get("experts")))
        return Panel("costly", [Bars([0.5])])

    lab = LABS["RoutingLab"](panels=("loss", costly))
    for name, value in (("num_experts", 8), ("num_experts", 8), ("layer", 1)):
        lab.set(**{name: value})
        await settled()
    assert drawn == [(4, 0, None), (8, 0, 8), (8, 1, 8)]  # in a second picture: the first had shown eight experts


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
    with pytest.raises(ValueError, match="^device must be one of [^\\n]*, got "):
        LABS[name](device="cuda:7")
    monkeypatch.setattr("moe_lessons.widgets.laboratory.devices", lambda: ("cpu", "cuda:0"))
    lab, asked = LABS[name](), []
    assert lab.inputs["device"].options == ("cpu", "cuda:0") and "device" not in repr(lab)
    monkeypatch.setattr("moe_lessons.widgets.laboratory.check_device", torch.device)
    monkeypatch.setattr(lab, "make_runs", lambda values: asked.append(values["device"]) or lab.runs)
    lab.inputs["device"].value = "cuda:0"
    await settled()
    assert asked == ["cuda:0"] and "device='cuda:0'" in repr(lab)  # it starts afresh there
