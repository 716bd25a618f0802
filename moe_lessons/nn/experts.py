"""E feed-forward networks in one place: their weights stacked along a first dimension."""

from torch import Tensor, nn

from moe_lessons.nn.ffn import ACTIVATIONS, GATED, FeedForward, make_weight
from moe_lessons.support.errors import check_choice, check_positive_int


class Experts(nn.Module):
    """The weights of E experts, each a `FeedForward`, stacked: expert e is [e] of every weight.

    `gate_up_proj` (E, 2F, D) for SwiGLU or `up_proj` (E, F, D) for GELU and ReLU; `down_proj` (E, D, F).
    How tokens reach their experts is not decided here: see `dispatch`.

    >>> Experts(num_experts=8, d_model=4, d_ff=16).gate_up_proj.shape
    torch.Size([8, 32, 4])
    """

    def __init__(self, num_experts: int, d_model: int, d_ff: int, activation: str = "swiglu"):
        super().__init__()
        self.num_experts = check_positive_int("num_experts", num_experts)
        self.d_model = check_positive_int("d_model", d_model)
        self.d_ff = check_positive_int("d_ff", d_ff)
        self.activation = check_choice("activation", activation, ACTIVATIONS)
        self.in_name, width = ("gate_up_proj", 2 * d_ff) if activation in GATED else ("up_proj", d_ff)
        self.register_parameter(self.in_name, make_weight(num_experts, width, d_model))
        self.down_proj = make_weight(num_experts, d_model, d_ff)

    in_proj = FeedForward.in_proj  # (E, 2F, D) or (E, F, D)

    def hidden(self, pre: Tensor, weight: Tensor) -> Tensor:
        """Return weight · activation(pre), (..., F), of pre = x·W_inᵀ (..., 2F or F) and the routing weights (...)."""
        return ACTIVATIONS[self.activation](pre) * weight[..., None]  # before the product that makes it D wide

    def extra_repr(self) -> str:
        sizes = f"num_experts={self.num_experts}, d_model={self.d_model}, d_ff={self.d_ff}"
        return f"{sizes}, activation={self.activation!r}"
