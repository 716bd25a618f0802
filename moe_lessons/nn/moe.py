"""The mixture of experts: a router picks, for each token, the K of E experts that work for it."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

from torch import Tensor, nn

from moe_lessons.nn.balancing import PRIORITIES, apply_capacity, expert_capacity
from moe_lessons.nn.dispatch import DISPATCH, choose_dispatch
from moe_lessons.nn.experts import Experts
from moe_lessons.nn.ffn import FeedForward
from moe_lessons.nn.routing import Routing, make_router
from moe_lessons.support.errors import check_choice, check_count, check_input, check_number, check_top_k, check_whole


class MoE(nn.Module):
    """Sparse mixture of feed-forward experts, in the place of a dense `FeedForward`.

    y[t] = Σ over the chosen experts e of token t:  weight[t, e] · expert_e(x[t])  (arXiv:1701.06538, eq. 1)

    router: any module x (T, D) -> `Routing`; or a name of `ROUTERS`, or a class or function called with (d_model,
        num_experts, top_k), which then has `router_options` such as norm_topk_prob too. None: `TopKRouter`.
    capacity_factor: None for no limit (dropless), else each expert carries out at most ⌈capacity_factor · K · T / E⌉
        assignments; the others are dropped: see `apply_capacity`.
    shared_d_ff: the width of a shared expert, which works for every token (DeepSeekMoE, arXiv:2401.06066, eq. 9).
    dispatch: how the experts run: a name of `DISPATCH`, or 'auto', which picks by size. The result is the same.

    Shapes: x (..., D) -> y (..., D), and the `Routing` of its T tokens. token_ids (...): for a `HashRouter` alone.
    Nothing is kept between calls. Raises ValueError for bad sizes, and an x that is not floating-point (..., D).

    >>> import torch
    >>> y, routing = MoE(d_model=4, d_ff=16, num_experts=8, top_k=2)(torch.randn(5, 4))
    >>> y.shape, int(routing.tokens_per_expert.sum())
    (torch.Size([5, 4]), 10)
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        num_experts: int,
        top_k: int = 2,
        *,
        router: nn.Module | str | Callable[..., nn.Module] | None = None,
        activation: str = "swiglu",
        shared_d_ff: int = 0,
        capacity_factor: float | None = None,
        capacity_priority: str = "order",
        dispatch: str = "auto",
        **router_options,
    ):
        super().__init__()
        self.router = make_router(router, d_model, num_experts, top_k, **router_options)
        self.experts = Experts(num_experts, d_model, d_ff, activation)
        self.d_model, self.d_ff = d_model, d_ff
        self.num_experts = num_experts
        self.top_k = check_top_k(top_k, num_experts)
        shared_d_ff = check_count("shared_d_ff", shared_d_ff)
        self.shared_expert = FeedForward(d_model, shared_d_ff, activation) if shared_d_ff > 0 else None
        if capacity_factor is not None:
            check_number("capacity_factor", capacity_factor, above=True)
        self.capacity_factor = capacity_factor
        self.capacity_priority = check_choice("capacity_priority", capacity_priority, PRIORITIES)
        self.dispatch = check_choice("dispatch", dispatch, (*DISPATCH, "auto"))

    def forward(self, x: Tensor, token_ids: Tensor | None = None) -> tuple[Tensor, Routing]:
        check_input(x, self.d_model, self.experts.down_proj.device, self.experts.down_proj.dtype)
        if isinstance(token_ids, Tensor):
            if token_ids.shape != x.shape[:-1]:
                raise ValueError(f"token_ids must have the shape {tuple(x.shape[:-1])}, got {tuple(token_ids.shape)}")
            token_ids = token_ids.reshape(-1)  # (T,)
        tokens = x.reshape(-1, self.d_model)  # (T, D)
        is_hash = getattr(self.router, "needs_token_ids", False)
        routing = self.router(tokens, token_ids) if is_hash else self.router(tokens)
        routing = self.limit(check_routing(routing, len(tokens), self.num_experts))
        y = self.run_experts(tokens, routing)  # (T, D)
        if self.shared_expert is not None:
            y = y + self.shared_expert(tokens).to(y.dtype)
        return y.view(x.shape), routing

    def limit(self, routing: Routing) -> Routing:
        """The assignments that are carried out."""
        if self.capacity_factor is None or routing.num_tokens == 0:
            return routing
        capacity = expert_capacity(self.capacity_factor, self.top_k, routing.num_tokens, self.num_experts)
        return apply_capacity(routing, capacity, self.capacity_priority)

    def run_experts(self, x: Tensor, routing: Routing) -> Tensor:
        """The experts' weighted sum: x (T, D) -> (T, D). Override it for experts that compute something else."""
        way = choose_dispatch(self.experts, routing) if self.dispatch == "auto" else self.dispatch
        return DISPATCH[check_choice("dispatch", way, DISPATCH)](self.experts, x, routing)

    def extra_repr(self) -> str:
        text = f"num_experts={self.num_experts}, top_k={self.top_k}, dispatch={self.dispatch!r}"
        limit = f", capacity_factor={self.capacity_factor}, capacity_priority={self.capacity_priority!r}"
        return text + (limit if self.capacity_factor is not None else "")


def muted(model: nn.Module, moe: MoE, expert: int) -> nn.Module:
    """Return a model with the weights of `model` itself, in which one expert of its mixture `moe` adds nothing: what is
    lost without it? The router is the same: the others get no tokens and no weight from it. `model` is left as it is.

    >>> import torch
    >>> moe, x = MoE(d_model=4, d_ff=16, num_experts=1, top_k=1), torch.randn(5, 4)
    >>> muted(moe, moe, expert=0)(x)[0].abs().max().item()
    0.0
    """
    check_whole("expert", expert, 0, moe.num_experts - 1, f"between 0 and {moe.num_experts - 1}")
    copies = {id(weight): weight for weight in (*model.parameters(), *model.buffers())}  # these are not copied
    model = deepcopy(model, copies)
    moe = copies[id(moe)]
    run_experts = moe.run_experts

    def run_others(x: Tensor, routing: Routing) -> Tensor:
        is_muted = routing.expert_idx == expert  # (A,)
        return run_experts(x, replace(routing, weight=routing.weight.masked_fill(is_muted, 0)))

    moe.run_experts = run_others
    return model


def check_routing(routing: Routing, num_tokens: int, num_experts: int) -> Routing:
    """Return what a router gave if it is a `Routing` of these sizes. No value is read: a GPU would be waited for."""
    if not isinstance(routing, Routing):
        raise ValueError(f"router must return a Routing, got {type(routing).__name__}")
    wanted, got = (num_tokens, num_experts), tuple(routing.router_probs.shape)
    if got != wanted:
        raise ValueError(f"router must return router_probs of shape {wanted}, got {got}")
    shapes = [tuple(vector.shape) for vector in (routing.token_idx, routing.expert_idx, routing.weight)]
    if len(shapes[0]) != 1 or len(set(shapes)) != 1:
        raise ValueError(f"router must return token_idx, expert_idx and weight of one shape (A,), got {shapes}")
    return routing
