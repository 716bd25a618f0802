"""A band: runs of one setting from several seeds, trained as one batched model, so that a spread costs little.

S classifiers become one whose mixture has S·E experts, in islands: a token of seed s can only choose the E experts of
island s. The islands share nothing, so that each learns what it would learn alone."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from moe_lessons.nn import MoE, Routing, seeded
from moe_lessons.nn.routing import count_each
from moe_lessons.support.errors import check_device, check_seed
from moe_lessons.tasks import PlaneClassifier
from moe_lessons.training.record import Record, gathered, is_dead
from moe_lessons.training.run import Run
from moe_lessons.training.settings import PlaneSetting, plane_model


@dataclass(frozen=True, kw_only=True)
class BandRecord(Record):
    """The record of one step of S seeds: means over the seeds (but `load`: of the first), and a value for each."""

    losses: np.ndarray  # (S,)
    accuracies: np.ndarray  # (S,)
    loads: np.ndarray  # (S, E): the shares of the assignments that were wanted
    dead: np.ndarray  # (S,) dead experts
    dropped: np.ndarray  # (S,): the share of the assignments that was dropped
    unserved: np.ndarray  # (S,): the share of the tokens that no expert served


class SeedBand(Run):
    """S plane classifiers of one setting as one batched model, with the numbers of `plane_runs(setting, seed)
    ["MoE"]` for each of `seeds`, but that noise is drawn for all together."""

    def __init__(self, setting: PlaneSetting, seeds: Iterable[int] = range(5), device: str | torch.device = "cpu"):
        self.setting, self.seeds = setting, [check_seed(seed) for seed in seeds]
        if not self.seeds:
            raise ValueError(f"seeds must be one or more whole numbers from 0 up, got {seeds!r}")
        models, tasks = zip(*(plane_model(setting, seed) for seed in self.seeds), strict=True)
        band = BandClassifier(models)
        self.tasks = tasks
        super().__init__(band.to(check_device(device)), tasks[0], lr=setting.lr, seed=self.seeds[0])
        self.num_experts = [setting.num_experts]
        for group in self.optimizer.param_groups:
            group["eps"] /= len(self.seeds)  # the loss is a mean over seeds: each gradient is S times smaller
        self.knobs.take(setting)

    def evaluate(self, num: int = 1024) -> dict:
        """Measure loss and accuracy on `num` held-out points of each seed, without noise: means, and the arrays."""
        x, y = self.held_out(num)
        losses, correct, routings = self.measure(x, y)
        arrays = arrays_of(*gathered(self.measures(losses, correct, y, routings)))
        return {"loss": arrays["losses"].mean().item(), "accuracy": arrays["accuracies"].mean().item()} | arrays

    def clean_loads(self, num: int = 1024) -> np.ndarray:
        """Measure the load shares (S, E) on `num` held-out points of each seed, without noise."""
        return self.evaluate(num)["loads"]

    def branch(self, setting: PlaneSetting) -> "SeedBand":
        """Make another band that goes on from here, under other knobs or another router, which starts afresh."""
        branch = SeedBand(setting, self.seeds, self.device)
        branch.model.load_state_dict(self.model.state_dict(), strict=False)
        old = dict(self.model.named_parameters())
        for name, parameter in branch.model.named_parameters():
            if old.get(name) in self.optimizer.state:
                branch.optimizer.state[parameter] = copy.deepcopy(self.optimizer.state[old[name]])
        for generator, source in zip(branch.generators, self.generators, strict=True):
            generator.set_state(source.get_state())
        branch.records = list(self.records)
        branch.before = branch.snapshot()
        return branch

    def make_generators(self, more: int = 0) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed + more) for seed in self.seeds]

    def draw(self, num: int, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        x, y = zip(*(task.batch(num, generator) for task, generator in zip(self.tasks, generators, strict=True)))
        return torch.stack(x).to(self.device), torch.stack(y).to(self.device)  # (S, T, 2), (S, T)

    def measures(self, losses: Tensor, correct: Tensor, y: Tensor, routings: list[Routing]) -> dict[str, Tensor]:
        """Measure what a `BandRecord` has for each seed: losses and correct (S, T), one routing for all seeds."""
        (routing,), (num_seeds, num_tokens) = routings, losses.shape
        demand, dropped = (each.view(num_seeds, -1) for each in (routing.demand_per_expert, routing.dropped_per_expert))
        num_serving = count_each(routing.token_idx, losses.numel()).view(losses.shape)  # (S, T) experts
        return {
            "losses": losses.mean(dim=1),
            "accuracies": correct.float().mean(dim=1),
            "loads": demand / demand.sum(dim=1, keepdim=True),
            "dead": is_dead(demand, num_tokens).sum(dim=1),
            "dropped": dropped.sum(dim=1) / demand.sum(dim=1),
            "unserved": (num_serving == 0).float().mean(dim=1),
        }

    def make_record(self, numbers: dict[str, np.ndarray], routings: list[Routing], ms_per_step: float) -> BandRecord:
        arrays = arrays_of(numbers)
        means = {"loss": "losses", "accuracy": "accuracies", "dead": "dead"}
        means = {name: arrays[array].mean() for name, array in means.items()} | {"load 0": arrays["loads"][0]}
        record = vars(super().make_record(numbers | means, routings, ms_per_step))
        means = {"dead_experts": float(means["dead"]), "dropped_share": float(arrays["dropped"].mean())}
        return BandRecord(**record | means | arrays)


ARRAYS = ("losses", "accuracies", "loads", "dead", "dropped", "unserved")


def arrays_of(numbers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pick the arrays of a `BandRecord`."""
    return {name: numbers[name] for name in ARRAYS}


class BandClassifier(nn.Module):
    """S `PlaneClassifier`s as one: x (S, T, 2) -> logits (S, T, num_classes), and one routing in S islands."""

    def __init__(self, models: list[PlaneClassifier]):
        super().__init__()
        first = models[0].block
        moes = [model.block for model in models]
        self.embed = Linears([model.embed for model in models])
        self.head = Linears([model.head for model in models])
        router = IslandRouter(moe.router for moe in moes)
        with seeded(0):
            sizes = first.d_model, first.d_ff, router.num_experts, first.top_k
            self.block = MoE(*sizes, router=router, dispatch="padded")
        with torch.no_grad():
            for name, weight in self.block.experts.named_parameters():
                weight.copy_(torch.cat([moe.experts.get_parameter(name) for moe in moes]))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Routing]]:
        hidden = self.embed(x * PlaneClassifier.input_scale)  # (S, T, D)
        y, routing = self.block(hidden)
        return self.head(hidden + y), [routing]


class Linears(nn.Module):
    """S linear layers as one: x (S, T, in) -> (S, T, out)."""

    def __init__(self, layers: list[nn.Linear]):
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))  # (S, out, in)
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))  # (S, out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias[:, None], x, self.weight.mT)


class IslandRouter(nn.Module):
    """S routers side by side, each for its own tokens and experts: x (S·T, D) -> `Routing` over S·E experts.

    Token t of router s is token s·T + t, its expert e is expert s·E + e. The logits of other islands are left out:
    router_logits is (S·T, E). All have as many tokens: capacity and load are right for each, and losses are means."""

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
                router.expert_bias = bias  # a view: what moves the whole moves the parts
        routings = [router(tokens) for router, tokens in zip(self.routers, x.chunk(num), strict=True)]
        num_tokens, num_experts = routings[0].router_probs.shape
        return Routing.all_kept(
            router_logits=torch.cat([routing.router_logits for routing in routings]),
            router_probs=torch.block_diag(*(routing.router_probs for routing in routings)),
            token_idx=torch.cat([routing.token_idx + num_tokens * s for s, routing in enumerate(routings)]),
            expert_idx=torch.cat([routing.expert_idx + num_experts * s for s, routing in enumerate(routings)]),
            weight=torch.cat([routing.weight for routing in routings]),
        )
