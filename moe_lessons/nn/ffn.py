"""The dense feed-forward network: every parameter works for every token."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_lessons.support.errors import check_choice, check_input, check_positive_int


def swiglu(gate_up: Tensor) -> Tensor:
    """SiLU(gate) · up, the two halves of the last dimension (arXiv:2002.05202, eq. 5): (..., 2F) -> (..., F)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


ACTIVATIONS = {"swiglu": swiglu, "gelu": F.gelu, "relu": F.relu}
GATED = ("swiglu",)  # these have two input matrices


def make_weight(*shape: int) -> nn.Parameter:
    """A weight (..., out, in), uniform in ±1/√in, as `torch.nn.Linear` starts."""
    bound = 1 / math.sqrt(shape[-1])
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


class FeedForward(nn.Module):
    """Dense feed-forward network: y = down(activation(up x)), without biases.

    SwiGLU (the default) has two input matrices, gate and up, stacked in `gate_up_proj` (2F, D): gate first. GELU and
    ReLU have one, `up_proj` (F, D). `down_proj` is (D, F).

    Shapes: x (..., D) -> y (..., D). Source: arXiv:1706.03762, section 3.3; SwiGLU: arXiv:2002.05202.

    >>> FeedForward(d_model=4, d_ff=16)(torch.zeros(3, 4)).shape
    torch.Size([3, 4])
    """

    def __init__(self, d_model: int, d_ff: int, activation: str = "swiglu"):
        super().__init__()
        self.d_model = check_positive_int("d_model", d_model)
        self.d_ff = check_positive_int("d_ff", d_ff)
        self.activation = check_choice("activation", activation, ACTIVATIONS)
        self.in_name, width = ("gate_up_proj", 2 * d_ff) if activation in GATED else ("up_proj", d_ff)
        self.register_parameter(self.in_name, make_weight(width, d_model))
        self.down_proj = make_weight(d_model, d_ff)

    @property
    def in_proj(self) -> Tensor:
        """The input weight, whichever the activation has: (2F, D) or (F, D)."""
        return getattr(self, self.in_name)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.d_model, self.down_proj.device, self.down_proj.dtype)
        hidden = ACTIVATIONS[self.activation](F.linear(x, self.in_proj))  # (..., F)
        return F.linear(hidden, self.down_proj)  # (..., D)

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, d_ff={self.d_ff}, activation={self.activation!r}"
