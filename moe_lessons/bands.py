"""A band: runs of one setting from several seeds, trained as one batched model, so that a spread costs little.

S classifiers become one whose mixture has S·E experts, in islands: a token of seed s can only choose the E experts of
island s. The islands share nothing, so that each learns what it would learn alone.
"""

import copy
from collections.abc import Iterable
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from moe_lessons.nn import MoE, Routing, seeded
from moe_lessons.tasks import PlaneClassifier, PlaneSetting, PlaneTask, plane_model
from moe_lessons.training import DEAD_SHARE, Run


class BandRecord(NamedTuple):
    """What one step of S seeds showed: the fields of `Record`, as means over the seeds (but `load`: of the first
    seed), then arrays with a value for each seed."""

    step: int
    loss: float
    accuracy: float
    load_balancing_loss: float
    router_z_loss: float
    load: list[list[float]]
    dead_experts: float
    dropped_share: float
    lr: float
    ms_per_step: float
    losses: np.ndarray  # (S,)
    accuracies: np.ndarray  # (S,)
    loads: np.ndarray  # (S, E) shares of the assignments that were wanted; each row sums to 1
    dead: np.ndarray  # (S,) dead experts
    dropped: np.ndarray  # (S,) share of the assignments that were dropped
    unserved: np.ndarray  # (S,) share of the tokens for which no expert worked


class SeedBand(Run):
    """Trains S plane classifiers of one setting as one batched model: the same numbers as S separate runs.

    As `training.plane_runs(setting, seed)["MoE"]` for each of `seeds`: task, weights and data of a seed are the same.
    Noise is drawn for all seeds together: as likely, not the same. It is a `Run`, and can be used wherever one can.

    >>> band = SeedBand(PlaneSetting(), seeds=range(3))
    >>> band.step().losses.shape, band.clean_loads().shape
    ((3,), (3, 8))
    """

    def __init__(self, setting: PlaneSetting, seeds: Iterable[int] = range(5), *, threads: int = 1, device=None):
        self.setting, self.seeds = setting, list(seeds) if isinstance(seeds, Iterable) else []
        if not self.seeds or not all(isinstance(seed, Integral) and seed >= 0 for seed in self.seeds):
            raise ValueError(f"seeds must be one or more whole numbers from 0 up, got {seeds!r}")
        self.seeds = [int(seed) for seed in self.seeds]  # of NumPy, too
        models, tasks = zip(*(plane_model(setting, seed) for seed in self.seeds), strict=True)
        band, task = BandClassifier(models), BandTask(tasks)
        super().__init__(band, task, lr=setting.lr, seed=self.seeds[0], device=device, threads=threads)
        self.num_experts = [setting.num_experts]
        for group in self.optimizer.param_groups:
            group["eps"] /= len(self.seeds)  # the loss is a mean over seeds: each gradient is S times smaller
        self.knobs.take(setting)

    def evaluate(self, num: int = 1024) -> dict:
        """Loss and accuracy on `num` held-out points of each seed, without noise: their means, and arrays 'losses',
        'accuracies' (S,) and 'loads' (S, E): the load shares."""
        losses, right, (routing,) = self._on_held_out(num)
        means = {"loss": losses.mean().item(), "accuracy": right.float().mean().item()}
        arrays = {"losses": _mean_by_seed(losses), "accuracies": _mean_by_seed(right), "loads": self._loads(routing)}
        return means | arrays

    def clean_loads(self, num: int = 1024) -> np.ndarray:
        """(S, E): the load shares on `num` held-out points of each seed, in eval mode: no noise."""
        return self.evaluate(num)["loads"]

    def branch(self, setting: PlaneSetting) -> "SeedBand":
        """Another band that goes on from here under another setting: these weights, records and averages of the
        optimizer, and the data that would come next. A part that only the new setting has starts afresh."""
        for name in ("task", "num_experts", "d_ff"):
            now, asked = getattr(self.setting, name), getattr(setting, name)
            if asked != now:
                raise ValueError(f"{name} must stay {now!r} in a branch, got {asked!r}")
        branch = SeedBand(setting, self.seeds, threads=self.threads, device=self.device)
        branch.model.load_state_dict(self.model.state_dict(), strict=False)
        old = dict(self.model.named_parameters())
        for name, parameter in branch.model.named_parameters():
            if old.get(name) in self.optimizer.state:
                branch.optimizer.state[parameter] = copy.deepcopy(self.optimizer.state[old[name]])
        for mine, theirs in zip(branch._data, self._data, strict=True):
            mine.set_state(theirs.get_state())
        branch._random_states = list(self._random_states)
        branch.records = list(self.records)
        branch._remember()
        return branch

    def _generator(self, purpose: int = 0) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed + purpose) for seed in self.seeds]

    def _loads(self, routing: Routing) -> np.ndarray:
        demand = routing.demand_per_expert.view(len(self.seeds), -1)  # (S, E)
        return (demand / demand.sum(dim=1, keepdim=True)).cpu().numpy()

    def _record(self, numbers: dict, losses: Tensor, right: Tensor, routings: list[Routing]) -> BandRecord:
        (routing,) = routings
        num_seeds, num_tokens = losses.shape
        loads, demand = self._loads(routing), routing.demand_per_expert.view(num_seeds, -1)  # (S, E)
        dead = (demand < DEAD_SHARE * num_tokens).sum(dim=1)
        dropped = routing.dropped_per_expert.view(num_seeds, -1).sum(dim=1) / demand.sum(dim=1)
        helpers = torch.bincount(routing.token_idx, minlength=losses.numel()).view(losses.shape)  # (S, T)
        return BandRecord(
            **numbers,
            load=[loads[0].tolist()],
            dead_experts=dead.float().mean().item(),
            dropped_share=dropped.mean().item(),
            ms_per_step=0.0,
            losses=_mean_by_seed(losses),
            accuracies=_mean_by_seed(right),
            loads=loads,
            dead=dead.cpu().numpy(),
            dropped=dropped.cpu().numpy(),
            unserved=_mean_by_seed(helpers == 0),
        )


class BandTask:
    """The tasks of S seeds: batch(num, S generators) -> x (S, T, 2), y (S, T)."""

    def __init__(self, tasks: Iterable[PlaneTask]):
        self.tasks = list(tasks)
        self.name = self.tasks[0].name

    def batch(self, num_points: int, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        """`num_points` (T) points of each task, and their classes."""
        drawn = [task.batch(num_points, generator) for task, generator in zip(self.tasks, generators, strict=True)]
        x, y = zip(*drawn, strict=True)
        return torch.stack(x), torch.stack(y)


class BandClassifier(nn.Module):
    """S `PlaneClassifier`s as one: x (S, T, 2) -> logits (S, T, num_classes), and one routing in S islands."""

    def __init__(self, models: Iterable[PlaneClassifier]):
        super().__init__()
        models = list(models)
        first, moes = models[0].block, [model.block for model in models]
        self.input_scale = models[0].input_scale
        self.embed = Linears(model.embed for model in models)
        self.head = Linears(model.head for model in models)
        router = IslandRouter(moe.router for moe in moes)
        with seeded(0):
            self.block = MoE(
                first.d_model, first.d_ff, router.num_experts, first.top_k,
                router=router, capacity_priority=first.capacity_priority, dispatch="padded",
            )  # fmt: skip
        with torch.no_grad():
            for name, weight in self.block.experts.named_parameters():
                weight.copy_(torch.cat([moe.experts.get_parameter(name) for moe in moes]))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Routing]]:
        hidden = self.embed(x * self.input_scale)  # (S, T, D)
        y, routing = self.block(hidden)
        return self.head(hidden + y), [routing]


class Linears(nn.Module):
    """S linear layers as one: x (S, T, in) -> (S, T, out)."""

    def __init__(self, layers: Iterable[nn.Linear]):
        super().__init__()
        weights, biases = zip(*((layer.weight, layer.bias) for layer in layers), strict=True)
        self.weight = nn.Parameter(torch.stack(weights).detach())  # (S, out, in)
        self.bias = nn.Parameter(torch.stack(biases).detach())  # (S, out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias[:, None], x, self.weight.mT)


class IslandRouter(nn.Module):
    """S routers side by side, each for its own tokens and experts: x (S·T, D) -> `Routing` over S·E experts.

    Token t of router s is token s·T + t, its expert e is expert s·E + e. To the experts of other islands a token has
    probability 0; their logits would be -inf and are left out: router_logits is (S·T, E). All islands have as many
    tokens, so what is computed from the whole routing is right for each: the capacity C, the even load that
    `update_expert_bias` aims at, and the balancing losses, which are the means of those of the islands.
    """

    def __init__(self, routers: Iterable[nn.Module]):
        super().__init__()
        self.routers = nn.ModuleList(routers)
        self.d_model, self.top_k = self.routers[0].d_model, self.routers[0].top_k
        self.num_experts = sum(router.num_experts for router in self.routers)
        if hasattr(self.routers[0], "expert_bias"):
            self.register_buffer("expert_bias", torch.cat([router.expert_bias for router in self.routers]))

    def forward(self, x: Tensor) -> Routing:
        num = len(self.routers)
        if hasattr(self, "expert_bias"):
            for router, bias in zip(self.routers, self.expert_bias.chunk(num), strict=True):
                router.expert_bias = bias  # a view: whoever moves the whole moves the parts
        return side_by_side([router(tokens) for router, tokens in zip(self.routers, x.chunk(num), strict=True)])


def side_by_side(routings: list[Routing]) -> Routing:
    """One routing of S·T tokens and S·E experts, made of S routings of T tokens and E experts."""
    num_tokens, num_experts = routings[0].router_probs.shape

    def joined(name: str, stride: int) -> Tensor:
        return torch.cat([getattr(routing, name) + stride * s for s, routing in enumerate(routings)])

    return Routing(
        router_logits=torch.cat([routing.router_logits for routing in routings]),
        router_probs=torch.block_diag(*(routing.router_probs for routing in routings)),
        token_idx=joined("token_idx", num_tokens),
        expert_idx=joined("expert_idx", num_experts),
        weight=torch.cat([routing.weight for routing in routings]),
        dropped_token_idx=joined("dropped_token_idx", num_tokens),
        dropped_expert_idx=joined("dropped_expert_idx", num_experts),
    )


def _mean_by_seed(values: Tensor) -> np.ndarray:
    """Values of each token (S, T) -> their means (S,)."""
    return values.float().mean(dim=1).cpu().numpy()
