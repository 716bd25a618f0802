"""Ways to run the experts. Every way computes the same:

    y[t] = Σ over the assignments a of token t:  weight[a] · expert_idx[a](x[t])

(with `experts.weight_input` the weight stands inside: expert_idx[a](weight[a] · x[t])). Each is a function
(experts, x (T, D), routing) -> y (T, D). They differ in what they cost:

    dense     every expert on every token: E/K times the arithmetic, but two large products; best where all is tiny
    loop      one expert after the other, each on its own tokens: nothing wasted, and the plainest to read; best for
              a single token, as its experts' weights are read where they are
    padded    all experts in batched products, each with as many rows as the busiest: waste grows with imbalance;
              best for small experts in good balance, where calls cost more than arithmetic
    grouped   rows sorted by expert, products by groups, backward by hand (see `grouped`): best where there is work
    gather    for each assignment a copy of its expert's weights, A·(2F·D + D·F) numbers: best for a few tokens
              without gradients, as in decoding several sequences; ruinous for many

All have a gradient for x, the routing weights and the experts. 'grouped' cannot be differentiated twice, nor by
`torch.func`.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_lessons.errors import check_choice
from moe_lessons.nn.experts import Experts
from moe_lessons.nn.grouped import run_grouped, why_own_products
from moe_lessons.nn.routing import Routing

Dispatch = Callable[[Experts, Tensor, Routing], Tensor]


def dense_dispatch(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
    """Every expert computes every token; the weights of those not chosen are zero."""
    num_experts, d_model, d_ff = experts.down_proj.shape
    in_proj = experts.in_proj.reshape(-1, d_model)  # (E·2F, D) or (E·F, D)
    pre = F.linear(x, in_proj).unflatten(1, experts.in_proj.shape[:2])  # (T, E, 2F) or (T, E, F)
    if experts.weight_input:  # one expert may meet a token twice, with two weights: a row for each assignment
        pair = (routing.token_idx, routing.expert_idx)
        in_bias = None if experts.in_bias is None else experts.in_bias[routing.expert_idx]  # (A, 2F)
        rows = experts.hidden(pre[pair], routing.weight.to(x.dtype), in_bias)  # (A, F)
        hidden = rows.new_zeros(len(x), num_experts, d_ff).index_put(pair, rows, accumulate=True)  # (T, E, F)
    else:  # what was not chosen must not count even where it is infinite: 0 · ∞ is no number
        idle = torch.ones(pre.shape[:2], dtype=torch.bool, device=x.device)  # (T, E)
        idle[routing.token_idx, routing.expert_idx] = False
        pre = pre.masked_fill(idle[:, :, None], 0)
        hidden = experts.hidden(pre, pair_weights(experts, x, routing), experts.in_bias)  # (T, E, F)
    down_proj = experts.down_proj.permute(1, 0, 2).reshape(d_model, -1)  # (D, E·F)
    y = F.linear(hidden.flatten(1), down_proj).to(x.dtype)  # (T, D)
    return add_down_bias(y, experts, x, routing)


def loop_dispatch(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
    """One expert after the other, each on its own tokens: the arithmetic of K experts for each token.

    A token's row is gathered when its expert needs it, and added to the output at once, so that the rows stay in
    the processor's cache: gathering all T·K rows first would move K times the activations through memory.
    """
    in_projs, down_projs, in_bias = experts.in_proj, experts.down_proj, experts.in_bias
    if torch.is_grad_enabled():  # then w[e] would cost O(E) each, backward
        in_projs, down_projs = in_projs.unbind(0), down_projs.unbind(0)

    def run(expert: int, rows: Tensor, weight: Tensor) -> Tensor:
        pre = F.linear(rows, in_projs[expert])  # (its tokens, 2F) or (its tokens, F)
        hidden = experts.hidden(pre, weight, None if in_bias is None else in_bias[expert])  # (its tokens, F)
        return F.linear(hidden, down_projs[expert]).to(x.dtype)  # (its tokens, D); autocast gives bfloat16

    weight = routing.weight.to(x.dtype)
    y = x.new_zeros(x.shape)  # (T, D)
    if len(x) == 1:  # as in decoding: there is nothing to sort
        for expert, its_weight in zip(routing.expert_idx.tolist(), weight.split(1)):
            y = y + run(expert, x, its_weight)
        return add_down_bias(y, experts, x, routing)
    order = routing.expert_idx.argsort(stable=True)  # (A,) grouped by expert
    counts = routing.tokens_per_expert.tolist()
    token_groups, weight_groups = routing.token_idx[order].split(counts), weight.index_select(0, order).split(counts)
    for expert, (tokens, its_weight) in enumerate(zip(token_groups, weight_groups)):
        if len(tokens) == 0 and len(x) > 0:  # of no tokens at all, y must still lead back to the weights
            continue
        y.index_add_(0, tokens, run(expert, x.index_select(0, tokens), its_weight))
    return add_down_bias(y, experts, x, routing)


def padded_dispatch(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
    """All experts in one batched product, each with C places for rows, C being the load of the busiest.

    Places that stay empty are computed too: E·C rows instead of A.
    """
    counts = routing.tokens_per_expert  # (E,)
    num_experts, capacity = len(counts), int(counts.max())  # C
    order = routing.expert_idx.argsort(stable=True)  # (A,) grouped by expert
    expert_idx, token_idx = routing.expert_idx[order], routing.token_idx[order]  # (A,)
    starts = counts.cumsum(0) - counts  # (E,) where each expert's group begins
    place = torch.arange(len(order), device=x.device) - starts[expert_idx] + capacity * expert_idx  # (A,) of E·C
    rows = x.new_zeros(num_experts * capacity, x.shape[1]).index_copy(0, place, x.index_select(0, token_idx))
    weight = x.new_zeros(num_experts * capacity).index_copy(0, place, routing.weight.index_select(0, order).to(x.dtype))
    pre = torch.bmm(rows.view(num_experts, capacity, x.shape[1]), experts.in_proj.mT)  # (E, C, 2F) or (E, C, F)
    in_bias = None if experts.in_bias is None else experts.in_bias[:, None]  # (E, 1, 2F)
    hidden = experts.hidden(pre, weight.view(num_experts, capacity), in_bias)  # (E, C, F)
    out = torch.bmm(hidden, experts.down_proj.mT).to(x.dtype)  # (E, C, D)
    y = x.new_zeros(x.shape).index_add(0, token_idx, out.flatten(0, 1).index_select(0, place))
    return add_down_bias(y, experts, x, routing)


def grouped_dispatch(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
    """The products of each group of rows that share an expert, in `grouped_mm` or in our own equal of it."""
    dtype, device = x.dtype, x.device.type
    if torch.is_autocast_enabled(device) and dtype != torch.float64:  # what autocast does to any product
        dtype = torch.get_autocast_dtype(device)
    weights = experts.in_proj.to(dtype), experts.down_proj.to(dtype)
    y = run_grouped(experts, x.to(dtype), routing, *weights).to(x.dtype)  # (T, D)
    return add_down_bias(y, experts, x, routing)


def gather_dispatch(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
    """Each assignment with its own copy of its expert's weights: memory for A·(2F·D + D·F) numbers.

    Nothing is sorted or counted, so that a GPU never waits for the processor.
    """
    rows = x.index_select(0, routing.token_idx)[:, None]  # (A, 1, D)
    in_proj = experts.in_proj.index_select(0, routing.expert_idx)  # (A, 2F, D) or (A, F, D)
    pre = torch.bmm(rows, in_proj.mT)[:, 0]  # (A, 2F) or (A, F)
    in_bias = None if experts.in_bias is None else experts.in_bias.index_select(0, routing.expert_idx)
    hidden = experts.hidden(pre, routing.weight.to(x.dtype), in_bias)  # (A, F)
    down_proj = experts.down_proj.index_select(0, routing.expert_idx)  # (A, D, F)
    out = torch.bmm(hidden[:, None], down_proj.mT)[:, 0].to(x.dtype)  # (A, D)
    y = x.new_zeros(x.shape).index_add(0, routing.token_idx, out)
    return add_down_bias(y, experts, x, routing)


def pair_weights(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
    """(T, E) what multiplies the output of each expert for each token: 0 for those not chosen."""
    weight = torch.ones_like(routing.weight) if experts.weight_input else routing.weight
    pair = (routing.token_idx, routing.expert_idx)
    return x.new_zeros(len(x), routing.num_experts).index_put(pair, weight.to(x.dtype), accumulate=True)


def add_down_bias(y: Tensor, experts: Experts, x: Tensor, routing: Routing) -> Tensor:
    """y (T, D) and the biases of the down projection, which depend on x only through the weights."""
    if experts.down_proj_bias is None:
        return y
    return y + (pair_weights(experts, x, routing) @ experts.down_proj_bias).to(y.dtype)


DISPATCH: dict[str, Dispatch] = {
    "dense": dense_dispatch,
    "loop": loop_dispatch,
    "padded": padded_dispatch,
    "grouped": grouped_dispatch,
    "gather": gather_dispatch,
}


# What the ways cost, in multiplications that take as long; measured on CPUs. What is fixed, or reading, weighs more
# with more threads: arithmetic is shared by them, and this is not.
ACTIVATION_PRICE = 16  # of the activation, for each number that goes into it
PADDED_FACTOR = 1.05  # one batched product for many small ones, while its rows stay in the cache
PADDED_FACTOR_LARGE = 1.2  # where they do not
CACHE_NUMBERS = 500_000  # of x and of pre-activations, up to which they do, for each thread
PADDED_PRICE = 800_000  # of the calls that 'dense' does without
GROUPED_PRICE, GROUPED_EXPERT_PRICE = 1_000_000, 300_000  # of the sorting, and of the products of one expert
READ_PRICE = 8  # of a weight that is read from memory; it decides where few tokens share it
GATHER_LIMIT = 1_500_000  # numbers that 'gather' may copy; with more threads, as many times fewer
LAUNCH_FACTOR = 100  # on 'grouped' where each of its E products is launched for itself: an estimate


def choose_dispatch(experts: Experts, routing: Routing) -> str:
    """The name of the way that 'auto' takes: the one with the least arithmetic and fixed price together.

    Arithmetic is rows · 2F · (D + ACTIVATION_PRICE), and the rows are E·T for 'dense', E·C for 'padded', where C is
    the load of the busiest expert, and A for 'grouped', which alone reads no weights of experts without tokens. Where
    no gradient is wanted and at most 2·E assignments are made, 'loop' is taken for one token, and 'gather' for several
    where few weights are to be copied. `python -m moe_lessons bench` shows what the rule takes and what was fastest.
    """
    num_experts, d_model, d_ff = experts.down_proj.shape
    num_rows, width = len(routing.expert_idx), experts.in_proj.shape[1]  # A; 2F or F
    on_cpu = experts.in_proj.device.type == "cpu"
    threads = torch.get_num_threads() if on_cpu else 1
    if num_rows <= 2 * num_experts and not torch.is_grad_enabled():
        if on_cpu and routing.num_tokens == 1:
            return "loop"
        if threads * num_rows * d_model * (width + d_ff) <= GATHER_LIMIT:
            return "gather"
    row, reading = width * (d_model + ACTIVATION_PRICE), READ_PRICE * width * d_model  # of a row, of an expert
    counts = routing.tokens_per_expert.tolist()
    places, used = num_experts * max(counts), sum(map(bool, counts))  # E·C, experts with tokens
    fits = on_cpu and places * (d_model + width) <= threads * CACHE_NUMBERS
    padding = PADDED_FACTOR if fits else PADDED_FACTOR_LARGE
    if on_cpu:
        sorting = GROUPED_PRICE + GROUPED_EXPERT_PRICE * num_experts
    else:
        launches = bool(why_own_products(experts.in_proj, experts.down_proj))
        sorting = GROUPED_PRICE * (LAUNCH_FACTOR if launches else 1)
    cost = {
        "dense": num_experts * (routing.num_tokens * row + reading),
        "padded": places * row * padding + num_experts * reading + threads * PADDED_PRICE,
        "grouped": num_rows * row + used * reading + threads * sorting,
    }
    return min(cost, key=cost.get)


def describe_dispatch(experts: Experts, way: str) -> str:
    """The way, and how it runs where that depends on the weights: what `repr` of an `MoE` shows.

    >>> describe_dispatch(Experts(2, 3, 5, dtype=torch.float64), "grouped")
    'grouped (one product for each expert: no grouped_mm for float64)'
    """
    check_choice("way", way, (*DISPATCH, "auto"))
    if way != "grouped":
        return way
    reason = why_own_products(experts.in_proj, experts.down_proj)
    return f"grouped (one product for each expert: {reason})" if reason else "grouped (grouped_mm)"
