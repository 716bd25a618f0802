"""The table of knobs: what may change between two steps of a run. Sliders, settings, runs, their states and the page
read it, and nothing else says what a knob is."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from moe_lessons.nn import MoE, Routing, seeded
from moe_lessons.nn.balancing import load_balancing_loss, router_z_loss, update_expert_bias
from moe_lessons.nn.routing import ROUTERS
from moe_lessons.support.errors import check_number


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One row of the table. label, unit, tip: what stands beside its slider, and what that says when pointed at.

    stops: the numbers that a slider offers, ascending; a 0 among them that `limits` exclude stands for `off`.
    limits: the lowest and the highest value allowed. is_above: whether the lowest itself is too low.
    off: the value at which it does nothing. needs: the modules that it acts on; without one, only `off` is allowed, and
    `idle` says why. disturbs: whether training then routes otherwise than evaluation.

    How it is applied to a run: as an `attribute` of those modules, as the weight of an `auxiliary_loss` of each routing
    (by its `__name__` in `Run.history`), or by an `update` of each router after a step (router, routing, value). The
    one that has none of these, lr, is the optimizer's."""

    name: str
    label: str
    unit: str = ""
    tip: str = ""
    stops: tuple[float, ...] = ()
    limits: tuple[float, float] = (0.0, 1e15)  # far beyond use, and every language writes it in digits
    is_above: bool = False
    off: float | None = 0.0
    needs: Callable[[nn.Module], bool] | None = None
    idle: str = ""
    attribute: bool = False
    auxiliary_loss: Callable[[Routing], Tensor] | None = None
    update: Callable[[nn.Module, Routing, float], None] | None = None
    disturbs: bool = False

    @property
    def description(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def check(self, value: Any) -> float | None:
        """Return a value as it is applied, or raise ValueError."""
        if value is None and self.off is None:
            return None
        return check_number(self.name, value, self.limits[0], self.is_above, self.limits[1]) + 0.0  # no -0.0


ROWS = [
    Knob(
        name="router_aux_loss_coef",
        label="Auxiliary loss",
        tip="Coefficient of the load-balancing loss in what is minimised; no unit",
        stops=(0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
        auxiliary_loss=load_balancing_loss,
    ),
    Knob(
        name="noise_std",
        label="Noise",
        unit="std",
        tip="Standard deviation of the Gaussian noise on the router's logits, in training only",
        stops=tuple(n / 20 for n in range(61)),
        needs=lambda module: hasattr(module, "noise_std") and getattr(module, "noise", "gaussian") == "gaussian",
        idle="the noise needs a top-k router",
        attribute=True,
        disturbs=True,
    ),
    Knob(
        name="jitter_noise",
        label="Jitter ε",
        tip="The router's input is scaled at random, by 1 − ε to 1 + ε, in training only; no unit",
        stops=tuple(n / 20 for n in range(21)),
        limits=(0.0, 1.0),
        needs=lambda module: hasattr(module, "jitter_noise"),
        idle="this router cannot jitter",
        attribute=True,
        disturbs=True,
    ),
    Knob(
        name="capacity_factor",
        label="Capacity",
        unit="×",
        tip="Capacity factor: places of each expert, in multiples of the uniform load; overflow is dropped",
        stops=(0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0),
        is_above=True,
        off=None,
        needs=lambda module: hasattr(module, "capacity_factor"),
        idle="the block has no capacity",
        attribute=True,
    ),
    Knob(
        name="router_z_loss_coef",
        label="z-loss",
        tip="Coefficient of the router z-loss, which keeps the router's logits small; no unit",
        stops=(0.0, 0.0001, 0.001, 0.01, 0.1, 1.0),
        auxiliary_loss=router_z_loss,
    ),
    Knob(
        name="expert_bias_rate",
        label="Bias rate",
        tip="How far each step moves the bias of an expert that had too little or too much; no unit",
        stops=(0.0, 0.0001, 0.001, 0.003, 0.01, 0.03, 0.1),
        needs=lambda module: hasattr(module, "expert_bias"),
        idle="the bias needs a sigmoid router",
        update=update_expert_bias,
    ),
    Knob(
        name="lr",
        label="Learning rate",
        tip="Of Adam, for all models; no unit",
        stops=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
        is_above=True,
    ),
]
KNOBS = {knob.name: knob for knob in ROWS}


@dataclass(init=False)
class Knobs:
    """The knobs of a run: a field for each of `KNOBS`. A bad value raises ValueError and changes nothing, a name that
    is no knob AttributeError."""

    router_aux_loss_coef: float
    noise_std: float
    jitter_noise: float
    capacity_factor: float | None
    router_z_loss_coef: float
    expert_bias_rate: float
    lr: float

    def __init__(self, model: nn.Module, lr: float):
        modules = list(model.modules())
        acts_on = {name: [m for m in modules if knob.needs(m)] for name, knob in KNOBS.items() if knob.needs}
        super().__setattr__("_acts_on", acts_on)
        super().__setattr__("_learns_noise", any(getattr(module, "noise", None) == "learned" for module in modules))
        for name, knob in KNOBS.items():
            modules = acts_on.get(name) if knob.attribute else None
            super().__setattr__(name, getattr(modules[0], name) if modules else knob.off)
        self.lr = lr

    @property
    def is_noisy(self) -> bool:
        """Tell whether training now routes otherwise than evaluation: Gaussian or learned noise, or jitter."""
        return self._learns_noise or any(getattr(self, name) for name, knob in KNOBS.items() if knob.disturbs)

    def __setattr__(self, name: str, value: float | None) -> None:
        checked = self.check(name, value)
        super().__setattr__(name, checked)
        for module in self._acts_on[name] if KNOBS[name].attribute else ():
            setattr(module, name, checked)

    def check(self, name: str, value: Any) -> float | None:
        """Return a value as it would be applied, or raise what setting it would raise."""
        if name not in KNOBS:
            raise AttributeError(f"there is no knob {name!r}, only {', '.join(KNOBS)}")
        knob = KNOBS[name]
        checked = knob.check(value)
        if checked != knob.off and not self._acts_on.get(name, True):
            raise ValueError(f"{name} must be {knob.off} here, since {knob.idle}, got {value!r}")
        return checked

    def take(self, setting: Any) -> None:
        """Turn every knob to what a setting says."""
        for name in KNOBS:
            setattr(self, name, getattr(setting, name))


def idle_knobs(model: nn.Module) -> dict[str, str]:
    """Name the knobs that do nothing in a model, and why: no module, or the router, has a use for them."""
    modules = list(model.modules())
    idle = {n: knob.idle for n, knob in KNOBS.items() if knob.needs and not any(map(knob.needs, modules))}
    for module in modules:
        idle |= getattr(module, "no_use", {})
    return idle


@functools.cache
def idle_with(router: str) -> dict[str, str]:
    """Do the same for a mixture with one of the `ROUTERS`."""
    with seeded(0):
        return idle_knobs(MoE(4, 4, 2, 1, router=ROUTERS[router](4, 2, 1)))
