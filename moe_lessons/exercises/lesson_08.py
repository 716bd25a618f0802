"""Lesson 08: the auxiliary loss and one bias update."""

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import Problem, agree, exercise


def uneven() -> list[tuple[Tensor, Tensor]]:
    """Draw router_probs (T, E) and topk_indices (T, K)."""
    sizes = (13, 5, 2), (20, 8, 1), (4, 4, 1), (30, 6, 3)  # T, E, K
    drawn = [((torch.randn(T, E) - torch.linspace(0, 1.5, E)).softmax(1), K) for T, E, K in sizes]
    return [(probs, probs.topk(K).indices) for probs, K in drawn]


def shares(idx: Tensor, num_experts: int) -> Tensor:  # (E,) of all assignments
    return torch.bincount(idx.flatten(), minlength=num_experts) / idx.numel()


def same_gradient(loss: Tensor, router_probs: Tensor, topk_indices: Tensor) -> None:
    (wanted,) = torch.autograd.grad(my_balancing_loss(router_probs, topk_indices), router_probs)
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise Problem(NO_GRADIENT)
    if not agree(*torch.autograd.grad(loss, router_probs), wanted):
        raise Problem("The number is right, but its gradient by router_probs is not.")


def my_balancing_loss(router_probs, topk_indices):
    num_experts = router_probs.shape[1]
    counts = torch.bincount(topk_indices.flatten(), minlength=num_experts)  # (E,)
    f = counts / topk_indices.numel()  # of all T · K assignments
    P = router_probs.mean(dim=0)  # over the tokens
    return num_experts * (f * P).sum()


NO_GRADIENT = "The number is right, but no gradient reaches the router. Keep P as a tensor."
LOSS_MISTAKES = [
    (lambda p, i: p.shape[1] * p.mean(0).square().sum(),
     "You used the mean probability for f, too. f is counted: the share of the assignments in topk_indices."),
    (lambda p, i: (shares(i, p.shape[1]) * p.mean(0)).sum(), "The factor E is missing: a uniform load should cost 1."),
    (lambda p, i: p.shape[1] * i.shape[1] * (shares(i, p.shape[1]) * p.mean(0)).sum(),
     "Yours is K times too large: divide the counts by T · K, all assignments, so that f sums to 1. (Hugging Face's "
     "loss is K times this one: mind it when you take over a coefficient.)"),
    (lambda p, i: p.shape[1] * (shares(i, p.shape[1]) * p.sum(0)).sum(),
     "P is a sum over the tokens. Take their mean, so that the loss does not grow with T."),
    (lambda p, i: p.shape[1] * p.gather(1, i).mean(),
     "You multiplied token by token. First average over all tokens, then multiply: f · P for each expert."),
]  # fmt: skip


@exercise(2, my_balancing_loss, LOSS_MISTAKES, "the loss", then=same_gradient)
def balancing_loss() -> list[tuple]:
    return [(probs.requires_grad_(), indices) for probs, indices in uneven()]


def my_bias(bias, topk_indices, rate):
    load = torch.bincount(topk_indices.flatten(), minlength=len(bias)).float()  # (E,)
    return bias + rate * (load.mean() - load).sign()


BIAS_MISTAKES = [
    (lambda b, i, rate: b + rate * (shares(i, len(b)) - 1 / len(b)).sign(),
     "The sign is wrong: the bias of an expert with too few tokens must rise."),
    (lambda b, i, rate: b + rate * (1 / len(b) - shares(i, len(b))),
     "You moved the bias by how much the share is off. Only its sign counts: each moves by rate, up or down."),
    (lambda b, i, rate: b + rate * (i.numel() / len(b) - shares(i, len(b)) * i.numel()),
     "You moved the bias by how many tokens the load is off. Only its sign counts: each moves by rate, up or down."),
    (lambda b, i, rate: b + rate * (len(i) / len(b) - shares(i, len(b)) * i.numel()).sign(),
     "The mean load is T · K / E: each of the T tokens makes K assignments."),
    (lambda b, i, rate: b + rate * torch.where(shares(i, len(b)) < 1 / len(b), 1, -1),
     "An expert with exactly the mean load goes down. It should stay as it was."),
]  # fmt: skip


@exercise(1, my_bias, BIAS_MISTAKES, "the bias", axes=("expert",))
def new_bias() -> list[tuple]:
    return [(torch.linspace(-0.2, 0.3, probs.shape[1]), indices, 0.01) for probs, indices in uneven()]
