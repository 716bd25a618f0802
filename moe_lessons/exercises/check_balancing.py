"""Lesson 06: who finds a place where experts fill up, the auxiliary loss, and one bias update."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_lessons.exercises.compare import Comparison, agree
from moe_lessons.exercises.exercise import Exercise, Problem
from moe_lessons.nn import (
    Routing,
    SigmoidRouter,
    TopKRouter,
    apply_capacity,
    expert_capacity,
    load_balancing_loss,
    update_expert_bias,
)

SIZES = ((20, 8, 1), (13, 5, 2), (4, 4, 1), (30, 6, 3))  # tokens T, experts E, top_k K


def routings() -> list[Routing]:
    """An uneven one of each size."""
    logits = [torch.randn(T, E) + torch.linspace(0, 1.5, E) for T, E, _ in SIZES]
    return [TopKRouter(4, E, K).choose(scores) for scores, (_, E, K) in zip(logits, SIZES)]


def routing_of(probs: Tensor, topk_indices: Tensor) -> Routing:
    return Routing.from_topk(probs.log(), probs, topk_indices, probs.gather(1, topk_indices))


def shares(idx: Tensor, num_experts: int) -> Tensor:
    """(E,) the share of all assignments (T, K) that each expert has."""
    return torch.bincount(idx.flatten(), minlength=num_experts) / idx.numel()


# --- places --------------------------------------------------------------------------------------------------------


def kept_by_package(topk_indices: Tensor, num_experts: int, factor: float) -> Tensor:
    """(T, K): which assignments `apply_capacity` keeps."""
    T, K = topk_indices.shape
    routing = routing_of(torch.full((T, num_experts), 1 / num_experts), topk_indices)
    cut = apply_capacity(routing, expert_capacity(factor, K, T, num_experts))
    kept = F.one_hot(cut.token_idx * num_experts + cut.expert_idx, T * num_experts).sum(0) > 0  # (T·E,)
    return kept.view(T, num_experts).gather(1, topk_indices)


def in_turn(idx: Tensor, capacity: int, order: list[tuple[int, int]]) -> Tensor:
    """(T, K): which assignments find a place, when they come in this order of (token, choice)."""
    kept, taken = torch.zeros_like(idx, dtype=torch.bool), {}
    for token, choice in order:
        expert = idx[token, choice].item()
        taken[expert] = taken.get(expert, 0) + 1
        kept[token, choice] = taken[expert] <= capacity
    return kept


def choices_first(idx: Tensor) -> list[tuple[int, int]]:
    """All first choices, then all second ones, and so on."""
    return [(token, choice) for choice in range(idx.shape[1]) for token in range(len(idx))]


def places_cases() -> list[tuple]:
    return [(r.topk_indices, E, f) for r, (_, E, _), f in zip(routings(), SIZES, (0.75, 1.0, 1.0, 1.25))]


def my_places(topk_indices, num_experts, factor):
    num_tokens, top_k = topk_indices.shape
    capacity = -(-factor * top_k * num_tokens // num_experts)  # rounded up
    taken = [0] * num_experts
    kept = torch.zeros(num_tokens, top_k, dtype=torch.bool)
    for choice in range(top_k):  # all first choices before any second one
        for token in range(num_tokens):
            expert = topk_indices[token, choice]
            kept[token, choice] = taken[expert] < capacity
            taken[expert] += 1
    return kept


PLACES_MISTAKES = {
    lambda i, e, f: in_turn(i, math.floor(f * i.numel() / e), choices_first(i)): (
        "C is rounded up, not down: ⌈factor · K · T / E⌉, math.ceil."
    ),
    lambda i, e, f: in_turn(i, math.ceil(f * len(i) / e), choices_first(i)): (
        "K is missing in C: there are K · T assignments to place."
    ),
    lambda i, e, f: in_turn(i, math.ceil(f * i.numel() / e), sorted(choices_first(i))): (
        "You placed all choices of a token before the next token came. All first choices come before any second one."
    ),
    lambda i, e, f: in_turn(i, math.ceil(f * i.numel() / e), choices_first(i)[::-1]): (
        "The last tokens took the places. The tokens come in their order: token 0 first."
    ),
    lambda i, e, f: ~in_turn(i, math.ceil(f * i.numel() / e), choices_first(i)): (
        "Turned round: return True for what finds a place, False for what is dropped."
    ),
}

find_places = Exercise(
    "find_places", lesson="06", stars=2, solution=my_places,
    check=Comparison(kept_by_package, "what is kept", places_cases, PLACES_MISTAKES, axes=("token", "choice")),
    hints=(
        "Keep a list of how many places are taken, one number for each expert. The outer loop runs over the choices.",
        "`taken = [0] * num_experts`. An assignment is kept where `taken[expert] < capacity`.",
    ),
)  # fmt: skip

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
}

new_bias = Exercise(
    "new_bias", lesson="06", stars=1, solution=my_bias,
    check=Comparison(bias_by_package, "the bias", bias_cases, BIAS_MISTAKES, axes=("expert",), in_place=True),
    hints=(
        "Count the load of each expert first, then compare with the mean load. Only the direction counts.",
        "`torch.bincount(topk_indices.flatten(), minlength=len(bias))` counts; `.sign()` is 1, 0 or −1.",
    ),
)  # fmt: skip
