"""The mixture of experts: a router picks, for each token, the K of E experts that work for it."""

from torch import Tensor, nn

from moe_lessons.errors import check_choice, check_input, check_number, check_positive_int, check_top_k
from moe_lessons.nn.balancing import apply_capacity, expert_capacity
from moe_lessons.nn.dispatch import DISPATCH, choose_dispatch
from moe_lessons.nn.experts import Experts
from moe_lessons.nn.ffn import ACTIVATIONS
from moe_lessons.nn.routing import Routing, TopKRouter


class MoE(nn.Module):
    """Sparse mixture of feed-forward experts, in the place of a dense `FeedForward`.

    y[t] = Σ over the K chosen experts e of token t:  weight[t, e] · expert_e(x[t])  (arXiv:1701.06538, eq. 1)

    router: any module x (T, D) -> `Routing`; None makes `TopKRouter(d_model, num_experts, top_k)`, with
        `norm_topk_prob` as there.
    capacity_factor: None for no limit (dropless), else each expert carries out at most
        ⌈capacity_factor · K · T / E⌉ assignments; the others are dropped.
    dispatch: how the experts run: 'dense', 'loop' or 'auto', which picks by size. The result is the same.

    Shapes: x (..., D) -> y (..., D), and the `Routing` of its T tokens. Nothing is kept between calls. Raises
    ValueError for a size below 1, a top_k over num_experts, a capacity_factor that is not above 0, an unknown
    dispatch, a device that is not there, and an x that is not finite floating-point (..., D).

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
        router: nn.Module | None = None,
        activation: str = "swiglu",
        norm_topk_prob: bool | None = None,
        capacity_factor: float | None = None,
        dispatch: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.d_model = check_positive_int("d_model", d_model)
        self.d_ff = check_positive_int("d_ff", d_ff)
        self.num_experts = check_positive_int("num_experts", num_experts)
        self.top_k = check_top_k(top_k, num_experts)
        if capacity_factor is not None:
            check_number("capacity_factor", capacity_factor, above=True)
        self.capacity_factor = capacity_factor
        self.dispatch = check_choice("dispatch", dispatch, (*DISPATCH, "auto"))
        check_choice("activation", activation, ACTIVATIONS)
        make = {"device": device, "dtype": dtype}
        if router is None:
            router = TopKRouter(d_model, num_experts, top_k, norm_topk_prob=norm_topk_prob, **make)
        elif norm_topk_prob is not None:
            raise ValueError(f"norm_topk_prob must be None where a router is given, got {norm_topk_prob!r}")
        if not isinstance(router, nn.Module):
            raise ValueError(f"router must be a module that maps x (T, D) to a Routing, got {type(router).__name__}")
        for name in ("d_model", "num_experts", "top_k"):
            if getattr(router, name, getattr(self, name)) != getattr(self, name):
                raise ValueError(f"router must have {name} {getattr(self, name)}, got {getattr(router, name)}")
        self.router = router
        self.experts = Experts(num_experts, d_model, d_ff, activation, **make)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        check_input(x, self.d_model, self.experts.down_proj.dtype)
        tokens = x.reshape(-1, self.d_model)  # (T, D)
        routing = self.router(tokens)
        if self.capacity_factor is not None and len(tokens) > 0:
            capacity = expert_capacity(self.capacity_factor, self.top_k, len(tokens), self.num_experts)
            routing = apply_capacity(routing, capacity)
        way = choose_dispatch(self.experts, routing) if self.dispatch == "auto" else self.dispatch
        y = DISPATCH[check_choice("dispatch", way, DISPATCH)](self.experts, tokens, routing)  # (T, D)
        return y.view(x.shape), routing

    def extra_repr(self) -> str:
        text = f"num_experts={self.num_experts}, top_k={self.top_k}, dispatch={self.dispatch!r}"
        return text if self.capacity_factor is None else f"{text}, capacity_factor={self.capacity_factor}"
