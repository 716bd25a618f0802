"""Expert parallelism: rank r of N holds experts r·E/N to (r+1)·E/N - 1 of every block, and the whole of all the rest.

Tokens travel to the ranks of their experts, and what comes out travels back (GShard, arXiv:2006.16668). To a
block that is one more way to run the experts: importing this adds 'exchange' to `DISPATCH`. Router, shared expert and
the products on each rank are those of `nn`."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe_lessons.nn import DISPATCH, Experts, MoE, Routing, choose_dispatch


class ExpertShard(Experts):
    """This rank's E/N experts of a block that has E."""


class _Exchange(torch.autograd.Function):
    """The first send[0] rows go to rank 0, the next send[1] to rank 1, …; gradients travel the same way back."""

    @staticmethod
    def forward(ctx, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        ctx.send, ctx.receive = send, receive
        out = rows.new_empty(sum(receive), rows.shape[1])
        dist.all_to_all_single(out, rows.contiguous(), receive, send)
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor):
        return _Exchange.apply(d_out, ctx.receive, ctx.send), None, None


def exchange_dispatch(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
    """Run the experts where they are: each row travels to its rank and back. x (T, D) of this rank -> y (T, D). All
    ranks call it, also one without a token. `Experts` that are whole have nothing to exchange."""
    if not isinstance(experts, ExpertShard):
        return DISPATCH["grouped"](experts, x, routing)
    size = dist.get_world_size()  # N
    order = routing.expert_idx.argsort(stable=True)  # (A,) by expert, and so by rank
    token_idx, weight = routing.token_idx[order], routing.weight[order, None].to(x.dtype)
    leaving = routing.tokens_per_expert  # (E,) rows that I send to each expert
    coming = torch.empty_like(leaving)  # (E,) = (N · E/N,) rows that each rank sends to each of my experts
    dist.all_to_all_single(coming, leaving)
    send, receive = torch.stack([leaving.view(size, -1).sum(1), coming.view(size, -1).sum(1)]).tolist()
    rows = _Exchange.apply(x.index_select(0, token_idx), send, receive)  # (R, D) from all ranks
    expert_idx = torch.arange(experts.num_experts, device=x.device).repeat(size).repeat_interleave(coming)  # (R,)
    local = one_each(rows, expert_idx, experts.num_experts)
    out = DISPATCH[choose_dispatch(experts, local)](experts, rows, local)  # (R, D)
    out = _Exchange.apply(out, receive, send)  # (A, D) each result is back where its token is
    return x.new_zeros(x.shape).index_add(0, token_idx, out * weight)


DISPATCH["exchange"] = exchange_dispatch


def one_each(rows: Tensor, expert_idx: Tensor, num_experts: int) -> Routing:
    """Make the routing in which row r goes to expert_idx[r] with weight 1. Its probabilities are never read."""
    probs = rows.new_zeros(1, 1).expand(len(rows), num_experts)
    row_idx = torch.arange(len(rows), device=rows.device)
    return Routing.all_kept(probs, probs, row_idx, expert_idx, rows.new_ones(len(rows)))


def shard_experts(model: nn.Module) -> nn.Module:
    """Leave each `MoE` in `model` with this rank's share of its experts, in place. All ranks call it, of equal weights.

    A capacity_factor is counted by each rank for its own tokens: who is dropped depends on the number of ranks.

    The loss of each rank is its own tokens' mean; the mean over ranks is the loss of one process. So gradients are
    to be averaged over the ranks, as DDP does; those of the experts, which have met every rank's tokens, are already.
    """
    if not dist.is_initialized():
        raise RuntimeError("shard_experts needs ranks: start it by parallel.launch or torchrun, and init_process_group")
    rank, size = dist.get_rank(), dist.get_world_size()
    blocks = [module for module in model.modules() if isinstance(module, MoE)]
    for moe in blocks:
        if isinstance(moe.experts, ExpertShard):
            raise ValueError("model must not be sharded yet, got one whose experts are")
        if type(moe).run_experts is not MoE.run_experts:
            raise ValueError(f"model must run its experts as MoE does, got a {type(moe).__name__}")
        if moe.num_experts % size:
            raise ValueError(f"num_experts ({moe.num_experts}) must be a multiple of the number of ranks ({size})")
    for moe in blocks:
        whole, count = moe.experts, moe.num_experts // size
        with torch.device("meta"):
            shard = ExpertShard(count, whole.d_model, whole.d_ff, whole.activation).train(whole.training)
        for name, weight in whole.named_parameters():
            mine = weight.detach()[rank * count : (rank + 1) * count].clone()
            setattr(shard, name, nn.Parameter(mine, weight.requires_grad))
            if weight.requires_grad:  # what arrives is the sum over the ranks' losses
                getattr(shard, name).register_hook(lambda gradient: gradient / size)
        moe.experts, moe.dispatch = shard, "exchange"
    return model


def expert_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that differ from rank to rank, by name."""
    shards = [name for name, module in model.named_modules() if isinstance(module, ExpertShard)]
    return {name: p for name, p in model.named_parameters() if name.rpartition(".")[0] in shards}


def global_load_balancing_loss(routing: Routing) -> Tensor:
    """Return this rank's part of `load_balancing_loss` over all ranks' tokens: its mean over the ranks is that loss.
    All ranks call it, each with the routing of its own tokens. Only the demand f, which has no gradient, travels."""
    counts = torch.cat([routing.demand_per_expert, routing.token_idx.new_tensor([routing.num_tokens])])  # (E + 1,)
    dist.all_reduce(counts)
    probs = routing.router_probs.to(torch.promote_types(routing.router_probs.dtype, torch.float32))  # (T, E)
    load_share = counts[:-1].to(probs.dtype) / counts[:-1].sum().clamp(min=1)  # f (E,)
    mean_prob = probs.sum(dim=0) * dist.get_world_size() / counts[-1].clamp(min=1)  # the mean of these is P (E,)
    return routing.num_experts * (load_share * mean_prob).sum()


def rank_traffic(rows: Tensor) -> Tensor:
    """Count (N, N) how many rows rank i sends to rank j, those that stay (i = j) included. rows: the
    `tokens_per_expert` of each rank, (N, E). No ranks are needed to ask.

    >>> rank_traffic(torch.tensor([[3, 0, 1, 0], [2, 2, 0, 4]]))  # two ranks, two of the four experts on each
    tensor([[3, 1],
            [4, 4]])
    """
    return rows.view(len(rows), len(rows), -1).sum(dim=2)
