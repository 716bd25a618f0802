"""The mixture of experts as the papers write it: one token and one expert at a time, in plain loops.
Slow and obvious on purpose: it reads the weights and settings of our modules, and calls none of them."""

import math
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

Assignment = tuple[int, int, Tensor]  # token, expert, weight


def activate(up: Tensor, activation: str) -> Tensor:
    """One row. SwiGLU: arXiv:2002.05202, eq. 6; GELU: arXiv:1606.08415, eq. 2."""
    gate, value = up[: len(up) // 2], up[len(up) // 2 :]
    if activation == "swiglu":
        return gate / (1 + torch.exp(-gate)) * value
    if activation == "gelu":
        return up * (1 + torch.erf(up / math.sqrt(2))) / 2
    return torch.where(up > 0, up, 0)


def ffn_row(x: Tensor, ffn) -> Tensor:
    """A dense FFN on one token: x (D,) -> (D,)."""
    return ffn.down_proj @ activate(ffn.in_proj @ x, ffn.activation)


def expert_row(x: Tensor, experts, expert: int) -> Tensor:
    """One expert on one token: x (D,) -> (D,)."""
    return experts.down_proj[expert] @ activate(experts.in_proj[expert] @ x, experts.activation)


def by_rows(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.stack([run(row) for row in x]) if len(x) else x.clone()


def combine(x: Tensor, assignments: Iterable[Assignment], experts) -> Tensor:
    """y[t] = Σ weight · expert(x[t]): arXiv:1701.06538, eq. 1."""
    rows = [torch.zeros_like(row) for row in x]
    for token, expert, weight in assignments:
        rows[token] = rows[token] + weight * expert_row(x[token], experts, expert)
    return torch.stack(rows) if rows else x.clone()


def softmax_row(logits: Tensor) -> Tensor:
    powers = torch.exp(logits - logits.detach().max())
    return powers / powers.sum()


def logits_row(x: Tensor, router) -> Tensor:
    logits = router.weight @ x
    return logits if router.bias is None else logits + router.bias


def assignments_of(router, x: Tensor) -> list[Assignment]:
    """What a router without noise decides, in order of priority."""
    if not router.causal:
        return experts_choose(x, router)
    return in_order_of_choice(choose_by_sigmoid(x, router) if hasattr(router, "expert_bias") else choose(x, router))


def in_order_of_choice(chosen: list[list[tuple[int, Tensor]]]) -> list[Assignment]:
    """All first choices come first, then all second ones. chosen: (expert, weight) of each token, best first."""
    top_k = len(chosen[0]) if chosen else 0
    return [(token, *choices[choice]) for choice in range(top_k) for token, choices in enumerate(chosen)]


def choose(x: Tensor, router) -> list[list[tuple[int, Tensor]]]:
    """Softmax, the K best of each token, their weights."""
    chosen = []
    for row in x:
        probs = softmax_row(logits_row(row, router))
        best = sorted(range(len(probs)), key=lambda e: -probs[e].item())[: router.top_k]
        total = sum(probs[e] for e in best) if router.norm_topk_prob else 1
        chosen.append([(e, probs[e] / total) for e in best])
    return chosen


def choose_by_sigmoid(x: Tensor, router) -> list[list[tuple[int, Tensor]]]:
    """DeepSeek-V3 (arXiv:2412.19437, eq. 13 to 16), token by token: the bias selects, the score alone weighs."""
    chosen = []
    for row in x:
        scores = [1 / (1 + torch.exp(-logit)) for logit in logits_row(row, router)]
        biased = [s.item() + b.item() for s, b in zip(scores, router.expert_bias)]
        best = sorted(range(len(scores)), key=lambda e: -biased[e])[: router.top_k]
        total = sum(scores[e] for e in best) if router.norm_topk_prob else 1
        chosen.append([(e, scores[e] / total) for e in best])
    return chosen


def experts_choose(x: Tensor, router) -> list[Assignment]:
    """Expert choice (arXiv:2202.09368): one expert after the other takes its favourite tokens, all firsts first."""
    num_experts = router.num_experts
    probs = [softmax_row(logits_row(row, router)) for row in x]
    capacity = 0
    while capacity * num_experts < router.top_k * len(x):  # C = ⌈K·T/E⌉
        capacity += 1
    taken = [sorted(range(len(x)), key=lambda t: -probs[t][e].item())[:capacity] for e in range(num_experts)]
    return [(taken[e][rank], e, probs[taken[e][rank]][e]) for rank in range(capacity) for e in range(num_experts)]


def mix_softly(moe, x: Tensor) -> Tensor:
    """Soft MoE (arXiv:2308.00951, eq. 1 to 3) of one sequence x (T, D), slot by slot and token by token."""
    outputs, rows = [], []
    for slot, phi in enumerate(moe.phi if len(x) else ()):
        weights = softmax_row(torch.stack([row @ phi for row in x]))  # over the tokens
        mixture = sum(weight * row for weight, row in zip(weights, x))
        outputs.append(expert_row(mixture, moe.experts, slot // moe.slots_per_expert))
    for row in x:
        weights = softmax_row(torch.stack([row @ phi for phi in moe.phi]))  # over the slots
        rows.append(sum(weight * output for weight, output in zip(weights, outputs)))
    return torch.stack(rows) if rows else x.clone()


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


def surest_first(assignments: list[Assignment], router_probs: Tensor) -> list[Assignment]:
    """The queue of V-MoE (arXiv:2106.05974, section 4): choice by choice, largest probability first."""
    choices, seen = [], {}
    for token, _, _ in assignments:
        choices.append(seen.get(token, 0))
        seen[token] = choices[-1] + 1
    queue = sorted(range(len(assignments)), key=lambda a: (choices[a], -max(router_probs[assignments[a][0]].tolist())))
    return [assignments[a] for a in queue]


def gradients(y: Tensor, inputs: Iterable[Tensor], cotangent: Tensor) -> list[Tensor]:
    """The gradient of Σ y · cotangent for each of `inputs`, zero for those that y does not depend on."""
    inputs = list(inputs)
    if not y.requires_grad:
        return [torch.zeros_like(value) for value in inputs]
    return list(torch.autograd.grad(y, inputs, cotangent, allow_unused=True, materialize_grads=True))


def assert_same(y: Tensor, expected: Tensor, inputs: Iterable[Tensor], **tolerance: float) -> None:
    """The same values, and the same gradients for all of `inputs`."""
    torch.testing.assert_close(y, expected, **tolerance)
    inputs, cotangent = list(inputs), torch.randn_like(y)
    ours, theirs = gradients(y, inputs, cotangent), gradients(expected, inputs, cotangent)
    torch.testing.assert_close(ours, theirs, **tolerance)


def refused(message: str):
    """Expect a ValueError of just this message, a regular expression, from what stands inside."""
    return pytest.raises(ValueError, match=f"^{message}$")
