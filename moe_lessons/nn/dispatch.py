"""Ways to run the experts. Every way computes the same:

    y[t] = Σ over the assignments a of token t:  weight[a] · expert_idx[a](x[t])

Each is a function (experts, x (T, D), routing) -> y (T, D), with a gradient for x, the routing weights and the experts.
They differ in what they cost: 'dense' is best where all is tiny, 'loop' (the plainest to read) on a CPU for a single
token and where few experts have much to do, 'grouped' in between and on a GPU, for which 'loop' and 'padded' have to
wait; the waste of 'padded' grows with imbalance."""

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_lessons.nn.balancing import rank_within
from moe_lessons.nn.experts import Experts
from moe_lessons.nn.routing import Routing


def dense_dispatch(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
    """Every expert computes every token (E/K times the arithmetic); the weights of those not chosen are zero. What
    overflows in one expert spoils all tokens."""
    num_experts, d_model, _ = experts.down_proj.shape
    pre = experts.in_proj.reshape(-1, d_model) @ x.T  # (E·2F, T): long rows, also where F is small
    pre = pre.unflatten(0, (num_experts, -1)).mT  # (E, T, 2F)
    hidden = experts.hidden(pre, weight_matrix(x, routing))  # (E, T, F)
    down_proj = experts.down_proj.mT.reshape(-1, d_model)  # (E·F, D)
    return (hidden.mT.flatten(0, 1).T @ down_proj).to(x.dtype)  # (T, D)


def loop_dispatch(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
    """One expert after the other: gather the rows of its tokens, run it, add what comes out to the output."""
    in_proj, down_proj = experts.in_proj, experts.down_proj
    weight = routing.weight.to(x.dtype)
    if torch.is_grad_enabled():  # backward, each in_proj[e] would fill a whole gradient with zeros
        in_proj, down_proj = in_proj.unbind(0), down_proj.unbind(0)

    def run(e: int, x: Tensor, weight: Tensor) -> Tensor:
        pre = F.linear(x, in_proj[e])  # (its tokens, 2F) or (its tokens, F)
        return F.linear(experts.hidden(pre, weight), down_proj[e]).to(x.dtype)  # autocast gives bfloat16

    y = x.new_zeros(x.shape)  # (T, D)
    if len(x) == 1:  # as in decoding: there is nothing to sort
        return sum((run(e, x, its) for e, its in zip(routing.expert_idx.tolist(), weight.split(1))), start=y)
    order, counts = routing.expert_idx.argsort(stable=True), routing.tokens_per_expert.tolist()
    for e, rows in enumerate(order.split(counts)):  # the places of its assignments
        if len(rows) > 0 or len(x) == 0:  # of no tokens at all, y must still lead back to the weights
            tokens = routing.token_idx[rows]
            y.index_add_(0, tokens, run(e, x.index_select(0, tokens), weight.index_select(0, rows)))
    return y


def padded_dispatch(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
    """All experts in one batched product, each with as many places (C) as the busiest needs: E·C rows instead of A."""
    num_experts, capacity = routing.num_experts, int(routing.tokens_per_expert.max())  # C
    place = rank_within(routing.expert_idx) + capacity * routing.expert_idx  # (A,) of E·C
    rows = x.new_zeros(num_experts * capacity, x.shape[1]).index_copy(0, place, x.index_select(0, routing.token_idx))
    weight = x.new_zeros(num_experts * capacity).index_copy(0, place, routing.weight.to(x.dtype))
    pre = torch.bmm(rows.view(num_experts, capacity, x.shape[1]), experts.in_proj.mT)  # (E, C, 2F) or (E, C, F)
    hidden = experts.hidden(pre, weight.view(num_experts, capacity))  # (E, C, F)
    out = torch.bmm(hidden, experts.down_proj.mT).to(x.dtype)  # (E, C, D)
    return x.new_zeros(x.shape).index_add(0, routing.token_idx, out.flatten(0, 1).index_select(0, place))


def grouped_dispatch(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
    """Rows sorted by expert, and the products of all groups of rows that share an expert in one call of torch's
    `grouped_mm`; where that does not take the weights, this is 'loop'."""
    dtype, device = x.dtype, x.device.type
    if torch.is_autocast_enabled(device) and dtype != torch.float64:  # grouped_mm does not know of autocast
        dtype = torch.get_autocast_dtype(device)
    in_proj, down_proj = experts.in_proj.to(dtype), experts.down_proj.to(dtype)
    if not (takes_grouped_mm(in_proj) and takes_grouped_mm(down_proj)):
        return loop_dispatch(experts, x, routing)
    order = routing.expert_idx.argsort(stable=True)  # (A,) sorted by expert
    token_idx, weight = routing.token_idx[order], routing.weight.index_select(0, order).to(x.dtype)  # (A,)
    counts = routing.tokens_per_expert  # (E,)
    ends = counts.cumsum(0, dtype=torch.int32)  # (E,) where each group ends
    in_proj, down_proj = in_proj.mT, down_proj.mT  # (E, D, 2F) or (E, D, F), and (E, F, D)
    for weights in (in_proj, down_proj):
        if weights.requires_grad and device != "cpu":  # some GPUs leave an empty group unwritten: pytorch issue 172439
            weights.register_hook(lambda gradient: gradient.masked_fill((counts == 0)[:, None, None], 0))
    pre = F.grouped_mm(x.index_select(0, token_idx).to(dtype), in_proj, offs=ends)  # (A, 2F) or (A, F)
    hidden = experts.hidden(pre, weight).to(dtype)  # (A, F)
    out = F.grouped_mm(hidden, down_proj, offs=ends).to(x.dtype)  # (A, D)
    return x.new_zeros(x.shape).index_add(0, token_idx, out)


def takes_grouped_mm(weight: Tensor) -> bool:
    """Return whether `grouped_mm` (torch 2.10 or newer) takes a weight: by its type, and rows of a multiple of 16
    bytes."""
    types = (torch.bfloat16,) if torch.compiler.is_compiling() else (torch.float32, torch.bfloat16, torch.float16)
    if not hasattr(F, "grouped_mm") or weight.dtype not in types or not weight.is_contiguous():
        return False
    try:
        numbers = [weight.data_ptr(), *(width * weight.itemsize for width in weight.shape[1:])]
    except RuntimeError:  # within torch.func it has no memory of its own
        return False
    return all(number % 16 == 0 for number in numbers)


def weight_matrix(x: Tensor, routing: Routing) -> Tensor:
    """(E, T) the weight of each expert for each token, of the type of x: 0 where it was not chosen."""
    shape = routing.num_experts, routing.num_tokens
    place = routing.expert_idx * routing.num_tokens + routing.token_idx  # (A,)
    return x.new_zeros(shape).view(-1).index_add(0, place, routing.weight.to(x.dtype)).view(shape)


DISPATCH = {"dense": dense_dispatch, "loop": loop_dispatch, "padded": padded_dispatch, "grouped": grouped_dispatch}
SMALL_WASTE = 500_000  # multiplications by one weight matrix that 'dense' may waste on experts which were not chosen
LARGE_GROUP = 300_000  # numbers in the rows of one expert, from which on a call for each costs next to nothing


def choose_dispatch(experts: Experts, routing: Routing) -> str:
    """Name the way that 'auto' takes, by the sizes alone: 'dense' where it wastes less than fewer calls save; on a CPU
    'loop' for one token without a gradient, and where each expert has much to do; else 'grouped' (see `make bench`)."""
    num_experts, d_model, d_ff = experts.down_proj.shape
    num_rows, width = len(routing.expert_idx), experts.in_proj.shape[1]  # A; 2F or F
    if experts.down_proj.device.type == "cpu":
        alone = routing.num_tokens == 1 and not torch.is_grad_enabled()
        if alone or num_rows * (d_model + width) > LARGE_GROUP * num_experts:
            return "loop"
    wasted = num_experts * routing.num_tokens - num_rows  # rows of experts that were not chosen
    return "dense" if wasted * d_model * d_ff <= SMALL_WASTE else "grouped"
