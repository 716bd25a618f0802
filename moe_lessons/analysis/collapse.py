"""Who learns while experts starve: the gradients of the experts and the router, and what a head start is worth."""

import copy
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_lessons.nn import FeedForward, seeded
from moe_lessons.support.errors import check_choice
from moe_lessons.training import PlaneSetting, Record, Run, plane_model

NUM_POINTS = 2048  # that a push is summed over
# what learns, and the part of the block that stands still meanwhile
LEARNS = {"all": None, "experts only": "router", "router only": "experts"}


class WatchedRun(Run):
    """Is a `Run` of a `PlaneClassifier` that also keeps, for each step (E,), the norms of the gradients.

    expert_gradients: of each expert's weights. router_gradients: of its row of the router. 0 for what stands still.
    """

    has_checkpoints = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.expert_gradients: list[np.ndarray] = []
        self.router_gradients: list[np.ndarray] = []

    def step(self) -> Record:
        record = super().step()
        block = self.model.block
        self.expert_gradients.append(gradient_norms(block.experts.parameters()))
        self.router_gradients.append(gradient_norms([block.router.weight]))
        return record

    def take_back(self) -> None:
        super().take_back()
        self.expert_gradients.pop()
        self.router_gradients.pop()


def watched_run(setting: PlaneSetting, seed: int = 0, learns: str = "all", block=None) -> WatchedRun:
    """Make the mixture of `training.plane_runs`, watched. `learns`: a name of `LEARNS`; the other part stands still."""
    still = LEARNS[check_choice("learns", learns, LEARNS)]
    model, task = plane_model(setting, seed, block)
    if still:
        getattr(model.block, still).requires_grad_(False)
    run = WatchedRun(model, task, lr=setting.lr, seed=seed)
    run.knobs.take(setting)
    return run


def gradient_norms(weights: Iterable[Tensor]) -> np.ndarray:
    """Give the norm of each expert's gradient (E,). Each of the weights has the experts along its first dimension."""
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    return sum(gradient.flatten(1).square().sum(dim=1) for gradient in gradients).sqrt().cpu().numpy()


class Pushes(NamedTuple):
    """Says how the task pulls at the score of each expert (E,): minus the gradient of the loss, summed over tokens."""

    own: np.ndarray  # by the tokens that the expert serves; above 0: up
    others: np.ndarray  # by all the others


def score_pushes(run: Run) -> Pushes:
    """Say where one step on held-out points would push the router's scores. Its noise is the same each time."""
    x, y = run.task.batch(NUM_POINTS, torch.Generator().manual_seed(run.seed + 1_000_003))
    with seeded(run.seed + 1_000_005):
        logits, (routing,) = run.model(x.to(run.device))
    loss = F.cross_entropy(logits, y.to(run.device))
    (gradient,) = torch.autograd.grad(loss, routing.router_logits)  # (T, E)
    is_own = torch.zeros_like(gradient)
    is_own[routing.token_idx, routing.expert_idx] = 1  # (T, E)
    own, others = -(gradient * is_own).sum(dim=0), -(gradient * (1 - is_own)).sum(dim=0)
    return Pushes(own.cpu().numpy(), others.cpu().numpy())


def practise(run: Run, expert: int, steps: int = 20) -> None:
    """Give one expert of a run a head start: it alone trains for `steps` steps, on points from everywhere.

    It works as the only expert, with weight 1, on other batches than the run will see; all else stands still.
    """
    experts = run.model.block.experts
    if expert not in range(experts.num_experts):
        raise ValueError(f"expert must be between 0 and {experts.num_experts - 1}, got {expert!r}")
    alone = copy.deepcopy(run.model).requires_grad_(False)
    alone.block = FeedForward(experts.d_model, experts.d_ff, experts.activation)  # one expert alone is a dense FFN
    alone.block.load_state_dict({name: weight[expert] for name, weight in experts.state_dict().items()})
    training = Run(alone, run.task, lr=run.knobs.lr, seed=run.seed + 500_009)
    for _ in range(steps):
        training.step()
    with torch.no_grad():
        for name, weight in alone.block.named_parameters():
            getattr(experts, name)[expert] = weight


@torch.no_grad()
def make_alike(experts: nn.Module) -> None:
    """Make every expert a copy of expert 0."""
    for weight in experts.parameters():
        weight.copy_(weight[0].clone())
