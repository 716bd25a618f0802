"""Random sequences of actions on each laboratory: whatever is done in whatever order, it stays in order.

In `make test` a short run that is always the same. A long one, of new sequences, on one laboratory or on all:

    RANDOM_ACTIONS=10000 python -m pytest tests/unit/test_random_actions.py -s -k playground
"""

import asyncio
import collections
import contextlib
import gc
import json
import logging
import math
import os
import re
import threading
import time
import weakref
from unittest import mock

import ipywidgets as W
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from ipywidgets.widgets.widget import _instances
from torch import nn

from moe_lessons.analysis import remedies
from moe_lessons.analysis.collapse import LEARNS
from moe_lessons.knobs import TRAINING
from moe_lessons.nn import FeedForward, SigmoidRouter, TopKRouter
from moe_lessons.plots.marks import encode
from moe_lessons.plots.panels import _history, cost, writing
from moe_lessons.tasks import PRESETS, TextTask, make_text, text
from moe_lessons.training import Run
from moe_lessons.widgets import BalancingLab, CollapseLab, Playground, RoutingLab, live, loop, playground
from moe_lessons.widgets.canvas import LiveCanvas
from moe_lessons.widgets.controls import Boxes
from moe_lessons.widgets.live import descendants

EXAMPLES = int(os.environ.get("RANDOM_ACTIONS", 0))
ACTIONS = 14  # in a sequence, at most
BUTTON_STEPS = 4  # that a button trains at most, so that an action is quick
HIGH_LR = 1e30
KINDS = {"f2", "f4", "u1", "i1", "u2", "i2", "i4"}  # of arrays, that canvas.js can read
MOVABLE = (W.IntSlider, W.FloatSlider, W.SelectionSlider, W.Dropdown, W.BoundedIntText, W.Checkbox)
done = collections.Counter()  # sequences and actions, for the report of a long run
complaints: list[str] = []  # what ipywidgets has logged: exceptions in what a message of the page calls

places = st.sampled_from([0.0, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0])  # of a control: from its first stop to its last
numbers = st.integers(0, 60)  # of a control, a button, …: counted round
odd_values = st.sampled_from([
    None, True, -1, 0, 1, 2, 3, 5, 20, 0.03, 1.5, HIGH_LR, math.nan, math.inf, np.float32(0.5), np.int64(2), object(),
    len, "", "none", "E1", "E99", "sigmoid", "top-k", "all", "blobs", b"x", (), [], {}, ("code",), ["json", "json"],
    ("nothing", "jitter 0.2"), ("jitter", "jitter nan"), ("top-2 + capacity",), ("Gaussian noise + bias update",),
])  # fmt: skip
high_lrs = st.sampled_from([3.0, 100.0, 1e4, 1e9, HIGH_LR])
numbers_of_json = st.integers(-3, 3) | st.sampled_from([10**400, -(10**400)]) | st.floats()
scraps = st.recursive(
    st.none() | st.booleans() | numbers_of_json | st.text(max_size=4),
    lambda own: st.lists(own, max_size=2) | st.dictionaries(st.text(max_size=4), own, max_size=2),
    max_leaves=4,
)
messages = scraps | st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("drawn", "behind", "hello", "pick", "index"), scraps)
)


class At(float):
    """A place of a control."""


a_place = st.builds(At, places)
a_value = a_place | a_place | odd_values


class Page:
    """What canvas.js keeps of the messages of a canvas. Each must be one that it can read."""

    def __init__(self):
        self.frame, self.panels, self.arrays, self.words = 0, {}, {}, {}

    def receive(self, content, buffers) -> None:
        content = json.loads(json.dumps(content, allow_nan=False))
        assert content["frame"] > self.frame
        self.frame = content["frame"]
        self.words |= content["words"]
        panels = self.panels | {int(place): header for place, header in content["panels"].items()}
        self.panels = {place: panel for place, panel in panels.items() if place < self.words["count"]}
        self.arrays = {slot: array for slot, array in self.arrays.items() if int(slot.split(".")[0]) in self.panels}
        (data,), end = buffers, 0
        for slot, kind, shape, start in content["slots"]:
            assert int(slot.split(".")[0]) in self.panels and kind in KINDS and start == end
            self.arrays[slot] = np.frombuffer(data, kind, math.prod(shape), start).reshape(shape)
            end = start + self.arrays[slot].nbytes + -self.arrays[slot].nbytes % 8
        assert end == len(data)

    def shows(self, place: int, panel) -> bool:
        """Whether it draws this panel there."""
        header, arrays = encode(panel, place)
        assert self.panels[place] == json.loads(json.dumps(header))
        for slot, array in arrays.items():
            assert self.arrays[slot].dtype == array.dtype
            np.testing.assert_array_equal(self.arrays[slot], array, err_msg=f"{slot} of {panel.title}")
        return True


def by_page(widget: W.Widget, **state) -> None:
    """Move a control as a message of the page does."""
    widget._handle_msg({"content": {"data": {"method": "update", "state": state, "buffer_paths": []}}, "buffers": []})


def press(button: W.Button) -> None:
    """Click a button as a message of the page does."""
    data = {"method": "custom", "content": {"event": "click"}}
    button._handle_msg({"content": {"data": data}, "buffers": []})


def state_at(widget: W.Widget, place: float) -> dict:
    """What the page says when a control is moved: place 0 is its first stop, 1 its last."""
    if isinstance(widget, W.Dropdown | W.SelectionSlider):
        return {"index": round(place * (len(widget.options) - 1))} if widget.options else {}
    if isinstance(widget, W.Checkbox):
        return {"value": place >= 0.5}
    value = widget.min + place * (widget.max - widget.min)
    return {"value": value if isinstance(widget, W.FloatSlider) else round(value)}


def value_at(widget: W.Widget | None, place: float):
    """The value of a control there."""
    if not isinstance(widget, MOVABLE):
        return ("code",)
    state = state_at(widget, place)
    return widget._options_values[state["index"]] if "index" in state else state["value"]


class Actions(RuleBasedStateMachine):
    """What can be done to a laboratory, and what must be true of it after each action."""

    starts = ()  # ways to make one

    def __init__(self):
        super().__init__()
        self.widgets, self.threads = set(_instances), set(threading.enumerate())
        self.events, self.failures = asyncio.new_event_loop(), []
        self.events.set_exception_handler(lambda _, context: self.failures.append(context))
        self.view, self.afresh, self.records = None, False, {}

    @initialize(start=numbers, dear=st.booleans(), on_a_loop=st.sampled_from([True, True, True, False]))
    def begin(self, start=0, dear=False, on_a_loop=True):
        make_here = self.starts[start % len(self.starts)]

        async def make():
            return make_here()

        live.QUICK = 0 if dear else math.inf  # all panels are dear, or all are quick
        self.view = self.events.run_until_complete(make()) if on_a_loop else make_here()
        self.start_values = self.structure()
        self.rest(True)

    def structure(self) -> dict:
        return {name: self.view.values[name] for name in self.view.START}

    # --- time passes ---

    def spin(self, turns: int) -> None:
        async def wait():
            for _ in range(turns):
                await asyncio.sleep(0)

        self.events.run_until_complete(wait())

    def rest(self, now: bool) -> None:
        """After an action: now, or with the next one, the kernel has a turn, and then all must be in order."""
        done["actions"] += 1
        for turns in (10, *[5] * 20) if now else ():
            self.spin(turns)
            if self.view.running or not self.view.loop._actions:
                break
        if self.structure() != self.start_values:
            self.start_values, self.afresh = self.structure(), True
        self.is_sane()
        if now and not self.view.running:
            self.is_shown()

    @rule(turns=st.integers(1, 20))
    def wait(self, turns):
        self.spin(turns)
        self.rest(True)

    # --- by hand ---

    def movable(self) -> list[W.Widget]:
        return [widget for widget in descendants(self.view) if isinstance(widget, MOVABLE)]

    def expected(self) -> dict:
        """What must be in force when the controls, as they stand, have been applied."""
        view, values = self.view, self.view.values
        idle = view.idle(values)
        asked = {name: widget.value for name, widget in view.inputs.items() if name not in idle}
        if "top_k" in asked:
            asked["top_k"] = min(asked["top_k"], asked["num_experts"])
        asked |= {name: None for name in asked if asked[name] == 0 and name in TRAINING and TRAINING[name].off is None}
        with contextlib.suppress(ValueError):
            return view.check(values | asked)
        return values

    @rule(moves=st.lists(st.tuples(numbers, places), min_size=1, max_size=4), thread=st.booleans(), now=st.booleans())
    def move(self, moves, thread, now):
        def by_hand():
            for number, place in moves:
                widget = self.movable()[number % len(self.movable())]
                by_page(widget, **state_at(widget, place))

        self.in_thread(by_hand) if thread else by_hand()
        only_moves, expected = not self.view.loop.playing and not self.pressed(), self.expected()
        self.afresh |= self.view.loop.events is None  # then each is applied at once: there and back
        self.rest(now)
        if now and only_moves:
            assert self.view.values == expected

    def pressed(self) -> bool:
        """Whether more than a moved control waits to be done."""
        return any(not note for _, note in self.view.loop._actions)

    @rule(moves=st.lists(st.tuples(numbers, places), min_size=1, max_size=9), turns=st.integers(1, 12))
    def move_meanwhile(self, moves, turns):
        """From another thread, while it trains or is shown."""

        def by_hand():
            for number, place in moves:
                widget = self.movable()[number % len(self.movable())]
                by_page(widget, **state_at(widget, place))
                time.sleep(0.0005)

        thread = threading.Thread(target=by_hand)
        thread.start()
        self.spin(turns)
        thread.join()
        self.afresh = True  # there and back
        self.rest(True)

    def in_thread(self, action) -> None:
        thread = threading.Thread(target=action)
        thread.start()
        thread.join()

    @rule(number=numbers, bad=st.sampled_from([None, math.nan, math.inf, -1, 10**9, "x", [], {}]), now=st.booleans())
    def move_badly(self, number, bad, now):
        widget = self.movable()[number % len(self.movable())]
        name = "index" if isinstance(widget, W.Dropdown | W.SelectionSlider) else "value"
        by_page(widget, **{name: bad})
        complaints.clear()  # it refuses most
        self.rest(now)

    @rule(number=numbers, thread=st.booleans(), now=st.booleans())
    def click(self, number, thread, now):
        buttons = [widget for widget in descendants(self.view) if isinstance(widget, W.Button)]
        button = buttons[number % len(buttons)]
        self.in_thread(lambda: press(button)) if thread else press(button)
        self.afresh |= button.description not in ("Play", "Pause", "Step", "+50", "Add tile")
        self.rest(now)

    # --- by a call ---

    @rule(chosen=st.lists(st.tuples(numbers, a_value), min_size=1, max_size=2), now=st.booleans())
    def call_set(self, chosen, now):
        view, values, names = self.view, {}, [*self.view.inputs, "nonsense"]
        for number, value in chosen:
            name = names[number % len(names)]
            values[name] = value_at(view.inputs.get(name), value) if isinstance(value, At) else value
        self.set_values(now, **values)

    def set_values(self, now=True, **values):
        view, waits = self.view, bool(self.view.loop._actions)
        before, others = view.values, self.expected() if not self.pressed() else None
        try:
            view.set(**values)
        except ValueError as error:
            assert "\n" not in str(error).strip()
            assert view.values == before or waits
        else:
            for name in values:
                assert view.values[name] == values[name] or isinstance(view.values[name], tuple), name
            if others is not None:
                derived = {"top_k", "mute", "highlight", *values}
                assert {n: v for n, v in view.values.items() if n not in derived} == {
                    n: v for n, v in others.items() if n not in derived
                }
        self.afresh |= waits
        self.rest(now)

    @rule(now=st.booleans())
    def reset(self, now):
        self.view.reset()
        self.afresh = True
        self.rest(now)

    @rule(steps=st.integers(1, 12), now=st.booleans())
    def play(self, steps, now):
        self.view.play(steps)
        self.rest(now)

    @rule(now=st.booleans())
    def pause(self, now):
        self.view.pause()
        self.rest(now)

    @rule(steps=st.integers(1, 3))
    def advance(self, steps):
        before, waits = self.view.step, bool(self.view.loop._actions)
        self.view.advance(steps)
        assert waits or self.view.loop.trouble or self.view.step == before + steps
        self.view.show(True)
        self.rest(True)

    @rule(steps=st.integers(1, 4))
    def play_to_the_end(self, steps):
        self.view.play(steps)
        self.events.run_until_complete(asyncio.wait_for(self.view.finished(), 60))
        assert not self.view.running
        self.rest(True)

    @rule(lr=high_lrs, steps=st.sampled_from([1, 6]))
    def diverge(self, lr=HIGH_LR, steps=6):
        """A learning rate that is far too high."""
        self.set_values(lr=lr)
        self.view.play(steps)
        self.rest(True)

    # --- messages of the page ---

    @rule(content=messages, now=st.booleans())
    def hear(self, content, now):
        self.view.canvas._hear(self.view.canvas, content, [])
        self.rest(now)

    @rule(kind=st.sampled_from(["expert", "token", "layer", "model", "x"]), index=st.integers(0, 40), now=st.booleans())
    def pick(self, kind, index, now):
        self.view.canvas._hear(self.view.canvas, {"pick": kind, "index": index}, [])
        self.rest(now)

    @rule(late=st.integers(-3, 12), behind=st.floats(0, 20) | numbers_of_json)
    def draw(self, late, behind):
        """The page has drawn a picture: the last one, an earlier one, or one that there is not."""
        self.view.canvas._hear(self.view.canvas, {"drawn": self.view.canvas.frame - late, "behind": behind}, [])
        self.rest(True)

    @rule()
    def open_again(self):
        """A page that has nothing says hello and has everything."""
        self.view.canvas.page = Page()
        self.view.canvas._hear(self.view.canvas, {"hello": True}, [])
        self.rest(True)

    # --- what must be true ---

    def is_sane(self) -> None:
        """At any time."""
        view, values, canvas = self.view, self.view.values, self.view.canvas
        assert not self.failures and not complaints
        assert 1 <= values.get("top_k", 1) <= values.get("num_experts", 8)
        if {"top_k", "num_experts"} <= set(view.inputs):
            k, experts = view.inputs["top_k"], view.inputs["num_experts"]
            assert k.value <= k.max <= max(experts.value, values["num_experts"])
        assert view.check(values) == values
        assert not re.match(r"\w*(Error|Exception|Iteration): ", view.loop.trouble), view.loop.trouble
        assert 0 <= canvas.answered <= canvas.frame and 1 <= canvas.behind <= 10
        assert asyncio.all_tasks(self.events) <= {view.loop._task}
        assert len(view._kept) <= len(view.panels) + 4  # nothing of panels that are gone
        for name, run in view.runs.items():
            assert [record.step for record in run.records] == list(range(1, len(run.records) + 1))
            before = self.records.get(name, [])
            assert self.afresh or all(old is new for old, new in zip(before, run.records, strict=False)), "history"
            assert self.afresh or len(run.records) >= len(before), "history only grows"
        self.records = {name: list(run.records) for name, run in view.runs.items()}
        self.afresh = bool(view.loop._actions)
        self.agrees()

    def is_shown(self) -> None:
        """In a pause, when nothing waits to be done."""
        view, page, idle = self.view, self.view.canvas.page, self.view.idle(self.view.values)
        assert not view.loop.playing and not view.loop._actions and not view._moved
        assert view._play_button.description == "Play" and not any(b.disabled for b in view._step_buttons)
        for name, widget in view.inputs.items():
            wanted = TRAINING[name].off if name in idle and name in TRAINING else view.values[name]
            if isinstance(widget, Boxes):
                assert widget.value == wanted and {n for n, box in widget.boxes.items() if box.value} == {*wanted}
            else:
                assert widget.value == (wanted or 0.0 if isinstance(widget, W.SelectionSlider) else wanted), name
                assert widget.disabled == (name in idle)
        if "num_experts" in view.inputs:
            assert view.inputs["top_k"].max == view.values["num_experts"]
        assert page.words["step"] == view.step and page.words["count"] == len(view.panels) == len(page.panels)
        assert page.words["status"].startswith(f"step {view.step} · paused") and page.words["state"] == "paused"
        assert page.words["trouble"] == view.loop.trouble
        kept, view._kept = view._kept, {}  # what is read anew must be what is shown
        with mock.patch.object(_history, "_histories", weakref.WeakKeyDictionary()):
            assert all(page.shows(place, view.draw(place)) for place in range(len(view.panels)))
            assert view.lines().items() <= page.words.items()
            assert view.description_of_picture()
        view._kept = kept
        self.is_shown_too()

    def agrees(self) -> None:
        """The models are as the values say."""

    def is_shown_too(self) -> None:
        """What else must be true in a pause."""
        view = self.view
        assert view.marks == sorted(set(view.marks)) and all(0 < mark <= view.step for mark in view.marks)
        steps = {len(run.records) for run in self.view.runs.values()}
        assert steps == {self.view.step}

    def of_experts(self, num: int) -> None:
        """All that the page draws has as many experts."""
        page = self.view.canvas.page
        assert page.words["experts"] == num
        for place, panel in page.panels.items():
            for number, mark in enumerate(panel["marks"]):
                slot = {"Field": "z", "Cells": "z", "Bars": "y", "Stack": "y"}.get(mark["mark"])
                if slot and mark.get("of") != "model":
                    assert page.arrays[f"{place}.{number}.{slot}"].shape[-1] == num, panel["title"]

    # --- the end ---

    def teardown(self):
        done["sequences"] += 1
        if self.view is None:
            return
        view = self.view
        controls, buttons = self.movable(), [w for w in descendants(view) if isinstance(w, W.Button)]
        view.close()
        for late in (*buttons, view._play_button):
            press(late)
        for widget in controls:
            by_page(widget, **state_at(widget, 1.0))
        for content in ({"hello": True}, {"pick": "model", "index": 0}, {"drawn": view.canvas.frame}):
            view.canvas._hear(view.canvas, content, [])
        self.spin(12)
        assert not self.failures and not complaints and not asyncio.all_tasks(self.events)
        assert not view.running and view.runs == {}
        assert set(_instances) == self.widgets and set(threading.enumerate()) == self.threads
        self.events.close()


class MyMoE(nn.Module):
    """A learner's mixture, as small as it can be: no noise, no capacity, experts in a list of modules."""

    def __init__(self, d_model, d_ff, num_experts, top_k):
        super().__init__()
        self.d_model, self.d_ff, self.num_experts, self.top_k = d_model, d_ff, num_experts, top_k
        self.router = TopKRouter(d_model, num_experts, top_k)
        self.experts = nn.ModuleList(FeedForward(d_model, d_ff) for _ in range(num_experts))

    def forward(self, x):
        routing, y = self.router(x), torch.zeros_like(x)
        for expert, ffn in enumerate(self.experts):
            mine = routing.expert_idx == expert
            tokens = routing.token_idx[mine]
            y = y.index_add(0, tokens, routing.weight[mine][:, None] * ffn(x[tokens]))
        return y, routing


def knobs_of(run) -> dict:
    return {name: getattr(run.knobs, name) for name in TRAINING}


class PlaygroundActions(Actions):
    starts = (
        lambda: Playground(num_experts=3, max_steps=6),
        lambda: Playground("collapse", num_experts=2, d_ff=2, max_steps=6),
        lambda: Playground(num_experts=3, router="expert choice", router_aux_loss_coef=0, max_steps=6),
        lambda: Playground(block=MyMoE, num_experts=2, d_ff=2, seed=7, max_steps=6),
    )

    def agrees(self):
        view, block, task = self.view, self.view.main_run.model.block, self.view.main_run.task
        for name in ("num_experts", "top_k", "d_ff"):
            assert getattr(block, name) == view.values[name]
        assert (task.name, task.seed) == (view.values["task"], view.values["seed"])
        assert knobs_of(view.main_run) == view.in_force()
        assert {run.knobs.lr for run in view.runs.values()} == {view.values["lr"]}

    def is_shown_too(self):
        super().is_shown_too()
        view = self.view
        self.of_experts(view.values["num_experts"])
        assert view.canvas.page.words["token"] == view.values["token"]
        for name, button in view._preset_buttons.items():
            assert (button.button_style == "info") == (view.setting == PRESETS[name])


class BalancingActions(Actions):
    starts = (
        lambda: BalancingLab(("nothing", "auxiliary loss"), seeds=1, num_experts=3, d_ff=2, max_steps=3),
        lambda: BalancingLab(("bias update", "jitter 0.2", "top-2"), 2, 3, num_experts=3, d_ff=2, max_steps=3),
    )

    def agrees(self):
        view = self.view
        assert tuple(view.tiles) == tuple(view.runs) == view.values["remedies"] and view.selected in view.tiles
        base, settings = view._settings(view.values)
        for name, tile in view.tiles.items():
            assert tile.band is view.runs[name] and tile.setting == settings[name]
            has_begun = tile.band is not view._trunk.band
            assert has_begun or tile.step <= view.values["apply_from"]
            assert not has_begun or tile.step >= view.values["apply_from"]
            assert knobs_of(tile.band) == {n: getattr(settings[name] if has_begun else base, n) for n in TRAINING}
            steps = [reading.step for reading in tile.readings]
            assert steps == sorted(set(steps)) and steps[-1] <= tile.step
            assert all(0 < mark <= tile.step for mark in tile.marks) and tile.marks == sorted(tile.marks)

    def is_shown_too(self):
        self.of_experts(self.view.values["num_experts"])
        assert all(tile.readings[-1].step == tile.step for tile in self.view.tiles.values())


class RoutingActions(Actions):
    tiny = dict(d_model=8, num_heads=2, num_kv_heads=1, d_ff=8, threads=1, batch_size=2, max_steps=6)
    starts = (
        lambda: RoutingLab(("code", "json"), num_layers=2, num_experts=4, **RoutingActions.tiny),
        lambda: RoutingLab("greek", panels=("layers", "load"), num_layers=1, num_experts=2, **RoutingActions.tiny),
        lambda: RoutingLab(
            TextTask.from_text(make_text("code", 4000)), num_layers=3, moe_layers=(0, 2), layer=1, num_experts=3,
            router=SigmoidRouter, **RoutingActions.tiny,
        ),
    )  # fmt: skip

    def agrees(self):
        view, config = self.view, self.view.main_run.model.config
        for name in ("num_experts", "top_k", "d_ff", "router"):
            assert getattr(config, name) == view.values[name]
        assert tuple(view.main_run.task.domains) == view.values["domains"] and view.main_run.seed == view.values["seed"]
        assert knobs_of(view.main_run) == view.in_force()

    def is_shown_too(self):
        super().is_shown_too()
        self.of_experts(self.view.values["num_experts"])


class CollapseActions(Actions):
    starts = (
        lambda: CollapseLab(max_steps=6),
        lambda: CollapseLab(("gradient", "gradient film", "load"), learns="router only", seed=2, max_steps=6),
    )

    @rule(lr=high_lrs, steps=st.sampled_from([1, 6]))
    def diverge(self, lr=HIGH_LR, steps=6):
        self.view.main_run.knobs.lr = lr
        self.view.play(steps)
        self.rest(True)

    def agrees(self):
        run, still = self.view.main_run, LEARNS[self.view.values["learns"]]
        for name in ("router", "experts"):
            assert all(w.requires_grad == (name != still) for w in getattr(run.model.block, name).parameters())
        assert run.seed == self.view.values["seed"] and len(run.expert_gradients) == len(run.records)

    def is_shown_too(self):
        super().is_shown_too()
        self.of_experts(8)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Everything as small as it can be, one thread, and a page that keeps what a canvas sends."""

    def send(canvas, content, buffers=None):
        if not hasattr(canvas, "page"):
            canvas.page = Page()
        canvas.page.receive(content, buffers)

    monkeypatch.setattr(LiveCanvas, "send", send)
    complaints.clear()
    monkeypatch.setattr(logging.getLogger("traitlets"), "handle", lambda record: complaints.append(record.getMessage()))
    for kind in (live.LiveRun, BalancingLab):
        of_button = kind.step_button
        monkeypatch.setattr(kind, "step_button", lambda self, n, of=of_button: of(self, min(n, BUTTON_STEPS)))
    monkeypatch.setitem(Run.__init__.__kwdefaults__, "batch_size", 16)
    for module, name, value in (
        (playground, "RESOLUTION", 5), (playground, "NUM_MORE_POINTS", 32), (playground, "NUM_HELD_OUT", 16),
        (remedies, "NUM_POINTS", 16), (cost, "NUM_HELD_OUT", 16), (text, "TRAIN_BYTES", 4000),
        (text, "HELD_OUT_BYTES", 1000), (writing, "LENGTH", 10), (live, "NUM_TRACED", 4), (live, "QUICK", 0),
        (loop, "TURN", 0),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "laboratory, examples",
    [(PlaygroundActions, 12), (BalancingActions, 12), (RoutingActions, 12), (CollapseActions, 12)],
    ids=["playground", "balancing", "routing", "collapse"],
)
def test_random_actions(laboratory, examples):
    done.clear()
    how = settings(
        max_examples=EXAMPLES or examples, stateful_step_count=ACTIONS, derandomize=not EXAMPLES, database=None,
        deadline=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    start = time.monotonic()
    run_state_machine_as_test(laboratory, settings=how)
    print(f"{laboratory.__name__}: {dict(done)}, {time.monotonic() - start:.0f} s")


# --- what was wrong once: the shortest sequences ------------------------------------------------------------------


@pytest.fixture
def start():
    """A function that begins a sequence of actions: start(PlaygroundActions, dear=True)."""
    started = []

    def start(laboratory, **how) -> Actions:
        started.append(laboratory())
        started[-1].begin(**how)
        return started[-1]

    yield start
    for one in reversed(started):
        one.teardown()


def by_name(state: Actions, name: str) -> W.Widget:
    return next(widget for widget in descendants(state.view) if getattr(widget, "description", "") == name)


def test_what_waits_when_a_view_is_closed_is_never_done(start):
    state = start(BalancingActions)
    for name in ("Reset", "Add tile", "Play"):
        press(by_name(state, name))  # teardown closes the view, and looks at what is left


def test_a_control_that_moves_while_others_are_shown_is_not_overlooked(start):
    state = start(PlaygroundActions)
    z_loss, token = state.view.inputs["router_z_loss_coef"], state.view.inputs["token"]
    token.observe(lambda _: state.in_thread(lambda: by_page(z_loss, index=5)), "value")
    state.view.set(token=3)  # while this control is moved by us, on this thread
    state.rest(True)
    assert state.view.values["router_z_loss_coef"] == z_loss.value == 1.0


def test_a_slider_that_is_dragged_during_a_new_start_is_not_moved_back(start, monkeypatch):
    state, make_runs = start(PlaygroundActions), Playground.make_runs
    experts = state.view.inputs["num_experts"]
    monkeypatch.setattr(Playground, "make_runs", lambda *args: (by_page(experts, value=7), make_runs(*args))[1])
    by_page(experts, value=5)
    state.rest(True)
    assert state.view.values["num_experts"] == experts.value == 7


def test_what_waits_is_done_in_its_order(start):
    state = start(PlaygroundActions)
    for name in ("Step", "Reset"):
        press(by_name(state, name))
    state.afresh = True
    state.rest(True)
    assert state.view.step == 0
    by_page(state.view.inputs["lr"], index=0)
    press(by_name(state, "Step"))
    state.rest(True)
    assert state.view.main_run.records[0].lr == 0.001
    presets = ("collapse", 1), ("healthy", 2)
    for (name, top_k), is_first in ((preset, is_first) for preset in presets for is_first in (True, False)):
        press(by_name(state, name)) if is_first else None
        by_page(state.view.inputs["d_ff"], value=12)
        None if is_first else press(by_name(state, name))
        state.afresh = True
        state.rest(True)
        assert (state.view.values["top_k"], state.view.values["d_ff"] == 12) == (top_k, is_first)


@pytest.mark.parametrize("dear", [True, False])
def test_a_picture_in_a_pause_shows_the_model_as_it_is(start, dear, monkeypatch):
    state = start(PlaygroundActions, dear=dear)
    monkeypatch.setattr(live, "PANELS_SHARE", math.inf)
    monkeypatch.setattr(live, "READING_SHARE", 1e-12)
    state.view.loop.playing = True  # as in the last step: panels are drawn anew, from readings of earlier steps
    state.view.train_one()
    state.view.show(False)
    state.view.loop.playing = False
    state.view.show(True)
    state.rest(True)
    state.set_values(noise_std=1.0)  # ticks appear on the bars
    for _ in range(2):  # the second step is refused, and takes back the first one
        state.diverge(lr=1e4, steps=1)


def test_a_tile_whose_first_step_diverges_can_go_on(start):
    state = start(BalancingActions, start=1)  # the remedies start at step 3
    for _ in range(3):
        state.diverge()
    assert state.view.step == 3 and "lower the learning rate" in state.view.loop.trouble
    state.set_values(lr=0.01)
    state.play_to_the_end(6)
    assert state.view.step > 3 and not state.view.loop.trouble


def test_numbers_of_numpy_and_a_tile_that_there_is_not(start):
    state = start(PlaygroundActions)
    state.set_values(token=np.int64(2), num_experts=np.int64(4))
    assert "num_experts=4" in repr(state.view)
    with pytest.raises(ValueError, match="highlight must be one of 'nothing', 'auxiliary loss', got 'x'"):
        start(BalancingActions).view.set(highlight="x")


def test_a_closed_view_is_forgotten():
    CollapseLab().close()  # the first view of all is kept: see `live._spare_what_is_loaded`
    view = CollapseLab()
    gone = weakref.ref(view), weakref.ref(view.canvas), weakref.ref(view.main_run)
    view.close()
    del view
    gc.collect()
    assert [one() for one in gone] == [None, None, None]
