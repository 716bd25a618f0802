"""Soft MoE: no token is assigned to anyone; every expert works on mixtures of all tokens."""

from torch import Tensor, nn

from moe_lessons.nn.experts import Experts
from moe_lessons.nn.ffn import ACTIVATIONS, make_weight
from moe_lessons.support.errors import check_input, check_positive_int


class SoftMoE(nn.Module):
    """Soft mixture of experts (arXiv:2308.00951, section 2.1).

    Each expert has `slots_per_expert` slots; S = E · slots_per_expert. With logits = x·Φᵀ (..., T, S):
    - what a slot holds:  the mean of all tokens, weighted by softmax over the tokens (eq. 1);
    - what a token gets:  the mean of all slots' outputs, weighted by softmax over the slots (eq. 2).
    All of it is smooth: nothing is dropped, no expert starves, and no balancing loss is needed. The price: every token
    of a sequence depends on every other, later ones included, so it cannot generate text token by token.

    `phi` (S, D) holds the slots' parameters. Shapes: x (..., T, D) -> y (..., T, D).

    >>> import torch
    >>> SoftMoE(d_model=4, d_ff=16, num_experts=8)(torch.randn(2, 5, 4)).shape
    torch.Size([2, 5, 4])
    """

    causal = False

    def __init__(self, d_model: int, d_ff: int, num_experts: int, slots_per_expert: int = 1):
        super().__init__()
        self.d_model = check_positive_int("d_model", d_model)
        self.slots_per_expert = check_positive_int("slots_per_expert", slots_per_expert)
        self.experts = Experts(num_experts, d_model, d_ff)
        self.phi = make_weight(num_experts * slots_per_expert, d_model)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.d_model, self.phi.device, self.phi.dtype)
        if x.ndim < 2:
            raise ValueError(f"x must have the shape (..., T, {self.d_model}), got {tuple(x.shape)}")
        logits = x @ self.phi.T  # (..., T, S)
        to_slots, to_tokens = logits.softmax(dim=-2), logits.softmax(dim=-1)  # over the tokens, over the slots
        slots = to_slots.mT @ x  # (..., S, D)
        return to_tokens @ self.run_experts(slots)  # (..., T, D)

    def run_experts(self, slots: Tensor) -> Tensor:
        """Each expert on its own slots: (..., S, D) -> (..., S, D)."""
        rows = slots.unflatten(-2, (self.experts.num_experts, -1)).movedim(-3, 0)  # (E, ..., slots_per_expert, D)
        hidden = ACTIVATIONS[self.experts.activation](rows.flatten(1, -2) @ self.experts.in_proj.mT)  # (E, N, F)
        return (hidden @ self.experts.down_proj.mT).view(rows.shape).movedim(0, -3).flatten(-3, -2)
