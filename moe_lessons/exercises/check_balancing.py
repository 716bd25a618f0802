"""The exercises of lesson 06: the auxiliary loss, one bias update, and who finds a place where experts fill up."""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_lessons.exercises.exercise import Check, Problem, attempt, judge, recognise, same
from moe_lessons.nn import (
    Routing,
    SigmoidRouter,
    TopKRouter,
    apply_capacity,
    expert_capacity,
    load_balancing_loss,
    seeded,
    update_expert_bias,
)

SIZES = ((4, 4, 1), (20, 8, 1), (13, 5, 2), (30, 6, 3))  # tokens T, experts E, top_k K; where T is E, an axis is easy


def shares(idx: Tensor, num_experts: int) -> Tensor:
    """(E,) the share of all assignments (T, K) that each expert has."""
    return torch.bincount(idx.flatten(), minlength=num_experts) / idx.numel()


# what is often written instead, and what to say about it
LOSS_MISTAKES: dict[Callable[[Tensor, Tensor], Tensor], str] = {
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
}
BIAS_MISTAKES: dict[Callable[[Tensor, Tensor, float], Tensor], str] = {
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


KEPT_MISTAKES: dict[Callable[[Tensor, int, float], Tensor], str] = {
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


def agree(given, expected: Tensor, mistakes: Mapping[Callable, str], arguments: tuple, what: str) -> None:
    """Raise Problem where a tensor or number is not as expected: with advice, or the difference."""
    value = given if isinstance(given, Tensor) else torch.as_tensor(given)
    if value.shape != expected.shape:
        raise Problem(f"Not yet: {what} must have the shape {tuple(expected.shape)}, not {tuple(value.shape)}.")
    if not same(value, expected):
        recognise(mistakes, lambda mistake: same(value, mistake(*arguments)))
        off = (value.float() - expected.float()).abs().max()
        raise Problem(f"Not yet: {what} is off by up to {off:.2g}.")


def check_loss(function: Callable[[Tensor, Tensor], Tensor | None]) -> Check:
    """Compare `function`(router_probs (T, E), topk_indices (T, K)) with `load_balancing_loss`, and its gradient.

    >>> check_loss(lambda p, i: p.shape[1] * (shares(i, p.shape[1]) * p.mean(0)).sum())
    ✔ Right: the same loss and the same gradient as the package, for 4 random routings.
    """
    right = f"Right: the same loss and the same gradient as the package, for {len(SIZES)} random routings."
    return judge(enumerate(SIZES), partial(_try_loss, function), right)


def _try_loss(function: Callable, seed: int, sizes: tuple[int, int, int]) -> None:
    logits, routing, at = _routing(seed, sizes)
    arguments = routing.router_probs, routing.topk_indices
    missing = "balancing_loss returns nothing. Write it, then run the cell again."
    loss = attempt(partial(function, *arguments), f"Your function stopped {at}:", missing)
    expected = load_balancing_loss(routing)
    agree(loss, expected, LOSS_MISTAKES, arguments, f"{at}, the loss")
    wanted = torch.autograd.grad(expected, logits, retain_graph=True)[0]
    if not isinstance(loss, Tensor) or not loss.requires_grad or not same(torch.autograd.grad(loss, logits)[0], wanted):
        raise Problem("Not yet: the number is right, but its gradient does not reach the router. Keep P as a tensor.")


def check_bias(function: Callable[[Tensor, Tensor, float], Tensor | None]) -> Check:
    """Compare `function`(bias (E,), topk_indices (T, K), rate) -> new bias (E,) with `update_expert_bias`.

    >>> check_bias(lambda b, i, rate: b + rate * (1 / len(b) - shares(i, len(b))).sign())
    ✔ Right: the same bias as the package's, after one step of 4 random routings.
    """
    right = f"Right: the same bias as the package's, after one step of {len(SIZES)} random routings."
    return judge(enumerate(SIZES), partial(_try_bias, function), right)


@torch.no_grad()
def _try_bias(function: Callable, seed: int, sizes: tuple[int, int, int]) -> None:
    _, routing, at = _routing(seed, sizes)
    router, rate = SigmoidRouter(4, *sizes[1:]), 0.01
    router.expert_bias.copy_(torch.linspace(-0.2, 0.3, sizes[1]))
    arguments = router.expert_bias.clone(), routing.topk_indices, rate
    missing = "new_bias returns nothing. Write it, then run the cell again."
    given = attempt(lambda: function(arguments[0].clone(), *arguments[1:]), f"Your function stopped {at}:", missing)
    update_expert_bias(router, routing, rate)
    agree(given, router.expert_bias, BIAS_MISTAKES, arguments, f"{at}, the bias")


def check_kept(function: Callable[[Tensor, int, float], Tensor | None]) -> Check:
    """Compare `function`(topk_indices (T, K), num_experts, factor) -> kept (T, K), bool, with `apply_capacity`.

    >>> check_kept(lambda i, e, f: in_turn(i, math.ceil(f * i.numel() / e), choices_first(i)))
    ✔ Right: you keep and drop the same assignments as the package, for 4 random routings.
    """
    right = f"Right: you keep and drop the same assignments as the package, for {len(SIZES)} random routings."
    return judge(enumerate(SIZES), partial(_try_kept, function), right)


@torch.no_grad()
def _try_kept(function: Callable, seed: int, sizes: tuple[int, int, int]) -> None:
    (num_tokens, num_experts, top_k), (_, routing, at) = sizes, _routing(seed, sizes)
    factor = (1.0, 0.75, 1.0, 1.25)[seed]
    arguments = routing.topk_indices, num_experts, factor
    missing = "find_places returns nothing. Write it, then run the cell again."
    given = attempt(partial(function, *arguments), f"Your function stopped {at}:", missing)
    cut = apply_capacity(routing, expert_capacity(factor, top_k, num_tokens, num_experts))
    kept = F.one_hot(cut.token_idx * num_experts + cut.expert_idx, num_tokens * num_experts).sum(0) > 0  # (T·E,)
    expected = kept.view(num_tokens, num_experts).gather(1, routing.topk_indices)  # (T, K)
    agree(given, expected, KEPT_MISTAKES, arguments, f"{at} and factor {factor}, what is kept")


def _routing(seed: int, sizes: tuple[int, int, int]) -> tuple[Tensor, Routing, str]:
    """Logits with a gradient, an uneven `Routing` made of them, and its sizes in words."""
    num_tokens, num_experts, top_k = sizes
    with seeded(seed):
        logits = (torch.randn(num_tokens, num_experts) + torch.linspace(0, 1.5, num_experts)).requires_grad_()
        routing = TopKRouter(4, num_experts, top_k).choose(logits)
    return logits, routing, f"with {num_tokens} tokens, {num_experts} experts and K = {top_k}"
