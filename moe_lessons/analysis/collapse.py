"""Gradients while experts collapse, the value of a head start, and balancing methods side by side."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_lessons.nn import FeedForward, Routing, TopKRouter
from moe_lessons.support.errors import check_choice, check_whole
from moe_lessons.training import BALANCING_METHODS, PlaneSetting, Run, SeedBand, balancing_setting, is_dead, plane_model
from moe_lessons.training.knobs import KNOBS

NUM_POINTS = 2048  # whose gradients are taken
PRACTICE = 500_009  # a part of its seed: the run itself sees other points
# what learns, and the parts of the model that stand still meanwhile
LEARNS = {
    "all": (),
    "router only": ("block.experts", "embed", "head"),
    "all but the router": ("block.router",),
}
GRADIENTS = "both terms", "own tokens", "others only"  # whose tokens a logit learns from
READ_POINTS = 512  # held out, for each seed: what a reading is taken on
RECENT = 20  # steps over which what a step shows is averaged: one batch alone flickers

# what the outputs of the chosen experts are multiplied by: K, and whether their probabilities are divided by their sum
WEIGHTS = {"K = 1, p": (1, False), "K = 1, p / sum": (1, True), "K = 2, p": (2, False), "K = 2, p / sum": (2, True)}
# the balancing methods that have a strength, and the knob that sets it
STRENGTHS = {name: knob for name, fields in BALANCING_METHODS.items() for knob in fields if knob in KNOBS}


class WatchedRun(Run):
    """A `Run` of a `PlaneClassifier` that keeps, for each step, the norm of the gradient of each expert's weights (E,)
    in `expert_gradients`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._norms: list[np.ndarray] = []  # one more than records after a step that was taken back
        self.after_backward.append(keep_norms)

    expert_gradients = property(lambda self: self._norms[: len(self.records)])


def keep_norms(run: WatchedRun, routings: list) -> None:
    """Keep the norms of the gradients of the step that is computed."""
    del run._norms[len(run.records) :]
    norms = gradient_norms(run.model.block.experts.parameters())
    run._norms.append(norms.cpu().numpy().astype(float))


def watched_run(
    setting: PlaneSetting, seed: int = 0, learns: str = "all", gradient: str = "both terms", device="cpu"
) -> WatchedRun:
    """Make the mixture of `training.plane_runs`, watched. learns, gradient: as in `let_learn` and `cut_gradient`."""
    model, task = plane_model(setting, seed, device=device)
    let_learn(model, learns)
    cut_gradient(model, gradient)
    run = WatchedRun(model, task, lr=setting.lr, seed=seed)
    run.knobs.take(setting)
    return run


def let_learn(model: nn.Module, learns: str) -> None:
    """Freeze what does not learn of a `PlaneClassifier`, or of a band's model. `learns`: a name of `LEARNS`."""
    for part in LEARNS[check_choice("learns", learns, LEARNS)]:
        model.get_submodule(part).requires_grad_(False)


def cut_gradient(model: nn.Module, gradient: str) -> None:
    """Leave to each router logit of a `PlaneClassifier`, or of a band's model, its gradient from the tokens that chose
    the expert ('own tokens'), from all others ('others only'), or from both. `gradient`: of `GRADIENTS`."""
    check_choice("gradient", gradient, GRADIENTS)
    routers = [module for module in model.modules() if isinstance(module, TopKRouter)]
    for router in routers if gradient != "both terms" else ():
        router.register_forward_hook(partial(_cut, is_own=gradient == "own tokens"))


def _cut(router: TopKRouter, args: tuple, routing: Routing, is_own: bool) -> None:
    """Have the gradient on the logits of this forward pass cut, once it is there."""
    keep = torch.full_like(routing.router_logits, float(not is_own))  # (T, E)
    keep[routing.token_idx, routing.expert_idx] = float(is_own)
    if routing.router_logits.requires_grad:
        routing.router_logits.register_hook(lambda gradient: gradient * keep)


def gradient_norms(weights: Iterable[Tensor]) -> Tensor:
    """Give the norm of each expert's gradient (E,). Each of the weights has the experts along its first dimension."""
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    return sum(gradient.flatten(1).square().sum(dim=1) for gradient in gradients).sqrt()


def weight_gradients(run: Run) -> tuple[Tensor, Tensor, Tensor]:
    """Return for held-out points, where K is 1: probs (T, E), the chosen expert (T,), and the gradient of the task's
    loss with respect to the routing weight of the chosen expert (T,)."""
    x, y = run.held_out(NUM_POINTS)
    logits, (routing,) = run.model(x)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y), routing.weight)
    return routing.router_probs.detach(), routing.expert_idx, gradient


def practise(run: Run, expert: int, steps: int = 20) -> None:
    """Give one expert of a run a head start: it alone trains, with weight 1, on points that the run will not see."""
    experts = run.model.block.experts
    check_whole("expert", expert, 0, experts.num_experts - 1, f"between 0 and {experts.num_experts - 1}")
    alone = copy.deepcopy(run.model).requires_grad_(False)
    alone.block = FeedForward(experts.d_model, experts.d_ff, experts.activation)  # one expert alone is a dense FFN
    alone.block.to(run.device).load_state_dict({name: weight[expert] for name, weight in experts.state_dict().items()})
    training = Run(alone, run.task, lr=run.knobs.lr, seed=run.seed + PRACTICE)
    for _ in range(steps):
        training.step()
    with torch.no_grad():
        for name, weight in alone.block.named_parameters():
            getattr(experts, name)[expert] = weight


def practised_band(setting: PlaneSetting, seed: int = 0, steps: int = 20) -> SeedBand:
    """Make a band of one run E + 1 times: in the first nobody practises, in the next expert 0, and so on (`practise`).
    All have the same data."""
    band = SeedBand(setting, [seed] * (setting.num_experts + 1))
    weights = dict(band.model.block.experts.named_parameters())  # each ((E + 1) · E, ...)
    for expert in range(setting.num_experts):
        run = watched_run(setting, seed)
        practise(run, expert, steps)
        with torch.no_grad():
            for name, parameter in run.model.block.experts.named_parameters():  # each (E, ...)
                weights[name].view(-1, *parameter.shape)[expert + 1].copy_(parameter)
    return band


def band_of(setting: PlaneSetting, divided: bool, seeds: Sequence[int], device="cpu") -> SeedBand:
    """Make a band of top-k routers whose K probabilities are `divided` by their sum, or not (`norm_topk_prob`).

    p / p is 1 whatever the scores, so with K = 1 the gradient of such a router is 0. It stands still here: else Adam
    would make steps of the rounding errors."""
    band = SeedBand(setting, seeds, device)
    for router in band.model.block.router.routers:
        router.norm_topk_prob = divided
        router.requires_grad_(not divided or setting.top_k > 1)
    return band


class Reading(NamedTuple):
    """The reading of a band at a step, on held-out points without noise: a value for each seed (S,)."""

    step: int
    dead: np.ndarray
    max_over_mean: np.ndarray  # the load of the busiest expert over the mean load: 1 is even
    accuracy: np.ndarray


@dataclass
class Tile:
    """A balancing method, or several together, and the band that trains with it.

    Until its method starts it has not branched: its band is that of the plain collapse, which all such tiles share."""

    setting: PlaneSetting
    band: SeedBand
    has_branched: bool = False
    changes: list[int] = field(default_factory=list)  # the steps after which a knob was turned
    readings: list[Reading] = field(default_factory=list)
    turned: bool = False  # whether a knob was turned since the last reading
    clean: np.ndarray | None = None  # (S, E) load shares of the last reading

    @property
    def step(self) -> int:
        return len(self.band.records)

    @property
    def is_noisy(self) -> bool:
        disturbing = (getattr(self.setting, name) for name, knob in KNOBS.items() if knob.disturbs)
        return self.setting.router == "learned noise" or any(disturbing)

    def branch(self) -> "Tile":
        """Make the tile whose method starts here."""
        changes = [*self.changes, self.step] if self.step > 0 else []
        band = self.band.branch(self.setting)
        return replace(self, band=band, has_branched=True, readings=list(self.readings), changes=changes)

    def turn(self, setting: PlaneSetting) -> None:
        """Go on with other knobs, if its method has started."""
        if self.has_branched and setting != self.setting:
            self.band.knobs.take(setting)
            self.turned = True
            if self.step not in (0, *self.changes[-1:]):
                self.changes.append(self.step)
        self.setting = setting

    def read(self) -> None:
        """Take a reading, unless the last one still holds."""
        if self.readings and self.readings[-1].step == self.step:
            if not self.turned:
                return
            self.readings.pop()
        read = self.band.evaluate(READ_POINTS)
        self.turned = False
        self.clean = read["loads"]
        dead = is_dead(self.clean * self.setting.top_k).sum(axis=1)
        max_over_mean = self.clean.max(axis=1) * self.clean.shape[1]
        self.readings.append(Reading(self.step, dead, max_over_mean, read["accuracies"]))

    def recent(self, name: str) -> float:
        """Give the mean over the last steps and all seeds of something in the band's records."""
        return float(np.mean([getattr(record, name) for record in self.band.records[-RECENT:]]))


def tile_setting(name: str, base: PlaneSetting, values: dict[str, Any]) -> PlaneSetting:
    """Make what a tile trains with: methods (joined by ' + ') on `base`, as strong as they or else `values` say."""
    parts = [split_strength(part) for part in name.split(" + ")]
    methods = [check_choice("method", method, BALANCING_METHODS) for method, _ in parts]
    strengths = {STRENGTHS[method]: strength for method, strength in parts if method in STRENGTHS}
    strengths = {knob: values[knob] if strength is None else strength for knob, strength in strengths.items()}
    if len(set(methods)) < len(methods) or ("no balancing" in methods and len(methods) > 1):
        raise ValueError(f"methods in one tile must be different ones, got {name!r}")
    try:
        balancing_setting(*methods)
    except ValueError as error:
        raise ValueError(f"{' and '.join(methods)} do not go together: {error}") from None
    return balancing_setting(*methods, base=base, **strengths)


def split_strength(part: str) -> tuple[str, float | None]:
    """Split 'jitter 0.2' into ('jitter', 0.2), and 'jitter' into ('jitter', None)."""
    method, _, number = part.rpartition(" ")
    try:
        return (method, float(number)) if method in STRENGTHS else (part, None)
    except ValueError:
        return part, None
