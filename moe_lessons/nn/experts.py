"""E feed-forward networks in one place: their weights stacked along a first dimension."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moe_lessons.nn.ffn import ACTIVATIONS, GATED, FeedForward, make_weight
from moe_lessons.support.errors import check_choice, check_positive_int, check_whole


class Experts(nn.Module):
    """The weights of E experts, each a `FeedForward`, stacked: expert e is [e] of every weight.

    `gate_up_proj` (E, 2F, D) for SwiGLU or `up_proj` (E, F, D) for GELU and ReLU; `down_proj` (E, D, F).
    bias: also `gate_up_proj_bias` (E, 2F) or `up_proj_bias` (E, F), and `down_proj_bias` (E, D), as in gpt-oss.
    weight_input: the routing weight multiplies what goes into the expert, as in Llama 4, not what comes out.
    How tokens reach their experts is not decided here: see `dispatch`.

    >>> Experts(num_experts=8, d_model=4, d_ff=16).gate_up_proj.shape
    torch.Size([8, 32, 4])
    """

    def __init__(
        self, num_experts: int, d_model: int, d_ff: int, activation="swiglu", *, bias=False, weight_input=False
    ):
        super().__init__()
        self.num_experts = check_positive_int("num_experts", num_experts)
        self.d_model = check_positive_int("d_model", d_model)
        self.d_ff = check_positive_int("d_ff", d_ff)
        self.activation = check_choice("activation", activation, ACTIVATIONS)
        self.weight_input = weight_input
        self.in_name, width = ("gate_up_proj", 2 * d_ff) if activation in GATED else ("up_proj", d_ff)
        self.register_parameter(self.in_name, make_weight(num_experts, width, d_model))
        self.down_proj = make_weight(num_experts, d_model, d_ff)
        for name, size in ((f"{self.in_name}_bias", width), ("down_proj_bias", d_model)):
            self.register_parameter(name, nn.Parameter(torch.zeros(num_experts, size)) if bias else None)

    in_proj = FeedForward.in_proj  # (E, 2F, D) or (E, F, D)

    @property
    def in_bias(self) -> Tensor | None:
        """Its bias, (E, 2F) or (E, F), or None."""
        return getattr(self, f"{self.in_name}_bias")

    def hidden(self, pre: Tensor, weight: Tensor, which) -> Tensor:
        """Go from pre = x·W_inᵀ (..., 2F or F) to (..., F), by weight (...) and the biases at the index `which`."""
        weight = weight[..., None]
        if self.weight_input:
            pre = pre * weight  # (weight · x)·W_inᵀ
        if self.in_bias is not None:
            pre = pre + self.in_bias[which]
        hidden = ACTIVATIONS[self.activation](pre)
        return hidden if self.weight_input else hidden * weight  # before the product that makes it D wide

    def extra_repr(self) -> str:
        text = f"num_experts={self.num_experts}, d_model={self.d_model}, d_ff={self.d_ff}"
        text += f", activation={self.activation!r}" + (", bias=True" if self.down_proj_bias is not None else "")
        return text + (", weight_input=True" if self.weight_input else "")


@contextmanager
def muted(experts: nn.Module, expert: int) -> Iterator[None]:
    """Within it, the output of one expert is zero, and nothing has a gradient: what is lost without it?"""
    check_whole("expert", expert, 0, most := len(experts.down_proj) - 1, f"between 0 and {most}")
    last = [w for w in (experts.down_proj, getattr(experts, "down_proj_bias", None)) if w is not None]
    with torch.no_grad():
        kept = [weight[expert].clone() for weight in last]
        for weight in last:
            weight[expert] = 0
        try:
            yield
        finally:
            for weight, copy in zip(last, kept):
                weight[expert] = copy
