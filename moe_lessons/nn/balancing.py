"""Keeping the experts busy: losses and limits, all functions of a `Routing`."""

import math
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from moe_lessons.nn.routing import Routing
from moe_lessons.support.errors import check_choice, check_number, check_positive_int

PRIORITIES = ("order", "weight")  # of the tokens where an expert is full


def load_balancing_loss(routing: Routing) -> Tensor:
    """The auxiliary loss of Switch Transformer (arXiv:2101.03961, eq. 4): E · Σ_e f_e · P_e, a scalar.

    f_e is the share of all assignments that the router wanted for expert e (dropped ones included), P_e the mean
    of its router probability. Gradients flow through P alone. It is 1 where either is uniform, and E where K = 1 and
    all tokens go to one expert with probability 1. Hugging Face's is K times this.

    Do not pool layers: two that collapsed differently would look balanced."""
    probs = routing.router_probs.to(torch.promote_types(routing.router_probs.dtype, torch.float32))  # (T, E)
    demand = routing.demand_per_expert.to(probs.dtype)  # (E,)
    load_share = demand / demand.sum().clamp(min=1)  # f (E,)
    mean_prob = probs.sum(dim=0) / max(routing.num_tokens, 1)  # P (E,)
    return routing.num_experts * (load_share * mean_prob).sum()


def router_z_loss(routing: Routing) -> Tensor:
    """The z-loss of ST-MoE (arXiv:2202.08906, eq. 5): mean over tokens of logsumexp(logits)², a scalar. It keeps the
    logits small, so that the softmax stays exact in low precision."""
    return routing.router_logits.logsumexp(dim=-1).square().sum() / max(routing.num_tokens, 1)


def expert_capacity(capacity_factor: float, top_k: int, num_tokens: int, num_experts: int) -> int:
    """Return how many assignments an expert may carry out: C = ⌈capacity_factor · K · T / E⌉.

    It is arXiv:2101.03961, eq. 3, for any K (there K = 1) and rounded up (which the equation leaves open)."""
    check_number("capacity_factor", capacity_factor, above=True)
    check_positive_int("num_experts", num_experts)
    exact = Fraction(str(capacity_factor))  # in floating point 1.1 · 2 · 50 / 10 is a little over 11
    return math.ceil(exact * top_k * num_tokens / num_experts)


def apply_capacity(routing: Routing, capacity: int, priority: str = "order") -> Routing:
    """Give each expert at most `capacity` (C) assignments; those beyond it are dropped, and kept on record.

    All first choices take their places before any second choice, and so on. Within a choice
    priority='order':  the tokens come as they stand (GShard, arXiv:2006.16668);
    priority='weight': the tokens of which the router is surest come first, by their largest probability
                       (batch-prioritised routing, V-MoE, arXiv:2106.05974, section 4).
    A dropped assignment contributes nothing to the output. The weights that remain are not renormalised.

    Who is served depends on the other tokens. So a token may come to depend on later ones: always by weight; in
    order where K > 1 (a later first choice goes before an earlier second one), and through C, which grows with T."""
    capacity = min(check_positive_int("capacity", capacity), max(len(routing.expert_idx), 1))  # may be over 64 bits
    check_choice("priority", priority, PRIORITIES)
    queue = torch.arange(len(routing.expert_idx), device=routing.expert_idx.device)  # (A,) who comes first
    if priority == "weight":
        sureness = routing.router_probs.amax(dim=1)[routing.token_idx]  # (A,)
        queue = sureness.argsort(descending=True, stable=True)
        choice = rank_within(routing.token_idx)  # (A,) 0 for a token's first choice
        queue = queue[choice[queue].argsort(stable=True)]
    kept = rank_within(routing.expert_idx[queue]) < capacity  # (A,) in the order of the queue
    is_dropped = torch.empty_like(kept).scatter(0, queue, ~kept)  # (A,) in the order of the assignments
    places, num_kept = is_dropped.byte().argsort(stable=True), int(kept.sum())  # the one wait for a GPU
    kept, dropped = places[:num_kept], places[num_kept:]
    return replace(
        routing,
        token_idx=routing.token_idx[kept],
        expert_idx=routing.expert_idx[kept],
        weight=routing.weight[kept],
        dropped_token_idx=torch.cat([routing.dropped_token_idx, routing.token_idx[dropped]]),
        dropped_expert_idx=torch.cat([routing.dropped_expert_idx, routing.expert_idx[dropped]]),
    )


def rank_within(group: Tensor) -> Tensor:
    """For each entry, how many earlier entries are of the same group: (A,) -> (A,).

    >>> rank_within(torch.tensor([3, 0, 3, 3, 0]))
    tensor([0, 0, 1, 2, 1])
    """
    by_group, order = group.sort(stable=True)  # the order is kept within each
    starts = torch.searchsorted(by_group, by_group)  # (A,) where the group of each begins
    return torch.empty_like(order).scatter(0, order, torch.arange(len(group), device=group.device) - starts)


@torch.no_grad()
def update_expert_bias(router: nn.Module, routing: Routing, rate: float = 1e-3) -> None:
    """Balance without a loss (DeepSeek-V3, arXiv:2412.19437, section 2.1.2; arXiv:2408.15664, algorithm 1).

    expert_bias += rate · sign(mean load - load): an expert that was wanted less than the mean becomes easier to
    choose, one that was wanted more harder. Call it once after each step, with the routing of that step. The bias
    selects but does not weigh, so it does not pull at the task's loss.

    router: one with an `expert_bias` (E,), such as `SigmoidRouter`, in float32 at least."""
    check_number("rate", rate)
    if not hasattr(router, "expert_bias"):
        raise ValueError(f"router must have an expert_bias, as SigmoidRouter has; got a {type(router).__name__}")
    load = routing.demand_per_expert  # (E,) whole numbers, so that an even load is even to the last one
    router.expert_bias.add_((load.sum() - len(load) * load).sign(), alpha=rate)  # E · (mean load - load)
