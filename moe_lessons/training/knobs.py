"""The one table of knobs, which sliders, settings, runs, checkpoints and calculators read; its words: knobs.json."""

import functools
import json
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from moe_lessons.nn import MoE, Routing, seeded
from moe_lessons.nn.balancing import load_balancing_loss, router_z_loss, update_expert_bias
from moe_lessons.nn.routing import ROUTERS
from moe_lessons.support.errors import check_number

Reach = namedtuple("Reach", "low high step")  # a slider of real numbers
Box = namedtuple("Box", "high")  # a box for whole numbers from 0
KINDS = {"range": range, "reach": Reach, "box": Box}  # of stops, by the word before their numbers in knobs.json
MOST = 1e30  # of a knob: float32 holds it


@dataclass(frozen=True)
class Knob:
    """Is one row of the table. label, unit, tip: what stands beside the control, and what it says when pointed at.
    stops: numbers or names to choose from, a `range`, a `Reach` or a `Box`; a laboratory may give its own.
    off: the value at which it does nothing. needs: the modules that it acts on; without one, only `off` is allowed, and
    `idle` says why. disturbs: whether training then routes otherwise than evaluation.

    How it is applied to a run: as an `attribute` of those modules, as the weight of a `loss` of each routing (by its
    `__name__` in `Run.history`), or by an `update` of each router after a step (router, routing, value). lr is the
    optimizer's. What has none of these starts a view afresh, or changes only what is looked at."""

    name: str
    label: str
    unit: str = ""
    tip: str = ""
    stops: Any = ()
    off: float | None = 0.0
    needs: Callable[[nn.Module], bool] | None = None
    idle: str = ""
    attribute: bool = False
    loss: Callable[[Routing], Tensor] | None = None
    update: Callable[[nn.Module, Routing, float], None] | None = None
    disturbs: bool = False

    def __post_init__(self):
        if isinstance(self.stops, list):  # as JSON has it
            kind = KINDS.get(self.stops[0])
            object.__setattr__(self, "stops", kind(*self.stops[1:]) if kind else tuple(self.stops))

    @property
    def description(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def check(self, value: Any) -> float | None:
        """Return the value of a knob of `TRAINING` as it is applied, or raise ValueError."""
        if value is None and self.off is None:
            return None
        most = 1.0 if self.name == "jitter_noise" else MOST
        return check_number(self.name, value, above=self.off is None or self.name == "lr", most=most)


# How those of training are applied to the next step. A new one is an entry here and a row of knobs.json.
APPLIED: dict[str, dict[str, Any]] = {
    "router_aux_loss_coef": {"loss": load_balancing_loss},
    "noise_std": {
        "needs": lambda m: hasattr(m, "noise_std") and getattr(m, "noise", "gaussian") == "gaussian",
        "attribute": True, "disturbs": True,
    },
    "jitter_noise": {"needs": lambda m: hasattr(m, "jitter_noise"), "attribute": True, "disturbs": True},
    "capacity_factor": {"needs": lambda m: hasattr(m, "capacity_factor"), "attribute": True, "off": None},
    "router_z_loss_coef": {"loss": router_z_loss},
    "expert_bias_rate": {"needs": lambda m: hasattr(m, "expert_bias"), "update": update_expert_bias},
    "lr": {},
}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
KNOBS = {name: Knob(name, **row | APPLIED.get(name, {})) for name, row in ROWS.items()}
TRAINING = {name: KNOBS[name] for name in APPLIED}
# a frozen dataclass with a field for each of these, at `off`: what a setting or preset inherits from
FIELDS = [(name, float | None, knob.off) for name, knob in TRAINING.items()]
KnobFields = make_dataclass("KnobFields", FIELDS, frozen=True, kw_only=True)


class Knobs:
    """Has what may change between any two steps: an attribute for each knob of `TRAINING`. A bad value raises
    ValueError and changes nothing, a name that is no knob AttributeError."""

    def __init__(self, model: nn.Module, lr: float):
        modules = list(model.modules())
        acts_on = {name: [m for m in modules if knob.needs(m)] for name, knob in TRAINING.items() if knob.needs}
        learns_noise = any(getattr(module, "noise", None) == "learned" for module in modules)
        vars(self).update({name: knob.off for name, knob in TRAINING.items()})
        vars(self).update(_modules=acts_on, _learns_noise=learns_noise)
        for name, modules in acts_on.items():
            if modules and TRAINING[name].attribute:
                vars(self)[name] = getattr(modules[0], name)
        self.lr = lr

    @property
    def is_noisy(self) -> bool:
        """Tell whether training now routes otherwise than evaluation: Gaussian or learned noise, or jitter."""
        return self._learns_noise or any(getattr(self, name) for name, knob in TRAINING.items() if knob.disturbs)

    def __setattr__(self, name: str, value: float | None) -> None:
        vars(self)[name] = checked = self.check(name, value)
        for module in self._modules[name] if TRAINING[name].attribute else ():
            setattr(module, name, checked)

    def check(self, name: str, value: Any) -> float | None:
        """Return a value as it would be applied, or raise what setting it would raise."""
        if name not in TRAINING:
            raise AttributeError(f"there is no knob {name!r}, only {', '.join(TRAINING)}")
        knob = TRAINING[name]
        checked = knob.check(value)
        if checked != knob.off and not self._modules.get(name, True):
            raise ValueError(f"{name} must be {knob.off} here, since {knob.idle}, got {value!r}")
        return checked

    def take(self, setting: Any) -> None:
        """Turn every knob to what a setting says."""
        for name in TRAINING:
            setattr(self, name, getattr(setting, name))

    def __repr__(self) -> str:
        return f"Knobs({', '.join(f'{name}={getattr(self, name)}' for name in TRAINING)})"


def idle_knobs(model: nn.Module) -> dict[str, str]:
    """Name the knobs of training that do nothing in a model, and why: no module, or the router, has a use for them."""
    modules = list(model.modules())
    idle = {n: knob.idle for n, knob in TRAINING.items() if knob.needs and not any(map(knob.needs, modules))}
    for module in modules:
        idle |= getattr(module, "no_use", {})
    return idle


@functools.cache
def idle_with(router: str) -> dict[str, str]:
    """Do the same for a mixture with one of the `ROUTERS`."""
    with seeded(0):
        return idle_knobs(MoE(4, 4, 2, 1, router=ROUTERS[router](4, 2, 1)))
