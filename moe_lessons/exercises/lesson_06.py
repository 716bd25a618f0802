"""Lesson 06: the auxiliary loss, one bias update, and a choice by score and bias."""

import torch
from torch import Tensor

from moe_lessons.exercises.compare import Comparison, agree
from moe_lessons.exercises.exercise import Exercise, Problem
from moe_lessons.exercises.lesson_02 import top_mask
from moe_lessons.nn import Routing, SigmoidRouter, TopKRouter, load_balancing_loss, update_expert_bias
from moe_lessons.nn.dispatch import weight_matrix

SIZES = ((13, 5, 2), (20, 8, 1), (4, 4, 1), (30, 6, 3))  # tokens T, experts E, top_k K


def routings() -> list[Routing]:
    """An uneven one of each size. In the second the last experts have nothing."""
    logits = [torch.randn(T, E) - torch.linspace(0, 1.5, E) for T, E, _ in SIZES]
    return [TopKRouter(4, E, K).choose(scores) for scores, (_, E, K) in zip(logits, SIZES)]


def routing_of(probs: Tensor, topk_indices: Tensor) -> Routing:
    return Routing.from_topk(probs.log(), probs, topk_indices, probs.gather(1, topk_indices))


def shares(idx: Tensor, num_experts: int) -> Tensor:
    """(E,) the share of all assignments (T, K) that each expert has."""
    return torch.bincount(idx.flatten(), minlength=num_experts) / idx.numel()


# --- the auxiliary loss --------------------------------------------------------------------------------------------


def loss_by_package(router_probs: Tensor, topk_indices: Tensor) -> Tensor:
    return load_balancing_loss(routing_of(router_probs, topk_indices))


def loss_cases() -> list[tuple]:
    return [(routing.router_probs.clone().requires_grad_(), routing.topk_indices) for routing in routings()]


def same_gradient(loss: Tensor, router_probs: Tensor, topk_indices: Tensor) -> None:
    """Raise Problem where the gradient of a right loss by the probabilities is not the package's."""
    (wanted,) = torch.autograd.grad(loss_by_package(router_probs, topk_indices), router_probs)
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise Problem("The number is right, but no gradient reaches the router. Keep P as a tensor.", known=True)
    if not agree(*torch.autograd.grad(loss, router_probs), wanted):
        raise Problem("The number is right, but its gradient by router_probs is not.")


def my_balancing_loss(router_probs, topk_indices):
    num_experts = router_probs.shape[1]
    counts = torch.bincount(topk_indices.flatten(), minlength=num_experts)  # (E,)
    f = counts / topk_indices.numel()  # of all T · K assignments
    P = router_probs.mean(dim=0)  # over the tokens
    return num_experts * (f * P).sum()


LOSS_MISTAKES = {
    lambda p, i: p.shape[1] * p.mean(0).square().sum(): (
        "You used the mean probability for f, too. f is counted: the share of the assignments in topk_indices."
    ),
    lambda p, i: (shares(i, p.shape[1]) * p.mean(0)).sum(): "The factor E is missing: an even load should cost 1.",
    lambda p, i: p.shape[1] * i.shape[1] * (shares(i, p.shape[1]) * p.mean(0)).sum(): (
        "Yours is K times too large: divide the counts by T · K, all assignments, so that f sums to 1. (Hugging Face's "
        "loss is K times this one: mind it when you take over a coefficient.)"
    ),
    lambda p, i: p.shape[1] * (shares(i, p.shape[1]) * p.mean(1)[: p.shape[1]]).sum(): (
        "P is a mean over the wrong axis. It must have a number for each expert: the mean over the tokens, dim=0."
    ),
    lambda p, i: p.shape[1] * (shares(i, p.shape[1]) * p.sum(0)).sum(): (
        "P is a sum over the tokens. Take their mean, so that the loss does not grow with T."
    ),
    lambda p, i: p.shape[1] * p.gather(1, i).mean(): (
        "You multiplied token by token. First average over all tokens, then multiply: f · P for each expert."
    ),
    lambda p, i: loss_by_package(p.detach(), i): (
        "The number is right, but no gradient reaches the router. Keep P as a tensor."
    ),
}

balancing_loss = Exercise(
    "balancing_loss", lesson="06", stars=2, solution=my_balancing_loss,
    check=Comparison(loss_by_package, "the loss", loss_cases, LOSS_MISTAKES, then=same_gradient),
    hints=(
        "f and P have a number for each expert. Which is counted, which is a mean? An even load costs 1.",
        "`torch.bincount(topk_indices.flatten(), minlength=num_experts)` counts.",
    ),
)  # fmt: skip

# --- the bias update -----------------------------------------------------------------------------------------------


@torch.no_grad()
def bias_by_package(bias: Tensor, topk_indices: Tensor, rate: float) -> Tensor:
    """The bias (E,) after one `update_expert_bias`."""
    router = SigmoidRouter(4, len(bias), topk_indices.shape[1])
    router.expert_bias.copy_(bias)
    update_expert_bias(router, routing_of(torch.ones(len(topk_indices), len(bias)), topk_indices), rate)
    return router.expert_bias


def bias_cases() -> list[tuple]:
    return [(torch.linspace(-0.2, 0.3, E), r.topk_indices, 0.01) for r, (_, E, _) in zip(routings(), SIZES)]


def my_bias(bias, topk_indices, rate):
    load = torch.bincount(topk_indices.flatten(), minlength=len(bias)).float()  # (E,)
    return bias + rate * (load.mean() - load).sign()


BIAS_MISTAKES = {
    lambda b, i, rate: b + rate * (shares(i, len(b)) - 1 / len(b)).sign(): (
        "The direction is turned round: an expert that had too little must become easier to choose."
    ),
    lambda b, i, rate: b + rate * (1 / len(b) - shares(i, len(b))): (
        "You moved the bias by how much the share is off. Only its sign counts: each moves by rate, up or down."
    ),
    lambda b, i, rate: b + rate * (i.numel() / len(b) - shares(i, len(b)) * i.numel()): (
        "You moved the bias by how many tokens the load is off. Only its sign counts: each moves by rate, up or down."
    ),
    lambda b, i, rate: b + rate * (len(i) / len(b) - shares(i, len(b)) * i.numel()).sign(): (
        "The mean load is T · K / E: each of the T tokens makes K assignments."
    ),
    lambda b, i, rate: b + rate * torch.where(shares(i, len(b)) < 1 / len(b), 1, -1): (
        "An expert with exactly the mean load goes down. It should stay as it was."
    ),
}

new_bias = Exercise(
    "new_bias", lesson="06", stars=1, solution=my_bias,
    check=Comparison(bias_by_package, "the bias", bias_cases, BIAS_MISTAKES, axes=("expert",), in_place=True),
    hints=(
        "Count the load of each expert first, then compare with the mean load. Only the direction counts.",
        "`torch.bincount(topk_indices.flatten(), minlength=len(bias))` counts; `.sign()` is 1, 0 or −1.",
    ),
)  # fmt: skip

# --- a choice by score and bias --------------------------------------------------------------------------------------


@torch.no_grad()
def weights_by_router(scores: Tensor, bias: Tensor, top_k: int) -> Tensor:
    """What the package's router makes of the scores: (T, E)."""
    router = SigmoidRouter(4, scores.shape[1], top_k, norm_topk_prob=True)
    router.expert_bias.copy_(bias)
    routing = router.choose(scores.logit())
    return weight_matrix(scores, routing, routing.weight).T


def biased_cases() -> list[tuple]:
    sizes = (5, 4, 2), (12, 8, 3), (1, 6, 2), (7, 16, 4)  # tokens T, experts E, top_k K
    return [(0.1 + 0.8 * torch.rand(T, E), 0.5 * torch.randn(E), K) for T, E, K in sizes]


def my_biased_weights(scores, bias, top_k):
    chosen = (scores + bias).topk(top_k, dim=1).indices  # (T, K): the bias counts here …
    kept = torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))  # (T, E): … and not here
    return kept / kept.sum(dim=1, keepdim=True)


def to_one(values: Tensor) -> Tensor:
    return values / values.sum(1, keepdim=True)


CHOICE_MISTAKES = {
    lambda s, b, k: to_one((s + b) * top_mask(s + b, k)): (
        "The right experts, but the bias is in their weights. It is there to choose: take the weights from the scores."
    ),
    lambda s, b, k: to_one(s * top_mask(s, k)): (
        "You chose by the scores alone. Add the bias before you take the K largest."
    ),
    lambda s, b, k: to_one((s + b) * top_mask(s, k)): (
        "The other way round: the bias counts for the choice, and the weights come from the scores."
    ),
    lambda s, b, k: to_one(s * top_mask(s - b, k)): (
        "You subtracted the bias. A larger one must make its expert easier to choose."
    ),
    lambda s, b, k: s * top_mask(s + b, k): (
        "The right experts, with their scores. Divide these by their sum, row by row."
    ),
    lambda s, b, k: to_one(s) * top_mask(s + b, k): (
        "You divided by the sum of all E scores. Divide by the sum of the K that were chosen."
    ),
    lambda s, b, k: s.where(top_mask(s + b, k), -torch.inf).softmax(1): (
        "The scores are between 0 and 1 already. No softmax: only divide them by their sum."
    ),
    lambda s, b, k: to_one(top_mask(s + b, k).float()): (
        "The right experts, but all with the same weight. Weigh each by its score."
    ),
}

biased_weights = Exercise(
    "biased_weights",
    lesson="06",
    stars=2,
    check=Comparison(weights_by_router, "the weights", biased_cases, CHOICE_MISTAKES, axes=("token", "expert")),
    hints=(
        "Two tables of the same shape: one says who is chosen, the other what a chosen expert weighs.",
        "`chosen = (scores + bias).topk(top_k).indices`, and `scores.gather(1, chosen)` are the scores of these.",
    ),
    solution=my_biased_weights,
)
