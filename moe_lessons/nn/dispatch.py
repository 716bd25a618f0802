"""Ways to run the experts. Every way computes the same:

    y[t] = Σ over the assignments a of token t:  weight[a] · expert_idx[a](x[t])

Each is a function (experts, x (T, D), routing) -> y (T, D). They differ in what they cost.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from moe_lessons.nn.experts import Experts
from moe_lessons.nn.ffn import ACTIVATIONS
from moe_lessons.nn.routing import Routing


def dense_dispatch(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
    """Every expert computes every token; the weights of those not chosen are zero.

    E/K times the arithmetic, in two large matrix products: the fastest way where the sizes are tiny.
    """
    num_experts, d_model, d_ff = experts.down_proj.shape
    weights = x.new_zeros(len(x), num_experts)  # (T, E)
    index = (routing.token_idx, routing.expert_idx)
    weights = weights.index_put(index, routing.weight.to(x.dtype), accumulate=True)
    in_proj = experts.in_proj.reshape(-1, d_model)  # (E·2F, D) or (E·F, D)
    hidden = F.linear(x, in_proj).unflatten(1, experts.in_proj.shape[:2])  # (T, E, 2F) or (T, E, F)
    hidden = ACTIVATIONS[experts.activation](hidden) * weights[:, :, None]  # (T, E, F)
    down_proj = experts.down_proj.permute(1, 0, 2).reshape(d_model, -1)  # (D, E·F)
    return F.linear(hidden.reshape(len(x), num_experts * d_ff), down_proj).to(x.dtype)


def loop_dispatch(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
    """One expert after the other, each on its own tokens: the arithmetic of K experts for each token.

    A token's row is gathered when its expert needs it, and added to the output at once, so that the rows stay in
    the processor's cache: gathering all T·K rows first would move K times the activations through memory.
    """
    activation = ACTIVATIONS[experts.activation]
    order = routing.expert_idx.argsort(stable=True)  # (A,) grouped by expert
    counts = routing.tokens_per_expert.tolist()
    token_groups = routing.token_idx[order].split(counts)
    weight_groups = routing.weight[order].to(x.dtype).split(counts)
    in_projs, down_projs = experts.in_proj.unbind(0), experts.down_proj.unbind(0)
    y = x.new_zeros(x.shape)  # (T, D)
    for expert, tokens in enumerate(token_groups):
        if len(tokens) == 0 and len(x) > 0:  # of no tokens at all, y must still lead back to the weights
            continue
        hidden = activation(F.linear(x.index_select(0, tokens), in_projs[expert]))  # (its tokens, F)
        hidden = hidden * weight_groups[expert][:, None]
        out = F.linear(hidden, down_projs[expert]).to(x.dtype)  # (its tokens, D); autocast gives bfloat16
        y.index_add_(0, tokens, out)
    return y


DISPATCH: dict[str, Callable[[Experts, Tensor, Routing], Tensor]] = {
    "dense": dense_dispatch,
    "loop": loop_dispatch,
}


LOOP_PAYS_FROM = 400_000  # multiplications by the input weights saved, for each expert; measured on CPUs


def choose_dispatch(experts: Experts, routing: Routing) -> str:
    """The name of the way that 'auto' takes.

    The loop does K/E of the arithmetic of the dense way but pays a fixed price for each expert. Where the two
    cross depends on the machine and is set for CPUs: `python -m moe_lessons bench` measures it.
    """
    wasted = (routing.num_experts * routing.num_tokens - len(routing.expert_idx)) * experts.in_proj[0].numel()
    return "dense" if wasted < LOOP_PAYS_FROM * routing.num_experts else "loop"
