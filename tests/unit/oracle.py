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


def expert_row(x: Tensor, experts, expert: int) -> Tensor:
    """`ffn_row` with the weights of one of `experts`, their biases too, and the clamped SwiGLU of gpt-oss."""
    up = experts.in_proj[expert] @ x + (0 if experts.in_bias is None else experts.in_bias[expert])
    if experts.activation == "clamped_swiglu":
        pairs = zip(up[: len(up) // 2], up[len(up) // 2 :])
        gates_and_values = [(gate.clamp(max=7), value.clamp(min=-7, max=7)) for gate, value in pairs]
        hidden = torch.stack([g / (1 + torch.exp(-1.702 * g)) * (v + 1) for g, v in gates_and_values])
    else:
        hidden = ffn_row(up, *(torch.eye(n).to(up) for n in (len(up), experts.down_proj.shape[2])), experts.activation)
    return experts.down_proj[expert] @ hidden + (0 if experts.in_bias is None else experts.down_proj_bias[expert])


def combine_experts(x: Tensor, assignments: Iterable[Assignment], experts) -> Tensor:
    """`combine` for all that experts may have: biases, any activation, the weight on the input (Llama 4)."""
    rows = [torch.zeros_like(row) for row in x]
    for token, expert, weight in assignments:
        if experts.weight_input:
            rows[token] = rows[token] + expert_row(weight * x[token], experts, expert)
        else:
            rows[token] = rows[token] + weight * expert_row(x[token], experts, expert)
    return torch.stack(rows) if rows else x.clone()


def choose_by_sigmoid(
    x: Tensor, router, norm: bool, num_groups: int = 1, topk_groups: int = 1, scale: float = 1.0
) -> list[Assignment]:
    """DeepSeek-V3 (arXiv:2412.19437, eq. 13 to 16), token by token: bias and groups select, the score alone weighs."""
    per_group = router.num_experts // num_groups
    chosen = []
    for row in x:
        scores = [1 / (1 + torch.exp(-(weight @ row))) for weight in router.weight]
        biased = [s.item() + b.item() for s, b in zip(scores, router.expert_bias)]
        groups = [range(g * per_group, (g + 1) * per_group) for g in range(num_groups)]
        groups.sort(key=lambda group: -sum(sorted((biased[e] for e in group), reverse=True)[:2]))
        allowed = [e for group in groups[:topk_groups] for e in group]
        best = sorted(allowed, key=lambda e: -biased[e])[: router.top_k]
        total = sum(scores[e] for e in best) if norm else 1
        chosen.append([(e, scale * scores[e] / total) for e in best])
    return [(t, *chosen[t][choice]) for choice in range(router.top_k) for t in range(len(x))]


def experts_choose(x: Tensor, router_weight: Tensor, top_k: int) -> list[Assignment]:
    """Expert choice (arXiv:2202.09368): one expert after the other takes its favourite tokens, all firsts first."""
    num_experts = len(router_weight)
    probs = [softmax_row(router_weight @ row) for row in x]
    capacity = 0
    while capacity * num_experts < top_k * len(x):  # C = ⌈K·T/E⌉
        capacity += 1
    taken = [sorted(range(len(x)), key=lambda t: -probs[t][e].item())[:capacity] for e in range(num_experts)]
    return [(taken[e][rank], e, probs[taken[e][rank]][e]) for rank in range(capacity) for e in range(num_experts)]


def surest_first(assignments: list[Assignment], router_probs: Tensor) -> list[Assignment]:
    """The queue of V-MoE (arXiv:2106.05974, section 4): choice by choice, largest probability first."""
    choices, seen = [], {}
    for token, _, _ in assignments:
        choices.append(seen.get(token, 0))
        seen[token] = choices[-1] + 1
    queue = sorted(range(len(assignments)), key=lambda a: (choices[a], -max(router_probs[assignments[a][0]].tolist())))
    return [assignments[a] for a in queue]
