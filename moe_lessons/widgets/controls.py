"""Controls, made from the table of knobs."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ipywidgets as W
import traitlets

from moe_lessons.training.knobs import KNOBS, Box, Reach

TIPS = json.loads(Path(__file__).with_name("tips.json").read_text("utf-8"))  # of presets and remedies


def control(name: str, stops: Any = None) -> W.Widget:
    """The control of a knob. stops: those of the table, unless others are given; see `knobs.Knob`. None: a text."""
    knob = KNOBS[name]
    stops = knob.stops if stops is None else stops
    look = {"description": knob.description}
    if not stops:
        made = W.Text(continuous_update=False, **look)
    elif isinstance(stops, Box):
        made = W.BoundedIntText(min=0, max=stops.high, **look)
    elif isinstance(stops, Reach):
        made = W.FloatSlider(min=stops.low, max=stops.high, step=stops.step, value=stops.low, **look)
    elif isinstance(stops, range):
        low, high = stops[0], stops[-1]
        made = W.IntSlider(min=low, max=high, step=stops.step, value=low, readout_format=",d", **look)
    elif isinstance(stops[0], str | tuple) or callable(stops[0]):
        made = W.Dropdown(options=stops, **look)
    else:
        made = W.SelectionSlider(options=named_stops(stops), **look)
    made.style.description_width, made.layout.width = "88px", "auto"
    made.tooltip = knob.tip  # set here: Colab's ipywidgets 7 takes it of few widgets
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


class CheckBoxes(W.Box):
    """A row of boxes to tick; `value` has the names of those that are ticked, in their order. what: name -> its tip."""

    value = traitlets.Tuple()

    def __init__(self, name: str, names: Iterable[str], what: Callable[[str], str] = str):
        self.boxes: dict[str, W.Checkbox] = {}
        super().__init__([W.HTML(f"{KNOBS[name].label}:")])
        self.add_class("moe-bar")
        self.tip, self.what = KNOBS[name].tip, what
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
