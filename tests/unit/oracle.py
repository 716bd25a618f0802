"""The mixture of experts as the papers write it: one token and one expert at a time, in plain loops.

Slow and obvious on purpose. Nothing here calls moe_lessons.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

Assignment = tuple[int, int, Tensor]  # token, expert, weight


def ffn_row(x: Tensor, in_proj: Tensor, down_proj: Tensor, activation: str) -> Tensor:
    """One expert on one token: x (D,) -> (D,). SwiGLU: arXiv:2002.05202, eq. 6; GELU: arXiv:1606.08415, eq. 2."""
    up = in_proj @ x
    if activation == "swiglu":
        gate, value = up[: len(up) // 2], up[len(up) // 2 :]
        hidden = gate / (1 + torch.exp(-gate)) * value
    elif activation == "gelu":
        hidden = up * (1 + torch.erf(up / math.sqrt(2))) / 2
    else:
        hidden = torch.where(up > 0, up, 0)
    return down_proj @ hidden


def softmax_row(logits: Tensor) -> Tensor:
    powers = torch.exp(logits - logits.detach().max())
    return powers / powers.sum()


def choose(x: Tensor, router_weight: Tensor, top_k: int, norm: bool) -> list[Assignment]:
    """Softmax, the K best of each token, their weights. All first choices come first, then all second ones."""
    chosen = []
    for row in x:
        probs = softmax_row(router_weight @ row)
        best = sorted(range(len(probs)), key=lambda e: -probs[e].item())[:top_k]
        total = sum(probs[e] for e in best) if norm else 1
        chosen.append([(e, probs[e] / total) for e in best])
    return [(t, *chosen[t][choice]) for choice in range(top_k) for t in range(len(x))]


def keep_within(assignments: Iterable[Assignment], capacity: int, num_experts: int) -> tuple[list, list[int]]:
    """First come, first served: the assignments that find a place, and how many each expert turned away."""
    taken, dropped, kept = [0] * num_experts, [0] * num_experts, []
    for assignment in assignments:
        expert = assignment[1]
        if taken[expert] < capacity:
            taken[expert] += 1
            kept.append(assignment)
        else:
            dropped[expert] += 1
    return kept, dropped


def combine(
    x: Tensor, assignments: Iterable[Assignment], in_proj: Tensor, down_proj: Tensor, activation: str
) -> Tensor:
    """y[t] = Σ weight · expert(x[t]), one assignment after the other: arXiv:1701.06538, eq. 1."""
    rows = [torch.zeros_like(row) for row in x]
    for token, expert, weight in assignments:
        rows[token] = rows[token] + weight * ffn_row(x[token], in_proj[expert], down_proj[expert], activation)
    return torch.stack(rows) if rows else x.clone()


def gradients(y: Tensor, inputs: Iterable[Tensor], cotangent: Tensor) -> list[Tensor]:
    """The gradient of Σ y · cotangent for each of `inputs`, zero for those that y does not depend on."""
    inputs = list(inputs)
    if not y.requires_grad:
        return [torch.zeros_like(value) for value in inputs]
    return list(torch.autograd.grad(y, inputs, cotangent, allow_unused=True, materialize_grads=True))
