"""The one laboratory, which all others specify; the shortest specification is `CollapseLab`."""

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import ipywidgets as W
import torch

from moe_lessons.analysis.load import describe_load
from moe_lessons.plots.panels._history import RECENT, X_AXES, recent_load
from moe_lessons.support.errors import check_choice, check_device, check_top_k, check_whole, is_whole
from moe_lessons.training import Run
from moe_lessons.training.knobs import KNOBS
from moe_lessons.widgets.controls import CONTROLS, Box, CheckBoxes, control, move
from moe_lessons.widgets.live import LiveRun
from moe_lessons.widgets.spec import Spec, State

MOST = 10**9  # of what is counted
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Lab(LiveRun):
    """A `LiveRun` with controls, as its `Spec` says; `state.values` has what is in force, also what has no control.

    A subclass has `make_runs` and, where it needs them, more in `check` and `idle`, and words of its own. What is
    refused changes nothing and moves the controls back.
    values: of the arguments and controls. settings: what the caller gives beside them. more: see `LiveRun`."""

    def __init__(self, spec: Spec, values: Mapping[str, Any], panels, settings: Mapping[str, Any] = NOTHING, **more):
        for name in settings:
            check_choice("setting", name, spec.defaults)
        if len(devices()) > 1:
            spec = replace(spec, start=(*spec.start, "device"))
        self.spec = spec
        values = self.check({"x_axis": "steps"} | values | settings, settings)
        self.inputs: dict[str, W.Widget] = {}
        self._moved: set[str] = set()  # controls that have moved and are not applied yet
        self._touched: list[str] = []  # those that have moved since, each as often as it waits to be applied
        self._showing: int | None = None  # the thread on which controls are moved by us
        self.runs = self.make_runs(values)
        self.turn(values)
        super().__init__(self.runs, panels, spec=spec, values=values, **more)

    def stops(self, name: str, values: Mapping[str, Any]) -> Any:
        """Return what a control has to choose from, with these values."""
        if name == "top_k":
            return range(1, values["num_experts"] + 1)
        if name == "device":
            return devices()
        return tuple(X_AXES) if name == "x_axis" else self.spec.stops_of(name)

    def check(self, values: Mapping[str, Any], given: Collection[str] = ()) -> dict[str, Any]:
        """Return the values, or raise ValueError. given: those that must apply, where the others may be idle."""
        for name in self.spec.start + self.spec.display:  # the experts come before the top-k that they limit
            value, stops = values[name], self.stops(name, values)
            if name == "device":
                device_name(value)
            elif name == "top_k":
                check_top_k(value, values["num_experts"])
            elif isinstance(stops, Box) or (isinstance(stops, range) and name in self.spec.display):
                check_whole(name, value, *((0, stops.high) if isinstance(stops, Box) else (stops[0], stops[-1])))
            elif stops and isinstance(stops[0], int):  # more than the control offers, but a number of things
                check_whole(name, value, min(stops[0], 1), MOST)
            elif stops and isinstance(stops[0], str):
                check_choice(name, value, stops)
        idle = self.idle(values)
        checked = dict(values) | {"device": device_name(values["device"])}
        for name in self.spec.live:
            checked[name] = KNOBS[name].check(values[name])
            if name in given and name in idle and checked[name] != KNOBS[name].off:
                raise ValueError(f"{name} must be off here, since {idle[name]}, got {checked[name]!r}")
        return {name: int(value) if is_whole(value, 0) else value for name, value in checked.items()}  # of NumPy, too

    def make_runs(self, values: Mapping[str, Any]) -> dict[str, Run]:
        raise NotImplementedError

    def idle(self, values: dict[str, Any]) -> dict[str, str]:
        """The controls that do nothing with these values, each with the reason."""
        return {}

    def turn(self, values: dict[str, Any]) -> None:
        """Apply what is live to the runs."""
        for name, value in self.in_force(values).items():
            for run in self.runs.values() if name == "lr" else [self.main_run]:
                setattr(run.knobs, name, value)

    def applied(self) -> None:
        """Called when other values are in force."""

    def in_force(self, values: dict[str, Any] | None = None) -> dict[str, float | None]:
        """The live knobs: each as it is asked for or, where the router has no use for it, off."""
        values = self.state.values if values is None else values
        idle = self.idle(values)
        return {name: KNOBS[name].off if name in idle else values[name] for name in self.spec.live}

    def set(self, **values: Any) -> None:
        """Move controls, as if by hand. A bad value moves none. Fewer experts lower top_k, unless it is given too."""
        for name in values:
            check_choice("setting", name, self.inputs)

        def apply() -> None:
            if is_whole(values.get("num_experts"), 1) and "top_k" in self.inputs:
                values.setdefault("top_k", min(self.state.values["top_k"], values["num_experts"]))
            self._apply(self.check(self.state.values | values, values))

        self.loop.now(apply)

    def picked(self, kind: str, index: int) -> None:
        clickable, name = self.spec.clicks
        if kind == clickable and index < len(stops := self.stops(name, self.state.values)):
            self._apply(self.check(self.state.values | {name: stops[index]}))

    def words(self) -> str:
        recent = self.main_run.records[-RECENT:]
        load = recent_load(self.main_run, self.state.layer) if recent else self.clean_load
        dropped = sum(record.dropped_share for record in recent) / max(len(recent), 1)
        return "" if load is None else describe_load(load, self.state.values.get("top_k", 1), dropped)

    def written(self) -> list[str]:
        values, defaults = self.state.values | self.in_force(), self.defaults()
        of = {n: getattr(values[n], "__name__", repr(values[n])) for n in defaults if values[n] != defaults[n]}
        first, *names = defaults
        return ([of[first]] if first in of else []) + [f"{name}={of[name]}" for name in names if name in of]

    def defaults(self) -> Mapping[str, Any]:
        """The arguments of the constructor, with what each is where it is not given."""
        return self.spec.defaults

    def bar(self) -> list[W.Widget]:
        tip = "Start afresh with the same settings"
        return [*super().bar(), self.button("Reset", tip, lambda: self._moved.add("afresh"), icon="undo")]

    def body(self) -> W.Widget:
        body, controls = super().body(), W.Box(self.controls()).add_class("moe-controls")
        body.children = (self.canvas, controls)  # Tab comes to the pictures first
        return body.remove_class("moe-alone")

    def controls(self) -> list[W.Widget]:
        """Make a control for each name that has none yet, under three headings, and a place to say why some idle."""
        shown, self._idle = [], W.HTML()
        for title, names in self.spec.groups.items():
            made = {
                name: control(name, self.stops(name, self.state.values)) for name in names if name not in self.inputs
            }
            self.inputs |= made
            shown += [W.HTML(f'<div class="moe-group">{title}</div>'), *made.values()] if made else []
            shown += [self._idle] if names is self.spec.live else []
        self.show_values()
        for name, widget in self.inputs.items():
            widget.observe(lambda _, name=name: self._by_hand(name), "value")
        return shown

    def show_values(self) -> None:
        """Have the controls show what is in force, but for those that were moved again meanwhile: their turn comes."""
        idle, before = self.idle(self.state.values), self._showing
        values = self.state.values | self.in_force()
        self._showing = threading.get_ident()
        try:
            for name, widget in self.inputs.items():  # the experts come before the top-k that they limit
                stops = self.stops(name, self.state.values)
                if isinstance(widget, W.Dropdown) and tuple(widget.options) != tuple(stops):
                    widget.options = stops
                elif isinstance(widget, W.IntSlider):
                    widget.max = max(stops[-1], values[name])
                tip = "" if isinstance(widget, CheckBoxes) else CONTROLS[name].tip  # each box has its own
                widget.disabled, widget.tooltip = name in idle, tip + (f". Off: {idle[name]}" if name in idle else "")
                if name not in self._touched:
                    move(widget, values[name])
            reasons = "; ".join(dict.fromkeys(idle[name] for name in self.spec.live if name in idle))
            self._idle.value = f'<div class="moe-idle">Off: {reasons}.</div>' if reasons else ""
        finally:
            self._showing = before

    def _by_hand(self, name: str) -> None:
        """Have the last value of a control that was moved by hand applied, with those that move meanwhile."""

        def apply() -> None:
            self._moved.add(name)
            if name in self._touched:  # else it was taken back just now
                self._touched.remove(name)

        if self._showing != threading.get_ident():  # else it was moved by us
            self._touched.append(name)
            self.loop.post(apply)

    def forget(self) -> None:
        super().forget()
        self._touched.clear()
        self.show_values()

    def settle(self) -> None:
        moved, self._moved = self._moved, set()
        if not moved:
            return
        idle = self.idle(self.state.values)
        asked = {n: self.inputs[n].value for n in moved if n in self.inputs and n not in idle}
        asked |= {n: None for n in asked if n in KNOBS and KNOBS[n].off is None and asked[n] == 0}  # 'off'
        values = self.state.values | asked
        if "top_k" in self.inputs:
            values["top_k"] = min(values["top_k"], values["num_experts"])
        try:
            self._apply(self.check(values), "afresh" in moved)
        except BaseException:  # of a learner's block
            self.show_values()
            raise

    def _apply(self, values: dict[str, Any], afresh: bool = False) -> None:
        """Put checked values in force: a new start for what is of the structure, else a turn of the knobs."""
        before = self.state.values
        afresh = afresh or any(values[name] != before[name] for name in self.spec.start)
        if afresh:
            old, is_same = self.main_run, all(values.get(name) == before.get(name) for name in self.spec.same)
            self.runs = self.make_runs(values)
            self.turn(values)
            ghost = None if not is_same else old if len(old.records) > RECENT else self.state.ghost
            self.state = State(values, ghost=ghost)
            self.loop.restart_budget()
        else:
            self.turn(values)
            self.state.values = values
            if self.in_force(values) != self.in_force(before) and self.step not in (0, *self.state.changes[-1:]):
                self.state.changes.append(self.step)
        if afresh or values != before:
            self.loop.trouble = ""
        self.applied()
        self.show_values()


def devices() -> tuple[str, ...]:
    """The devices of this machine, the CPU first."""
    found = torch.accelerator.current_accelerator()
    return "cpu", *(f"{found.type}:{i}" for i in range(torch.accelerator.device_count()))


def device_name(device: Any) -> str:
    """Return the name of a device as `devices` has it; 'auto' is the first accelerator. ValueError: it is not here."""
    found = check_device(device)
    return check_choice("device", "cpu" if found.type == "cpu" else f"{found.type}:{found.index or 0}", devices())


def names_of(names: Any, what: str, allowed: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return one name or several, each once, or raise ValueError for what is none."""
    found = tuple(names) if isinstance(names, Sequence) and not isinstance(names, str) else (names,)
    if allowed is None and not all(isinstance(name, str) for name in found):
        raise ValueError(f"{what} must be a sequence, each of it a text, got {names!r}")
    for name in () if allowed is None else found or ("none",):
        check_choice(what, name, allowed)
    return tuple(dict.fromkeys(found))
