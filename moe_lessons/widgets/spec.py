"""The specification and the state of a live view: the same two dataclasses for all laboratories."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from moe_lessons.plots.marks import CLASSES
from moe_lessons.training import Run
from moe_lessons.widgets.controls import CONTROLS

HEADINGS = {
    "structural": "Starts afresh",
    "live": "From the next step",
    "display": "Look only",
}


class Changes(NamedTuple):
    """What other values ask of a view: a new start, or a knob that is turned between two steps."""

    restart: bool
    knob: bool


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The specification of a view.

    settings: what may be given by name beside the arguments of the laboratory, with what it is where it is not given.
    structural, live, display: its controls, of `CONTROLS`: see `HEADINGS`.
    stops: what controls have to choose from, where it is not what `CONTROLS` says.
    clicks: what can be clicked in a panel, and the control that its number selects.
    same: losses are compared with those of an earlier run where these values are the same.
    first_x: steps that the panels have room for at first. has_chips: whether there is a chip for each expert."""

    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    structural: tuple[str, ...] = ()
    live: tuple[str, ...] = ()
    display: tuple[str, ...] = ()
    stops: Mapping[str, Any] = field(default_factory=dict)
    clicks: tuple[str, str] = ("", "")
    same: tuple[str, ...] = ("task", "points")
    first_x: int = 200
    has_chips: bool = True

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The controls by the names of `HEADINGS`."""
        return {group: getattr(self, group) for group in HEADINGS}

    def changes(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
        """Say what it asks of a view that values are these now."""
        return Changes(*(any(before[n] != now[n] for n in names) for names in (self.structural, self.live)))

    def stops_of(self, name: str) -> Any:
        return self.stops.get(name) or CONTROLS[name].stops


def class_of(pen: str) -> int | None:
    """The class of a pen such as 'class B'; None: it has none."""
    return None if (label := CLASSES.find(pen[-1])) < 0 else label


@dataclass
class State:
    """The settings of a view, by the name of an argument or a control, and what was done to it. Panels read it.

    `values` is the one place where they stand; it is replaced as a whole, never changed in place. changes: the steps
    after which a knob was turned; names: what is written there, by the step. ghost: an earlier run, to compare with."""

    values: Mapping[str, Any]
    changes: list[int] = field(default_factory=list)
    ghost: Run | None = None
    names: dict[int, str] = field(default_factory=dict)

    token = property(lambda self: self.values.get("token", 0), doc="The token that is selected.")
    layer = property(lambda self: self.values.get("layer", 0), doc="The MoE layer that is shown, of several.")
    x_axis = property(lambda self: self.values.get("x_axis", "steps"), doc="What losses are drawn against.")
    pen = property(lambda self: class_of(self.values.get("pen", "off")), doc="The class of what is drawn by hand.")
    muted = property(lambda self: self._number_of("mute"), doc="The expert that is off where tokens are read.")
    shows_classes = property(lambda self: self.values.get("classes") != "hidden", doc="Pale, in the territory.")

    def _number_of(self, name: str) -> int | None:
        """The number in a value such as 'E3'; None: it has none."""
        found = re.search(r"\d+", self.values.get(name, ""))
        return found and int(found[0])
