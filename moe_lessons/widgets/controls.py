"""Controls: those of the table of knobs, and those that start a view afresh or change only what is looked at."""

import json
from collections import namedtuple
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as W
import traitlets

from moe_lessons.training.knobs import KNOBS, Knob

TIPS = json.loads(Path(__file__).with_name("tips.json").read_text("utf-8"))  # of presets and methods
Reach = namedtuple("Reach", "low high step")  # a slider of real numbers
Box = namedtuple("Box", "high")  # a box for whole numbers from 0
KINDS = {"range": range, "reach": Reach, "box": Box}  # of stops, by the word before their numbers in controls.json


@dataclass(frozen=True)
class Control:
    """A control that is no knob. stops: numbers or names to choose from, a `range`, a `Reach` or a `Box`; a
    laboratory may give its own."""

    name: str
    label: str
    unit: str = ""
    tip: str = ""
    stops: Any = ()

    description = Knob.description


def read_controls() -> dict[str, Knob | Control]:
    """Read the rows of controls.json, after the knobs."""
    found: dict[str, Knob | Control] = dict(KNOBS)
    for name, row in json.loads(Path(__file__).with_suffix(".json").read_text("utf-8")).items():
        first, *numbers = row.get("stops") or [None]
        stops = KINDS[first](*numbers) if first in KINDS else tuple(row.get("stops", ()))
        found[name] = Control(name, **row | {"stops": stops})
    return found


CONTROLS = read_controls()


def control(name: str, stops: Any = None) -> W.Widget:
    """Make a control. stops: those of the table, unless others are given; see `Control`. None: a text."""
    row = CONTROLS[name]
    stops = row.stops if stops is None else stops
    text = {"description": row.description}
    if not stops:
        made = W.Text(continuous_update=False, **text)
    elif isinstance(stops, Box):
        made = W.IntText(**text)  # a bounded one would change what was typed, without a word
    elif isinstance(stops, Reach):
        made = W.FloatSlider(min=stops.low, max=stops.high, step=stops.step, value=stops.low, **text)
    elif isinstance(stops, range):
        low, high = stops[0], stops[-1]
        made = W.IntSlider(min=low, max=high, step=stops.step, value=low, readout_format=",d", **text)
    elif isinstance(stops[0], str | tuple) or callable(stops[0]):
        made = W.Dropdown(options=stops, **text)
    else:
        made = W.SelectionSlider(options=named_stops(stops), **text)
    made.style.description_width, made.layout.width = "88px", "auto"
    made.tooltip = row.tip  # set here: Colab's ipywidgets 7 takes it of few widgets
    return made


def named_stops(stops: Iterable[float]) -> list[tuple[str, float]]:
    """Numbers with what a slider says of them; 0.0 is 'off'."""
    names = (f"{s:,}" if isinstance(s, int) else "off" if s == 0 else f"{s:g}" for s in stops)
    return list(zip(names, stops))


def move(widget: W.Widget, value: Any) -> None:
    """Move a control to a value; a slider reaches further then if it has to. None is 'off'."""
    if isinstance(widget, W.SelectionSlider):
        value, stops = value or 0.0, [stop for _, stop in widget.options]
        if value not in stops:
            widget.options = named_stops(sorted({*stops, value}))
    elif isinstance(widget, W.IntSlider | W.FloatSlider):
        widget.min, widget.max = min(widget.min, value), max(widget.max, value)
    if widget.value != value:
        widget.value = value


def asked_by(name: str, shown: Any) -> Any:
    """Return the value that a control asks for by what it shows: 0 is 'off', which of some knobs is None."""
    return None if shown == 0 and name in KNOBS and KNOBS[name].off is None else shown


class CheckBoxes(W.Box):
    """A row of boxes to tick; `value` has the names of those that are ticked, in their order. what: name -> its tip."""

    value, disabled = traitlets.Tuple(), False

    def __init__(self, name: str, names: Iterable[str], what: Callable[[str], str] = str):
        self.boxes: dict[str, W.Checkbox] = {}
        super().__init__([W.HTML(f"{CONTROLS[name].label}:")])
        self.add_class("moe-bar")
        self.tip, self.what = CONTROLS[name].tip, what
        self.add(names)

    def add(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.boxes:
                self.boxes[name] = W.Checkbox(False, description=name, indent=False, layout=W.Layout(width="auto"))
                self.boxes[name].tooltip = self.tip.format(self.what(name))
                self.boxes[name].observe(self._ticked, "value")
        self.children = (self.children[0], *self.boxes.values())

    def _ticked(self, change: dict[str, Any]) -> None:
        name, is_ticked = change["owner"].description, change["new"]
        if is_ticked != (name in self.value):
            self.value = tuple(n for n in self.boxes if (is_ticked if n == name else n in self.value))

    @traitlets.observe("value")
    def _tick(self, change: dict[str, Any]) -> None:
        self.add(change["new"])
        for name, box in self.boxes.items():
            box.value = name in change["new"]
