"""E feed-forward networks in one place: their weights stacked along a first dimension."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moe_lessons.errors import check_choice, check_positive_int
from moe_lessons.nn.ffn import ACTIVATIONS, make_weight


class Experts(nn.Module):
    """The weights of E experts, each a `FeedForward`, stacked: expert e is [e] of every weight.

    `gate_up_proj` (E, 2F, D) for SwiGLU or `up_proj` (E, F, D) for GELU and ReLU; `down_proj` (E, D, F).
    How tokens reach their experts is not decided here: see `dispatch`.

    >>> Experts(num_experts=8, d_model=4, d_ff=16).gate_up_proj.shape
    torch.Size([8, 32, 4])
    """

    def __init__(
        self, num_experts: int, d_model: int, d_ff: int, activation: str = "swiglu", *, device=None, dtype=None
    ):
        super().__init__()
        self.num_experts = check_positive_int("num_experts", num_experts)
        self.d_model = check_positive_int("d_model", d_model)
        self.d_ff = check_positive_int("d_ff", d_ff)
        self.activation = check_choice("activation", activation, ACTIVATIONS)
        make = {"device": device, "dtype": dtype}
        if activation == "swiglu":
            self.gate_up_proj = make_weight(num_experts, 2 * d_ff, d_model, **make)
        else:
            self.up_proj = make_weight(num_experts, d_ff, d_model, **make)
        self.down_proj = make_weight(num_experts, d_model, d_ff, **make)

    @property
    def in_proj(self) -> Tensor:
        """The input weight, whichever the activation has: (E, 2F, D) or (E, F, D)."""
        return self.gate_up_proj if self.activation == "swiglu" else self.up_proj

    def extra_repr(self) -> str:
        sizes = f"num_experts={self.num_experts}, d_model={self.d_model}, d_ff={self.d_ff}"
        return f"{sizes}, activation={self.activation!r}"


@contextmanager
def muted(experts: nn.Module, expert: int) -> Iterator[None]:
    """Within it, the output of one expert is zero: what is lost without it? The weights come back afterwards."""
    if not 0 <= expert < len(experts.down_proj):
        raise ValueError(f"expert must be between 0 and {len(experts.down_proj) - 1}, got {expert}")
    with torch.no_grad():
        kept = experts.down_proj[expert].clone()
        experts.down_proj[expert] = 0
        try:
            yield
        finally:
            experts.down_proj[expert] = kept
