"""The one laboratory, which all others specify; the shortest specification is `CollapseLab`."""

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import ipywidgets as W
import torch

from moe_lessons.analysis.load import WORDS, describe_load
from moe_lessons.plots.panels._history import LOAD_WINDOW, RECENT, X_AXES, recent_load
from moe_lessons.support.errors import check_choice, check_device, check_top_k, check_whole, is_whole
from moe_lessons.training import Run, is_dead
from moe_lessons.training.knobs import KNOBS
from moe_lessons.widgets.controls import CONTROLS, Box, CheckBoxes, asked_by, control, move
from moe_lessons.widgets.live import LiveRun
from moe_lessons.widgets.spec import HEADINGS, Spec, State

MOST = 10**9  # of what is counted
AGAIN = 3  # CPU seconds of training
FEW_PACE = 40  # steps a second of a first training with few panels: one sees how it begins
AFRESH = "undo"  # the icon of what starts afresh
AFRESH_SIGN = f'<i class="fa fa-{AFRESH}" aria-hidden="true"></i>'
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Lab(LiveRun):
    """A `LiveRun` with controls, as its `Spec` says. `state.values` has what they ask for, also what has no control.

    From a control to the step: `moved` posts its value; between two steps the loop has `apply` put it in force, by a
    new start or by `turn`; `train_one` trains with it. What is refused changes nothing and moves the controls back.

    A subclass has `make_runs` and, where it needs them, more in `check` and `idle`, and words of its own.
    values: of the arguments and controls. settings: what the caller gives beside them. more: see `LiveRun`."""

    def __init__(self, spec: Spec, values: Mapping[str, Any], panels, settings: Mapping[str, Any] = NOTHING, **more):
        for name in settings:
            check_choice("setting", name, spec.settings)
        if len(devices()) > 1:
            spec = replace(spec, structural=(*spec.structural, "device"))
        self.spec = spec
        values = self.check({"x_axis": "steps"} | spec.settings | values | settings, settings)
        self.inputs: dict[str, W.Widget] = {}
        self._showing: int | None = None  # the thread on which `show_values` moves controls
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
        for name in self.spec.structural + self.spec.display:  # the experts come before the top-k that they limit
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

    def idle(self, values: Mapping[str, Any]) -> dict[str, str]:
        """The controls that do nothing with these values, each with the reason."""
        return {}

    def in_force(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values, with each knob off that the router has no use for."""
        return dict(values) | {name: KNOBS[name].off for name in self.idle(values) if name in KNOBS}

    def turn(self, values: Mapping[str, Any]) -> None:
        """Turn the knobs of the runs to these values."""
        in_force = self.in_force(values)
        for name in self.spec.live:
            for run in self.runs.values() if name == "lr" else [self.main_run]:
                setattr(run.knobs, name, in_force[name])

    def applied(self) -> None:
        """Called when other values are in force."""

    def set(self, **values: Any) -> None:
        """Move controls, as if by hand. A bad value moves none. Fewer experts lower top_k, unless it is given too."""
        for name in values:
            check_choice("setting", name, self.inputs)
        self.loop.now(partial(self.apply, values, is_strict=True))

    def picked(self, kind: str, index: int) -> None:
        clickable, name = self.spec.clicks
        if kind == clickable and index < len(stops := self.stops(name, self.state.values)):
            self.apply({name: stops[index]})

    def load_words(self) -> tuple[str, str]:
        """Say what the load shows: the verdict, and the rest; nothing where there is no load."""
        if not self.step:
            return tuple(WORDS["untrained"])
        recent, load = self.main_run.records[-RECENT:], self.load
        dropped = sum(record.dropped_share for record in recent) / max(len(recent), 1)
        return ("", "") if load is None else describe_load(load, self.state.values.get("top_k", 1), dropped)

    @property
    def load(self) -> Any:
        """Return the share of the assignments that each expert has received lately, (E,); None: nothing is known."""
        return recent_load(self.main_run, self.state.layer) if self.main_run.records else self.clean_load

    @property
    def dead(self) -> list[int]:
        """The experts that are dead; in the first steps, of which too little is known, none."""
        top_k, load = self.state.values.get("top_k", 1), self.load if self.step >= LOAD_WINDOW else ()
        return [e for e, share in enumerate(load) if is_dead(top_k * float(share))]

    def lines_of_load(self) -> dict[str, Any]:
        """For the line of the step: what the load is, and who is dead."""
        return {"verdict": self.load_words()[0] if self.step >= LOAD_WINDOW else "", "dead": self.dead}

    def words(self) -> str:
        return "".join(self.load_words())

    def written(self) -> list[str]:
        values, usual = self.in_force(self.state.values), self.arguments()
        texts = {n: getattr(values[n], "__name__", repr(values[n])) for n in usual if values[n] != usual[n]}
        first, *names = usual
        return ([texts[first]] if first in texts else []) + [f"{name}={texts[name]}" for name in names if name in texts]

    def bar(self) -> list[W.Widget]:
        tip = "Start afresh with the same settings"
        return [*super().bar(), self.button("Restart", tip, lambda: self.apply_by_hand({}, restart=True), icon=AFRESH)]

    def body(self) -> W.Widget:
        body, controls = super().body(), W.Box(self.controls()).add_class("moe-controls")
        body.children = (self.canvas, controls)  # Tab comes to the pictures first
        return body.remove_class("moe-alone")

    def controls(self) -> list[W.Widget]:
        """Make a control for each name that has none yet, under three headings, and a place to say why some idle."""
        shown, self.headings = [], {}
        self._idle = W.HTML()
        for group, names in self.spec.groups.items():
            names = [name for name in names if name not in self.inputs]
            made = {name: control(name, self.stops(name, self.state.values)) for name in names}
            self.inputs |= made
            if made:
                sign = f"{AFRESH_SIGN} " * (group == "structural")
                self.headings[group] = W.HTML(f'<div class="moe-group">{sign}{HEADINGS[group]}</div>')
                shown += [self.headings[group], *made.values()]
            shown += [self._idle] if group == "live" else []
        self.show_values()
        for name, widget in self.inputs.items():
            widget.observe(partial(self.moved, name), "value")
        return shown

    def moved(self, name: str, change: Mapping[str, Any]) -> None:
        """Ask for the value to which a control was moved by hand, on whichever thread."""
        if self._showing != threading.get_ident():
            is_idle = change["owner"].disabled  # then it only goes back
            self.loop.post({} if is_idle else {name: asked_by(name, change["new"])})

    def apply_by_hand(self, asked: Mapping[str, Any], restart: bool = False) -> None:
        """Apply what was asked for by hand; what then starts afresh trains."""
        before = self.state
        self.apply(asked, restart=restart)
        if self.state is not before:
            self.play_as_at_first()

    def release(self) -> None:
        """See `LiveRun`. What has trained unseen to its end, since a cell waited for it, trains again, if that takes no
        longer than `AGAIN`."""

        def begin() -> None:
            if self.running or self.loop.cost["training"] > AGAIN:
                return
            if self.step:
                self.apply({}, restart=True)
                self.state.ghost = None  # it would be the same curve
            self.play_as_at_first()

        self.post(begin)

    def apply(self, asked: Mapping[str, Any], *, is_strict: bool = False, restart: bool = False) -> None:
        """Put other values in force: a new start for what is structural, else a turn of the knobs. ValueError for what
        cannot be, and nothing has changed. is_strict: what is asked for is refused where it cannot apply; else a top_k
        above the number of experts is lowered, and a knob may idle."""
        before = self.state.values
        values = before | asked
        if is_whole(num_experts := values.get("num_experts"), 1) and not (is_strict and "top_k" in asked):
            values["top_k"] = min(values["top_k"], num_experts)
        try:
            values = self.check(values, asked if is_strict else ())
            changes = self.spec.changes(self.in_force(before), self.in_force(values))
            if restart or changes.restart:
                self._start(values)
            else:
                self.turn(values)
                self.state.values = values
                if changes.knob and self.step not in (0, *self.state.changes[-1:]):
                    self.state.changes.append(self.step)
            if restart or values != before:
                self.loop.trouble = ""
            self.applied()
        finally:
            self.show_values()

    def _start(self, values: Mapping[str, Any]) -> None:
        """Start afresh, with the run so far to compare with where that says something."""
        old, state = self.main_run, self.state
        self.runs = self.make_runs(values)
        self.turn(values)
        is_same = all(values.get(name) == state.values.get(name) for name in self.spec.same)
        ghost = old if len(old.records) > RECENT else state.ghost
        self.state = State(values, ghost=ghost if is_same else None)
        self.loop.restart_budget()

    def show_values(self) -> None:
        """Have the controls show what is in force, but for those that were moved again meanwhile: their turn comes."""
        values, idle = self.in_force(self.state.values), self.idle(self.state.values)
        waiting = {name for asked in self.loop.queue.copy() if not callable(asked) for name in asked}
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
                if name not in waiting:
                    move(widget, values[name])
            off = [name for name in self.spec.live if name in idle]
            reasons = "; ".join(f"{CONTROLS[name].description}: {idle[name]}" for name in off)
            self._idle.value = f'<div class="moe-idle">Off: {reasons}.</div>' if off else ""
        finally:
            self._showing = None

    def forget(self) -> None:
        super().forget()
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
