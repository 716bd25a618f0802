"""Keeping the experts busy: losses and limits, all functions of a `Routing`."""

import math
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from moe_lessons.errors import check_number, check_positive_int, check_top_k
from moe_lessons.nn.routing import Routing


def load_balancing_loss(routing: Routing) -> Tensor:
    """The auxiliary loss of Switch Transformer (arXiv:2101.03961, eq. 4): E · Σ_e f_e · P_e, a scalar.

    f_e is the share of all assignments that the router wanted for expert e (dropped ones included), P_e the mean
    of its router probability. Gradients flow through P alone. It is 1 where either of the two is uniform, and E
    where K = 1 and all tokens go to one expert with probability 1. Zero for no tokens. Hugging Face's is K times
    this, which matters when you take over a coefficient.
    """
    if routing.num_tokens == 0:
        return routing.router_probs.sum()
    demand = routing.demand_per_expert.to(routing.router_probs.dtype)  # (E,)
    load_share = demand / demand.sum().clamp(min=1)  # f (E,)
    mean_prob = routing.router_probs.mean(dim=0)  # P (E,)
    return routing.num_experts * (load_share * mean_prob).sum()


def router_z_loss(routing: Routing) -> Tensor:
    """The z-loss of ST-MoE (arXiv:2202.08906, eq. 5): mean over tokens of logsumexp(logits)², a scalar.

    It keeps the logits small, so that the softmax stays exact in low precision. Zero for no tokens.
    """
    return routing.router_logits.logsumexp(dim=-1).square().sum() / max(routing.num_tokens, 1)


def expert_capacity(capacity_factor: float, top_k: int, num_tokens: int, num_experts: int) -> int:
    """How many assignments an expert may carry out: C = ⌈capacity_factor · K · T / E⌉ (arXiv:2101.03961, eq. 3).

    A capacity_factor of 1 is just enough when all experts are equally busy.
    """
    check_number("capacity_factor", capacity_factor, above=True)
    check_positive_int("num_experts", num_experts)
    check_top_k(top_k, num_experts)
    exact = Fraction(str(capacity_factor))  # in floating point 1.1 · 2 · 50 / 10 is a little over 11
    return math.ceil(exact * top_k * num_tokens / num_experts)


def apply_capacity(routing: Routing, capacity: int) -> Routing:
    """Give each expert at most `capacity` (C) assignments; those beyond it are dropped, and counted.

    Places are taken in the order of the assignments: all first choices before any second choice, and within a
    choice in the order of the tokens (GShard, arXiv:2006.16668). A dropped assignment contributes nothing to the
    output. The weights that remain are not renormalised.
    """
    check_positive_int("capacity", capacity)
    order = routing.expert_idx.argsort(stable=True)  # (A,) grouped by expert, priority kept within each
    counts = routing.tokens_per_expert  # (E,)
    starts = counts.cumsum(0) - counts  # (E,) where each expert's group begins
    by_expert = routing.expert_idx[order]  # (A,)
    place = torch.arange(len(order), device=order.device) - starts[by_expert]  # (A,) 0 is first in line
    kept = order[place < capacity].sort().values
    return replace(
        routing,
        token_idx=routing.token_idx[kept],
        expert_idx=routing.expert_idx[kept],
        weight=routing.weight[kept],
        dropped_per_expert=routing.dropped_per_expert + (counts - capacity).clamp(min=0),
    )
