"""Random sequences of actions on each laboratory: whatever is done in whatever order, it stays in order.
In `make test` a short run that is always the same. A long one, of new sequences:

    RANDOM_ACTIONS=10000 python -m pytest tests/unit/test_random_actions.py -s -k playground
"""

import asyncio
import functools
import inspect
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
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from ipywidgets.widgets.widget import _instances
from live_tools import MyMoE, assert_consistent, button

from moe_lessons import widgets
from moe_lessons.nn import SigmoidRouter, torch_threads
from moe_lessons.plots.marks import encode_panel
from moe_lessons.plots.panels import _history
from moe_lessons.tasks import TextTask, make_text
from moe_lessons.training import Run
from moe_lessons.training.knobs import KNOBS
from moe_lessons.widgets import BalancingLab, CollapseLab, FactsLab, Playground, RoutingLab, live
from moe_lessons.widgets.canvas import LiveCanvas
from moe_lessons.widgets.picture import descendants

EXAMPLES = int(os.environ.get("RANDOM_ACTIONS", 0))
ACTIONS = 14  # in a sequence, at most
BUTTON_STEPS = 4  # that a button trains at most, so that an action is quick
HIGH_LR = 1e15
MOVABLE = (W.IntSlider, W.FloatSlider, W.SelectionSlider, W.Dropdown, W.BoundedIntText, W.Checkbox)
complaints: list[str] = []  # what ipywidgets has logged: exceptions in what a message of the page calls

SIZES = {
    "widgets.plane_readings.RESOLUTION": 5, "widgets.live.NUM_POINTS": 32, "widgets.playground.NUM_HELD_OUT": 16,
    "analysis.collapse.READ_POINTS": 16, "plots.panels.compared.NUM_HELD_OUT": 16, "tasks.text.TRAIN_BYTES": 4000,
    "tasks.text.HELD_OUT_BYTES": 1000, "plots.panels.passages.LENGTH": 10, "widgets.live.NUM_TRACED": 4,
    "widgets.live.QUICK": 0, "widgets.loop.TURN": 0,
}  # fmt: skip
TEXT = {"d_model": 8, "num_heads": 2, "num_kv_heads": 1, "d_ff": 8, "num_experts": 3, "batch_size": 2}
TEXT, MINE = TEXT | {"max_steps": 6}, TextTask({"text": make_text("code", 4000)})
STARTS = {
    "playground": (
        lambda: Playground(num_experts=3, max_steps=6),
        lambda: Playground("collapse", num_experts=2, d_ff=2, max_steps=6),
        lambda: Playground(num_experts=3, router="expert choice", router_aux_loss_coef=0, max_steps=6),
        lambda: Playground(block=MyMoE, num_experts=2, d_ff=2, seed=7, max_steps=6),
    ),
    "balancing": (
        lambda: BalancingLab(("nothing", "auxiliary loss"), seeds=1, num_experts=3, d_ff=2, max_steps=3),
        lambda: BalancingLab(("bias update", "jitter 0.2", "top-2"), 2, 3, num_experts=3, d_ff=2, max_steps=3),
    ),
    "routing": (
        lambda: RoutingLab(("code", "json"), panels=("loss", "layers", "text", "writing"), num_layers=2, **TEXT),
        lambda: RoutingLab("greek", panels=("layers", "domains", "load"), num_layers=1, **TEXT),
        lambda: RoutingLab(MINE, num_layers=3, moe_layers=(0, 2), layer=1, router=SigmoidRouter, **TEXT),
    ),
    "collapse": (
        lambda: CollapseLab(max_steps=6),
        lambda: CollapseLab("router only", seed=2, max_steps=6),
    ),
    "facts": (lambda: FactsLab(3, num_entries=40, max_steps=6), lambda: FactsLab(2, 1, 20, lr=0.01, max_steps=6)),
}  # fmt: skip


def check_tiles(view: BalancingLab) -> None:
    values = view.state.values
    assert tuple(view.tiles) == tuple(view.runs) == values["methods"] and values["highlight"] in view.tiles
    base, wanted = view._settings(values)
    for name, tile in view.tiles.items():
        assert tile.band is view.runs[name] and tile.setting == wanted[name]
        has_begun, start = tile.band is not view._trunk.band, view.state.values["apply_from"]
        assert tile.step >= start if has_begun else tile.step <= start
        setting = wanted[name] if has_begun else base
        assert all(getattr(tile.band.knobs, knob) == getattr(setting, knob) for knob in KNOBS)
        steps = [reading.step for reading in tile.readings]
        assert steps == sorted(set(steps)) and steps[-1] <= tile.step
        assert tile.changes == sorted(tile.changes) and all(0 < mark <= tile.step for mark in tile.changes)


class Page:
    """What the page keeps of the messages of a canvas: see test_canvas."""

    def __init__(self):
        self.panels, self.arrays, self.words = {}, {}, {}

    def receive(self, content, buffers) -> None:
        content = json.loads(json.dumps(content, allow_nan=False))
        self.words |= content["words"]
        panels = self.panels | {int(place): header for place, header in content["panels"].items()}
        self.panels = {place: panel for place, panel in panels.items() if place < self.words["count"]}
        for slot, kind, shape, start in content["slots"]:
            self.arrays[slot] = np.frombuffer(buffers[0], kind, math.prod(shape), start).reshape(shape)

    def check_shows(self, place: int, panel) -> None:
        header, arrays = encode_panel(panel, place)
        assert self.panels[place] == json.loads(json.dumps(header))
        for slot, array in arrays.items():
            np.testing.assert_array_equal(self.arrays[slot], array, err_msg=f"{slot} of {panel.title}")


def by_page(widget: W.Widget, **state) -> None:
    widget._handle_msg({"content": {"data": {"method": "update", "state": state, "buffer_paths": []}}, "buffers": []})


def press(button: W.Button) -> None:
    button._handle_msg({"content": {"data": {"method": "custom", "content": {"event": "click"}}}, "buffers": []})


def state_at(widget: W.Widget, place: float) -> dict:
    """What the page says when a control is moved: place 0 is its first stop, 1 its last."""
    if isinstance(widget, W.Dropdown | W.SelectionSlider):
        return {"index": round(place * (len(widget.options) - 1))} if widget.options else {}
    if isinstance(widget, W.Checkbox):
        return {"value": place >= 0.5}
    value = widget.min + place * (widget.max - widget.min)
    return {"value": value if isinstance(widget, W.FloatSlider) else round(value)}


def in_thread(action) -> None:
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()


turns = st.integers(1, 20)  # of the event loop
numbers = st.integers(0, 60)  # of a control, a button, …: counted round
places = st.sampled_from([0.0, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0])  # of a control: from its first stop to its last
moves = st.lists(st.tuples(numbers, places), min_size=1, max_size=4)
odd_values = st.sampled_from([
    None, True, -1, 0, 1, 2, 3, 5, 20, 0.03, 1.5, HIGH_LR, math.nan, math.inf, np.float32(0.5), np.int64(2), object(),
    len, "", "none", "E1", "E99", "sigmoid", "top-k", "all", "blobs", b"x", (), [], {}, ("code",), ["json", "json"],
    ("nothing", "jitter 0.2"), ("jitter", "jitter nan"), ("top-2 + capacity",), ("Gaussian noise + bias update",),
])  # fmt: skip
kinds = st.sampled_from(["expert", "token", "layer", "model", "x"])
odd_messages = [None, [], {"pick": None, "index": "x"}, {"hello": 1, "drawn": "x"}, {"pick": "token", "index": -1}]
odd_messages += [{"points": "0fle3xy7"}, {"points": "zz"}, {"points": 3}]  # drawn by hand, and what cannot be
messages = (
    st.sampled_from(odd_messages)
    | st.fixed_dictionaries({"pick": kinds, "index": st.integers(0, 40) | st.sampled_from([10**400, -(10**400)])})
    | st.fixed_dictionaries({"late": st.integers(-3, 12), "behind": st.floats() | st.floats(0, 20)})
)


class Actions(RuleBasedStateMachine):
    """What can be done to a laboratory, and what must be true of it after each action."""

    starts = ()  # ways to make one

    def __init__(self):
        super().__init__()
        self.widgets, self.threads = set(_instances), set(threading.enumerate())
        self.events, self.failures = asyncio.new_event_loop(), []
        self.events.set_exception_handler(lambda _, context: self.failures.append(context))
        self.view, self.afresh, self.records = None, False, {}

    @initialize(start=numbers, costly=st.booleans(), on_a_loop=st.sampled_from([True, True, True, False]))
    def begin(self, start=0, costly=False, on_a_loop=True):
        make_here = self.starts[start % len(self.starts)]

        async def make():
            return make_here()

        live.QUICK = 0 if costly else math.inf  # all panels are costly, or all are quick
        self.view = self.events.run_until_complete(make()) if on_a_loop else make_here()
        self.start_values, went_back = None, self.view.went_back

        def goes_back() -> None:
            self.afresh = True  # records are gone
            went_back()

        self.view.went_back = goes_back
        self.rest(True)

    def spin(self, turns: int) -> None:
        async def wait():
            for _ in range(turns):
                await asyncio.sleep(0)

        self.events.run_until_complete(wait())

    def rest(self, now: bool) -> None:
        """After an action: now, or with the next one, the kernel has a turn, and then all must be in order."""
        for turns in (10, *[5] * 20) if now else ():
            self.spin(turns)
            if self.view.running or not self.view.loop._actions:
                break
        structure = {name: self.view.state.values[name] for name in self.view.spec.start}
        if structure != self.start_values:
            self.start_values, self.afresh = structure, True
        self.is_sane()
        if now and not self.view.running:
            self.is_shown()

    def movable(self) -> list[W.Widget]:
        return [widget for widget in descendants(self.view) if isinstance(widget, MOVABLE)]

    @rule(moves=moves, how=st.sampled_from(["here", "on a thread", "meanwhile"]), turns=turns, now=st.booleans())
    def move(self, moves, how, turns, now):
        """By hand. meanwhile: on another thread, while it trains or is shown."""

        def by_hand() -> None:
            for number, place in moves:
                widget = self.movable()[number % len(self.movable())]
                by_page(widget, **state_at(widget, place))
                time.sleep(0.0005)

        thread = threading.Thread(target=by_hand)
        thread.start() if how != "here" else by_hand()
        if how != "here":
            self.spin(turns if how == "meanwhile" else 0)
            thread.join()
        self.afresh |= how == "meanwhile" or self.view.loop.events is None  # there and back
        self.rest(now)

    @rule(number=numbers, thread=st.booleans(), now=st.booleans())
    def click(self, number, thread, now):
        buttons = [widget for widget in descendants(self.view) if isinstance(widget, W.Button)]
        button = buttons[number % len(buttons)]
        in_thread(lambda: press(button)) if thread else press(button)
        self.afresh |= button.description not in ("Play", "Pause", "Step", "+50", "Add tile")
        self.rest(now)

    @rule(chosen=st.lists(st.tuples(numbers, st.booleans(), places, odd_values), min_size=1, max_size=2))
    def call_set(self, chosen):
        view, values, names = self.view, {}, [*self.view.inputs, "nonsense"]
        for number, is_odd, place, odd in chosen:
            name = names[number % len(names)]
            widget, values[name] = view.inputs.get(name), odd
            if not is_odd and isinstance(widget, MOVABLE):
                state = state_at(widget, place)
                values[name] = widget._options_values[state["index"]] if "index" in state else state["value"]
        self.set_values(**values)

    def set_values(self, **values):
        view, waits, before = self.view, bool(self.view.loop._actions), self.view.state.values
        try:
            view.set(**values)
        except ValueError as error:
            assert "\n" not in str(error).strip()
            assert view.state.values == before or waits
        else:
            for name in values:
                assert view.state.values[name] == values[name] or isinstance(view.state.values[name], tuple), name
        self.afresh |= waits
        self.rest(True)

    @rule(turns=turns)
    def wait(self, turns):
        self.spin(turns)
        self.rest(True)

    @rule(name=st.sampled_from(["play", "pause"]), now=st.booleans())
    def call(self, name, now):
        getattr(self.view, name)()
        self.afresh |= name == "reset"
        self.rest(now)

    @rule(steps=st.integers(1, 4), is_played=st.booleans())
    def train(self, steps, is_played):
        before, waits = self.view.step, bool(self.view.loop._actions)
        if is_played:
            self.view.play(steps)
            self.events.run_until_complete(asyncio.wait_for(self.view.finished(), 60))
            assert not self.view.running
        else:
            self.view.advance(steps)
            assert waits or self.view.loop.trouble or self.view.step == before + steps
        self.rest(True)

    @rule(lr=st.sampled_from([3.0, 100.0, 1e4, 1e9, HIGH_LR]), steps=st.sampled_from([1, 6]))
    def diverge(self, lr=HIGH_LR, steps=6):
        if "lr" in self.view.inputs:
            self.set_values(lr=lr)
        else:
            self.view.main_run.knobs.lr = lr
        self.view.play(steps)
        self.rest(True)

    @rule(content=messages, now=st.booleans())
    def hear(self, content, now):
        """A message of the page. late: it has drawn the last picture, an earlier one, or one that there is not."""
        canvas = self.view.canvas
        if isinstance(content, dict) and "late" in content:
            content = {"drawn": canvas.frame - content["late"], "behind": content["behind"]}
        canvas._hear(canvas, content, [])
        self.rest(now)

    @rule()
    def open_again(self):
        """A page that has nothing says hello and has everything."""
        self.view.canvas.page = Page()
        self.view.canvas._hear(self.view.canvas, {"hello": True}, [])
        self.rest(True)

    # --- what must be true ---

    def is_sane(self) -> None:
        view, values, canvas = self.view, self.view.state.values, self.view.canvas
        assert not self.failures and not complaints
        assert 1 <= values.get("top_k", 1) <= values.get("num_experts", 8)
        if {"top_k", "num_experts"} <= set(view.inputs):
            k, experts = view.inputs["top_k"], view.inputs["num_experts"]
            assert k.value <= k.max <= max(experts.value, values["num_experts"])
        assert view.check(values) == values and "np." not in repr(view)
        assert not re.match(r"\w*(Error|Exception|Iteration): ", view.loop.trouble), view.loop.trouble
        assert 0 <= canvas.answered <= canvas.frame and 1 <= canvas.behind <= 10
        assert asyncio.all_tasks(self.events) <= {view.loop._task}
        for name, run in view.runs.items():
            assert [record.step for record in run.records] == list(range(1, len(run.records) + 1))
            before = self.records.get(name, [])
            assert self.afresh or all(old is new for old, new in zip(before, run.records, strict=False)), "history"
            assert self.afresh or len(run.records) >= len(before) - 1, "at most the last step is taken back"
        self.records = {name: list(run.records) for name, run in view.runs.items()}
        self.afresh = bool(view.loop._actions)
        if isinstance(view, BalancingLab):
            check_tiles(view)

    def is_shown(self) -> None:
        """In a pause, when nothing waits to be done."""
        view, page = self.view, self.view.canvas.page
        assert not view.loop.playing and not view.loop._actions and not view._moved
        assert view._play_button.description == "Play" and not any(b.disabled for b in view._step_buttons)
        assert_consistent(view)
        if "num_experts" in view.inputs:
            assert view.inputs["top_k"].max == view.state.values["num_experts"]
        assert page.words["step"] == view.step and page.words["count"] == len(view.functions) == len(page.panels)
        assert page.words["state"] == "paused" and page.words["trouble"] == view.loop.trouble
        kept, view._kept = view._kept, {}  # what is read anew must be what is shown
        with mock.patch.object(_history, "_histories", weakref.WeakKeyDictionary()):
            for place, panel in enumerate(view.panels()):
                page.check_shows(place, panel)
            assert view.lines().items() <= page.words.items() and view.sentence()
        view._kept = kept
        assert page.words["experts"] == view.state.values.get("num_experts", 8) * view.spec.has_chips
        if isinstance(view, BalancingLab):  # a tile may be ahead of the others, or catch up
            assert all(tile.readings[-1].step == tile.step for tile in view.tiles.values())
        else:
            assert {len(run.records) for run in view.runs.values()} == {view.step}
            changes = view.state.changes
            assert changes == sorted(set(changes)) and all(0 < change <= view.step for change in changes)

    def teardown(self):
        if self.view is None:
            return
        view = self.view
        if "TextTask" not in repr(view):  # it makes the same view, but for what is only looked at
            again, in_force = eval(repr(view), vars(widgets) | globals()), view.state.values | view.in_force()
            assert all(again.state.values[name] == in_force[name] for name in view.spec.defaults)
            again.close()
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


MACHINES = {name: type(name, (Actions,), {"starts": starts}) for name, starts in STARTS.items()}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    def send(canvas, content, buffers=None):
        canvas.page = getattr(canvas, "page", None) or Page()
        canvas.page.receive(content, buffers)

    monkeypatch.setattr(LiveCanvas, "send", send)
    complaints.clear()
    monkeypatch.setattr(logging.getLogger("traitlets"), "handle", lambda record: complaints.append(record.getMessage()))
    for kind in (live.LiveRun, BalancingLab):
        of_button = kind.step_button
        monkeypatch.setattr(kind, "step_button", lambda self, n, of=of_button: of(self, min(n, BUTTON_STEPS)))
    monkeypatch.setitem(inspect.unwrap(Run.__init__).__kwdefaults__, "batch_size", 16)
    for name, value in SIZES.items():
        monkeypatch.setattr(f"moe_lessons.{name}", value)
    monkeypatch.setattr("moe_lessons.widgets.routing_lab.corpus", functools.cache(TextTask))
    with torch_threads(1):
        yield


@pytest.mark.parametrize("laboratory", MACHINES)
def test_random_actions(laboratory):
    how = settings(
        max_examples=EXAMPLES or 4, stateful_step_count=ACTIONS, derandomize=not EXAMPLES, database=None,
        deadline=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(MACHINES[laboratory], settings=how)


@pytest.fixture
def start():
    """A function that begins a sequence of actions. Those below went wrong once."""
    started = []

    def start(laboratory, **how) -> Actions:
        started.append(MACHINES[laboratory]())
        started[-1].begin(**how)
        return started[-1]

    yield start
    for one in reversed(started):
        one.teardown()


def test_a_control_that_moves_meanwhile_is_not_overlooked_and_what_waits_is_done_in_order(start, monkeypatch):
    state = start("playground")
    z_loss, token = state.view.inputs["router_z_loss_coef"], state.view.inputs["token"]
    token.observe(lambda _: in_thread(lambda: by_page(z_loss, index=5)), "value")
    state.view.set(token=3)  # while this control is moved by us, on this thread
    state.rest(True)
    assert state.view.state.values["router_z_loss_coef"] == z_loss.value == 1.0
    state, make_runs = start("playground"), Playground.make_runs
    experts = state.view.inputs["num_experts"]
    with monkeypatch.context() as patch:
        patch.setattr(Playground, "make_runs", lambda *args: (by_page(experts, value=7), make_runs(*args))[1])
        by_page(experts, value=5)
        state.rest(True)
    assert state.view.state.values["num_experts"] == experts.value == 7
    state = start("playground")
    for first, second, top_k in (("collapse", "d_ff", 1), ("d_ff", "healthy", 2)):
        for name in (first, second):
            by_page(state.view.inputs["d_ff"], value=12) if name == "d_ff" else press(button(state.view, name))
        state.afresh = True
        state.rest(True)
        assert (state.view.state.values["top_k"], state.view.state.values["d_ff"] == 12) == (top_k, second == "d_ff")


def test_a_tile_whose_first_step_diverges_can_go_on(start):
    state = start("balancing", start=1)  # the methods start at step 3
    state.train(2, True)
    for _ in range(2):
        state.diverge()
        assert state.view.step == 2 and "lower the learning rate" in state.view.loop.trouble
    state.set_values(lr=0.01)
    state.train(6, True)
    assert state.view.step > 3 and not state.view.loop.trouble
