"""The one table of knobs, which sliders, settings, runs, checkpoints and calculators read: a new knob is one entry."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, make_dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from moe_lessons.nn import MoE, Routing, load_balancing_loss, router_z_loss, seeded, update_expert_bias
from moe_lessons.nn.routing import ROUTERS
from moe_lessons.support.errors import check_number


class Reach(NamedTuple):
    """A slider's range of real numbers."""

    low: float
    high: float
    step: float


class Box(NamedTuple):
    """A box for whole numbers from 0."""

    high: int = 9999


@dataclass(frozen=True)
class Knob:
    """Is one row of the table.

    label, unit, tip: what stands beside the control, and what it says when pointed at.
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

    @property
    def description(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def check(self, value: Any) -> float | None:
        """Return the value of a knob of `TRAINING` as it is applied, or raise ValueError."""
        if value is None and self.off is None:
            return None
        return check_number(self.name, value, above=self.off is None or self.name == "lr")


ROWS = (
    # applied to the next step
    Knob("router_aux_loss_coef", "Auxiliary loss", "", "Coefficient of the load-balancing loss in what is minimised; "
         "no unit", (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), loss=load_balancing_loss),
    Knob("noise_std", "Noise", "std",
         "Standard deviation of the Gaussian noise on the router's logits, in training only", Reach(0, 3, 0.05),
         needs=lambda m: hasattr(m, "noise_std") and getattr(m, "noise", "gaussian") == "gaussian",
         idle="the noise needs a top-k router", attribute=True, disturbs=True),
    Knob("jitter_noise", "Jitter ε", "",
         "The router's input is scaled at random, by 1 − ε to 1 + ε, in training only; no unit", Reach(0, 1, 0.05),
         needs=lambda m: hasattr(m, "jitter_noise"), idle="this router cannot jitter", attribute=True, disturbs=True),
    Knob("capacity_factor", "Capacity", "×",
         "Capacity factor: places of each expert, in multiples of its even share; what is over is dropped",
         (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0), off=None,
         needs=lambda m: hasattr(m, "capacity_factor"), idle="the block has no capacity", attribute=True),
    Knob("router_z_loss_coef", "z-loss", "", "Coefficient of the router z-loss, which keeps the router's logits small; "
         "no unit", (0.0, 0.0001, 0.001, 0.01, 0.1, 1.0), loss=router_z_loss),
    Knob("expert_bias_rate", "Bias rate", "",
         "How far each step moves the bias of an expert that had too little or too much; no unit",
         (0.0, 0.0001, 0.001, 0.003, 0.01, 0.03, 0.1),
         needs=lambda m: hasattr(m, "expert_bias"), idle="the bias needs a sigmoid router", update=update_expert_bias),
    Knob("lr", "Learning rate", "", "Of Adam, for all models; no unit",
         (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)),
    # these start afresh
    Knob("task", "Task", tip="What is learned: which points belong to which class"),
    Knob("num_experts", "Experts E", tip="How many experts the router chooses from", stops=range(1, 17)),
    Knob("top_k", "Top-k", tip="How many experts work for each token", stops=range(1, 17)),
    Knob("d_ff", "F", "units", "Width of each expert, d_ff: its hidden units", range(2, 33, 2)),
    Knob("router", "Router", tip="How the experts of a token are chosen"),
    Knob("router_start", "Router start", "",
         "Spread: even territories, sure decisions. Soft spread: even, unsure. Random: torch's own start"),
    Knob("seed", "Seed", tip="Of the task, the models, the data and the noise", stops=Box()),
    Knob("first_seed", "First seed", tip="Of these runs; the films show this one", stops=Box()),
    Knob("seeds", "Seeds", tip="How many runs each tile trains, for the spread", stops=range(1, 11)),
    Knob("apply_from", "Remedy from", "", "The step at which the remedies start. 0: they prevent the collapse; later: "
         "they must cure it", range(0, 301, 10)),
    Knob("learns", "Learns", tip="What does not learn stands still at its random start"),
    Knob("num_entries", "Entries N", "", "How many entries the phone book has", (250, 500, 1000, 2000, 4000, 8000)),
    Knob("domains", "Text", tip="Train on {} too; a change starts afresh"),
    Knob("remedies", "Tiles", tip="Show the tile: {}"),
    # these change nothing
    Knob("token", "Token", tip="Whose routing is read below; or click a point", stops=range(32)),
    Knob("mute", "Mute", tip="Switch one expert off, to see what is lost without it"),
    Knob("layer", "Layer", tip="Which of the layers with experts is shown; or click its row"),
    Knob("x_axis", "Loss against", tip="The horizontal axis of the loss curves"),
    Knob("highlight", "Highlight", tip="The tile that is read below; or click on it"),
    Knob("curve", "Curves of", tip="What the panel at the top left shows over the steps"),
    # of a whole model, for the calculators
    Knob("shared_experts", "Shared experts", tip="Experts in each layer that every token uses", stops=range(9)),
    Knob("d_model", "Width of a token D", tip="Numbers that stand for one token", stops=range(128, 16385, 128)),
    Knob("num_layers", "Layers", tip="Blocks of attention and experts, one after the other", stops=range(1, 129)),
    Knob("num_kv_heads", "Key/value heads", tip="Fewer than the query heads: several of those share one"),
    Knob("vocab_size", "Vocabulary", "tokens", "Tokens that the model knows", range(1024, 262145, 64)),
    Knob("context_length", "Context", "tokens", "Tokens that the attention looks back on, and the KV cache holds",
         (0, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)),
    Knob("batch_size", "Batch B", "tokens", "Sequences that are written at once: one token of each",
         tuple(2**n for n in range(13))),
    Knob("published", "Model", tip="A published model, or what the sliders say"),
    Knob("config_file", "or its config.json", tip="The path of a model's config.json: it is counted by its own class"),
    Knob("machine", "Machine", tip="On which the model runs; the figures are its maker's"),
    Knob("weights", "Weights", tip="The type in which the weights are stored"),
    Knob("dense_width", "Equally good", "×",
         "An assumption: how many times as wide as the active part a dense FFN must be to be as good. Lesson 08 "
         "measures 2.7 for 2 of 16 experts and 3.9 for 2 of 32: about the root of E / K", Reach(1, 16, 0.1)),
    # of many machines
    Knob("devices", "Devices", tip="How many work on one model", stops=tuple(2**n for n in range(15))),
    Knob("expert_parallel", "Expert parallel", "devices", "Devices that share the experts of a layer"),
    Knob("pipeline_parallel", "Pipeline", "stages", "Groups of devices with some of the layers each", (1, 2, 4, 8, 16)),
    Knob("node_limit", "Nodes of a token", "", "A token goes once to each of at most so many nodes; off: every copy by "
         "itself", (0.0, 1, 2, 4, 8)),
    Knob("imbalance", "Imbalance", "×", "Rows of the busiest device over the mean: all others wait", Reach(1, 8, 0.1)),
    Knob("overlap", "Overlap", "", "Share of the exchange that passes beside the arithmetic", Reach(0, 1, 0.05)),
)  # fmt: skip
KNOBS = {knob.name: knob for knob in ROWS}
# those of training: they are applied to a run, between any two steps
TRAINING = {n: knob for n, knob in KNOBS.items() if n == "lr" or knob.attribute or knob.loss or knob.update}
# a frozen dataclass with a field for each of them, at `off`: what a setting or preset inherits from
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
