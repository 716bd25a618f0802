"""The one laboratory: controls made from the table of knobs, and what happens when they are moved.

A laboratory is a specification of it: which controls start afresh, which apply to the next step and which only change
what is looked at; which panels there are; how values are checked and runs are made. The shortest is `CollapseLab`.
"""

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

import ipywidgets as W

from moe_lessons.errors import check_choice, is_whole
from moe_lessons.knobs import TRAINING
from moe_lessons.plots.panels._history import RECENT, X_AXES
from moe_lessons.training import Run
from moe_lessons.widgets.controls import Boxes, control, heading, move
from moe_lessons.widgets.live import LiveRun


class Lab(LiveRun):
    """A `LiveRun` with controls. `values` has what is in force, by name; also what has no control.

    A subclass says START, LIVE and LOOK (names of knobs), `stops(name)` for those that the table leaves open, `check`,
    `make_runs`, and what else it has of its own. What is refused changes nothing and moves the controls back.
    """

    START: tuple[str, ...] = ()  # a change of these starts afresh
    LIVE: tuple[str, ...] = tuple(TRAINING)  # these apply to the next step
    LOOK: tuple[str, ...] = ("x_axis",)  # these change nothing
    USUAL: dict[str, Any] = {}  # what `repr` leaves out
    can_reset = True

    def __init__(self, values, panels, *, given: Collection[str] = (), play=0, max_steps=1500, columns=3):
        self.values = self.check({"x_axis": "steps"} | values, given)
        self.inputs: dict[str, W.Widget] = {}
        self._moved: set[str] = set()  # controls that have moved and are not applied yet
        self._touched: list[str] = []  # those that have moved since, of which `_mark` has posted a note
        self._showing: int | None = None  # the thread on which controls are moved by us
        super().__init__(self.make_runs(self.values), panels, play=play, max_steps=max_steps, columns=columns)

    # --- what a subclass says ---

    def stops(self, name: str) -> Any:
        """What a control has to choose from, where the table does not say it."""
        return {"x_axis": tuple(X_AXES), "top_k": range(1, self.values.get("num_experts", 1) + 1)}.get(name)

    def check(self, values: dict[str, Any], given: Collection[str] = ()) -> dict[str, Any]:
        """The values, or ValueError. given: those that must apply, where the others may be idle."""
        check_choice("x_axis", values["x_axis"], X_AXES)
        idle = self.idle(values)
        for name in self.LIVE:
            knob = TRAINING[name]
            values = values | {name: knob.check(values[name])}
            if name in given and name in idle and values[name] != knob.off:
                raise ValueError(f"{name} must be off here, since {idle[name]}, got {values[name]!r}")
        return {name: int(value) if is_whole(value, 0) else value for name, value in values.items()}  # of NumPy, too

    def make_runs(self, values: dict[str, Any]) -> dict[str, Run]:
        """New runs for these values."""
        raise NotImplementedError

    def idle(self, values: dict[str, Any]) -> dict[str, str]:
        """The controls that do nothing with these values, and why."""
        return {}

    def turn(self, values: dict[str, Any], before: dict[str, Any]) -> None:
        """Apply what is live to the runs."""
        for name, value in self.in_force(values).items():
            setattr(self.main_run.knobs, name, value)

    def begin(self, values: dict[str, Any]) -> None:
        """Put new runs in the place of the old ones; the first of them stays behind the loss, where it compares."""
        runs, old = self.make_runs(values), self.main_run
        self.ghost = old if len(old.records) > RECENT else self.ghost
        if not self.comparable(values):
            self.ghost = None
        self.runs = runs

    def comparable(self, values: dict[str, Any]) -> bool:
        """Whether losses of the present runs can be compared with those of runs of these values."""
        return True

    def looked(self, before: dict[str, Any]) -> None:
        """Called when values are in force, before they are shown."""

    def written(self) -> tuple[list[str], dict[str, Any]]:
        """For `repr`: the positional arguments as they are written, and all values that may be named."""
        return [], self.values

    # --- values ---

    @property
    def x_axis(self) -> str:
        """What losses are drawn against."""
        return self.values["x_axis"]

    def in_force(self, values: dict[str, Any] | None = None) -> dict[str, float | None]:
        """The live knobs: each as it is asked for or, where the router has no use for it, off."""
        values = self.values if values is None else values
        idle = self.idle(values)
        return {name: TRAINING[name].off if name in idle else values[name] for name in self.LIVE}

    def set(self, **values: Any) -> None:
        """Move controls, as if by hand. A bad value moves none. Fewer experts lower top_k, unless it is given too."""
        for name in values:
            check_choice("setting", name, self.inputs)

        def apply() -> None:
            if is_whole(values.get("num_experts"), 1) and "top_k" in self.inputs:
                values.setdefault("top_k", min(self.values["top_k"], values["num_experts"]))
            self._apply(self.check(self.values | values, values), ())

        self.now(apply)

    def now(self, action: Callable[[], None]) -> None:
        """Do what code asks for, after what was asked before it, and show it."""
        try:
            with self.loop.held():
                self.loop.do_actions()
                action()
        finally:
            self.post(int) if self.running else self.show(True)  # int: nothing but a picture

    def reset(self) -> None:
        """Start afresh with the same settings."""
        self._mark("afresh")

    # --- controls ---

    def controls(self) -> list[W.Widget]:
        """A control for each name that has none yet, under three headings, and why some are idle."""
        groups = {"Structure · starts afresh": self.START, "Live · applies to the next step": self.LIVE,
                  "Look · changes nothing": self.LOOK}  # fmt: skip
        shown = []
        for title, names in groups.items():
            made = {name: control(name, self.stops(name)) for name in names if name not in self.inputs}
            self.inputs |= made
            shown += [heading(title), *made.values()] if made else []
            if names is self.LIVE and names:
                self._idle = W.HTML()
                shown.append(self._idle)
        self._tooltips = {name: getattr(widget, "tooltip", None) for name, widget in self.inputs.items()}
        self.show_values()
        for name, widget in self.inputs.items():
            widget.observe(lambda change, name=name: self._by_hand(name), "value")
        if {"num_experts", "top_k"} <= set(self.inputs):  # k never exceeds E
            experts, top_k = self.inputs["num_experts"], self.inputs["top_k"]
            experts.observe(lambda change: setattr(top_k, "max", change["new"]), "value")
        return shown

    def show_values(self) -> None:
        """Have the controls show what is in force; those without a use stand at 'off' and say why. One that was moved
        again meanwhile, on another thread, stays where it is: its turn comes."""
        idle, before = self.idle(self.values), self._showing
        self._showing = threading.get_ident()
        try:
            for name, widget in self.inputs.items():  # the experts come before the top-k that they limit
                stops = self.stops(name)
                if isinstance(widget, Boxes):
                    widget.value = widget.value if name in self._touched else tuple(self.values[name])
                    self.tips = self.tips | {name: box.tooltip for name, box in widget.boxes.items()}
                    continue
                if isinstance(widget, W.Dropdown) and tuple(widget.options) != tuple(stops):
                    widget.options = stops
                elif isinstance(widget, W.IntSlider) and stops is not None:
                    widget.max = max(stops[-1], self.values[name])
                off = name in idle and name in TRAINING
                widget.disabled = name in idle
                widget.tooltip = self._tooltips[name] + (f". Off: {idle[name]}" if name in idle else "")
                self.tips = self.tips | {widget.description: widget.tooltip}
                if name not in self._touched:
                    move(widget, TRAINING[name].off if off else self.values[name])
            if self.LIVE:
                reasons = "; ".join(dict.fromkeys(idle[n] for n in self.LIVE if n in idle))
                self._idle.value = f'<div class="moe-idle">Off: {reasons}.</div>' if reasons else ""
        finally:
            self._showing = before

    def _by_hand(self, name: str) -> None:
        """A control has moved, by us or by hand: then its value is read when it is applied, so that the last counts."""
        if self._showing != threading.get_ident():
            self._touched.append(name)
            self._mark(name)

    def _mark(self, name: str) -> None:
        """Have a control applied, together with those that move before anything else is posted."""

        def mark() -> None:
            self._moved.add(name)
            if name in self._touched:
                self._touched.remove(name)

        self.loop.post(mark, note=True)

    def settle(self) -> None:
        """Apply the controls that have moved."""
        moved, self._moved = self._moved, set()
        if not moved:
            return
        idle = self.idle(self.values)
        asked = {n: self.inputs[n].value for n in moved if n in self.inputs and n not in idle}
        asked |= {n: None for n in asked if n in TRAINING and TRAINING[n].off is None and asked[n] == 0}  # 'off'
        values = self.values | asked
        if "top_k" in self.inputs:
            values["top_k"] = min(values["top_k"], values["num_experts"])
        try:
            self._apply(self.check(values), moved)
        except Exception:
            self.show_values()
            raise

    def _apply(self, values: dict[str, Any], moved: Collection[str]) -> None:
        """Put checked values in force: a new start for what is of the structure, else a turn of the knobs."""
        before = self.values
        if "afresh" in moved or any(values[name] != before[name] for name in self.START):
            self.begin(values)
            self.values, self.marks = values, []
            self.loop.restart_budget()
            self.loop.trouble = ""
        else:
            self.turn(values, before)
            self.values = values
            if self.in_force(values) != self.in_force(before) and self.step not in (0, *self.marks[-1:]):
                self.marks.append(self.step)
        if values != before:
            self.loop.trouble = ""
        self.looked(before)
        self.show_values()

    def __repr__(self) -> str:
        positional, values = self.written()
        named = [f"{name}={written(value)}" for name, value in values.items()
                 if name in self.USUAL and value != self.USUAL[name]]  # fmt: skip
        return f"{type(self).__name__}({', '.join([*positional, *self._arguments, *named])})"


def written(value: Any) -> str:
    """A value as it is written in a call: a class or function of a learner by its name."""
    return getattr(value, "__name__", repr(value))


def names_of(names: Any, what: str, allowed: Sequence[str] | None = None) -> tuple[str, ...]:
    """One name or several, each once, or ValueError for what is none."""
    several = isinstance(names, Sequence) and not isinstance(names, str)
    found = tuple(names) if several else (names,)
    for name in found or ("none",):
        if allowed is not None:
            check_choice(what, name, allowed)
        elif not isinstance(name, str):
            raise ValueError(f"{what} must be names such as 'top-2', got {names!r}")
    return tuple(dict.fromkeys(found))
