"""Keeping the experts busy, by the tokens of all ranks: what `nn.balancing` does in one process.

All ranks of the group call these, each with the routing of its own tokens.
"""

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe_lessons.nn import MoE, Routing, expert_capacity, update_expert_bias
from moe_lessons.nn.balancing import rank_within


def global_load_balancing_loss(routing: Routing, group=None) -> Tensor:
    """This rank's part of `load_balancing_loss` over all ranks' tokens: its mean over the ranks is that loss.

    Only the demand f is summed over the ranks. It has no gradient, so that nothing differentiable travels.
    """
    counts = torch.cat([routing.demand_per_expert, routing.token_idx.new_tensor([routing.num_tokens])])  # (E + 1,)
    dist.all_reduce(counts, group=group)
    probs = routing.router_probs.to(torch.promote_types(routing.router_probs.dtype, torch.float32))  # (T, E)
    load_share = counts[:-1].to(probs.dtype) / counts[:-1].sum().clamp(min=1)  # f (E,)
    mean_prob = probs.sum(dim=0) * dist.get_world_size(group) / counts[-1].clamp(min=1)  # the mean of these is P (E,)
    return routing.num_experts * (load_share * mean_prob).sum()


def update_global_expert_bias(router: nn.Module, routing: Routing, rate: float = 1e-3, group=None) -> None:
    """`update_expert_bias` by the load of all ranks together, so that their biases stay equal."""
    demand = routing.demand_per_expert  # (E,)
    dist.all_reduce(demand, group=group)
    everyone = torch.arange(len(demand), device=demand.device).repeat_interleave(demand)
    none = everyone.new_zeros(0)
    update_expert_bias(router, replace(routing, expert_idx=everyone, dropped_expert_idx=none), rate)


def limit_globally(moe: MoE, routing: Routing, shape: tuple[int, ...], group=None) -> Routing:
    """What stands in the place of a block's own `limit`, as if the tokens of all ranks were in one process.

    They stand in order there, rank after rank, and C follows from the number of all.
    """
    if moe.capacity_factor is None:
        return routing
    K, E = moe.top_k, routing.num_experts
    queue = rank_within(routing.token_idx) * E + routing.expert_idx  # (A,) one for each choice and expert
    mine = torch.cat([torch.bincount(queue, minlength=K * E), queue.new_tensor([routing.num_tokens])])  # (K·E + 1,)
    counts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(counts, mine, group=group)
    counts = torch.stack(counts)  # (N, K·E + 1)
    capacity = expert_capacity(moe.capacity_factor, K, int(counts[:, -1].sum()), E)
    counts = counts[:, :-1].view(-1, K, E)
    total = counts.sum(dim=0)  # (K, E)
    before = total.cumsum(dim=0) - total + counts[: dist.get_rank(group)].sum(dim=0)  # earlier choices, earlier ranks
    kept = rank_within(queue) + before.flatten()[queue] < capacity  # (A,)
    return replace(
        routing,
        token_idx=routing.token_idx[kept],
        expert_idx=routing.expert_idx[kept],
        weight=routing.weight[kept],
        dropped_token_idx=routing.token_idx[~kept],
        dropped_expert_idx=routing.expert_idx[~kept],
    )
