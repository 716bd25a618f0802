"""The exercises of lesson 05: how much an uneven load slows a layer down, and where one token pushes the scores."""

from collections.abc import Callable

import torch
from torch import Tensor

from moe_lessons.exercises.check_values import Mistakes, check_values
from moe_lessons.exercises.exercise import Check
from moe_lessons.nn import seeded


def slowdown_of(loads: Tensor, num_devices: int) -> float:
    """loads (E,), the tokens of each expert, on equal devices with neighbouring experts -> busiest device over mean."""
    work = [sum(part) for part in torch.as_tensor(loads).view(num_devices, -1).tolist()]
    return max(work) / (sum(work) / num_devices)


SLOWDOWN_MISTAKES: Mistakes = {
    lambda loads, n: loads.max() / loads.mean(): (
        "This is right with one expert on each device. Where a device has several, add up their loads first."
    ),
    lambda loads, n: loads.view(n, -1).sum(dim=1).max() / loads.sum(): (
        "This is the share of the busiest device. Divide by the even share, one device's part of the work."
    ),
    lambda loads, n: loads.view(n, -1).sum(dim=1).max() / loads.mean(): (
        "The mean is over devices, not over experts: each device has several."
    ),
    lambda loads, n: loads.view(-1, n).sum(dim=0).max() / (loads.sum() / n): (
        "You deal the experts out like cards. Neighbours belong together: device 0 has the first E / num_devices."
    ),
    lambda loads, n: loads.view(n, -1).sum(dim=1).max(): "These are the busiest device's tokens. Divide by the mean.",
}


def check_slowdown(function: Callable[[Tensor, int], float | None]) -> Check:
    """Compare `function`(loads (E,), num_devices) -> time over that of an even load with a loop over the devices.

    >>> check_slowdown(slowdown_of)
    ✔ Right: the slowdown agrees in all 5 cases.
    """
    made = torch.Generator().manual_seed(0)
    sizes = (4, 2), (4, 4), (8, 2), (12, 4), (6, 1)
    cases = [(torch.randint(1, 30, (num_experts,), generator=made).float(), n) for num_experts, n in sizes]
    return check_values(function, slowdown_of, cases, SLOWDOWN_MISTAKES, "the slowdown")


def push_of(probs: Tensor, chosen: int, gain: float) -> Tensor:
    """Minus the gradient (E,) of the loss by the scores whose softmax is probs (E,).

    gain: how far the loss falls for each unit by which the probability of the chosen expert rises.
    """
    scores = probs.detach().log().requires_grad_()  # whose softmax is probs
    (gradient,) = torch.autograd.grad(-gain * scores.softmax(dim=0)[chosen], scores)
    return -gradient


def one_hot(probs: Tensor, chosen: int) -> Tensor:
    return torch.eye(len(probs))[chosen]


PUSH_MISTAKES: Mistakes = {
    lambda p, c, gain: gain * one_hot(p, c): "Not only the chosen score is pushed: a change of any score changes p(c).",
    lambda p, c, gain: gain * p[c] * (1 - p[c]) * one_hot(p, c): (
        "The chosen score is right, and the others are pushed as well: by −gain · p(c) · p(e)."
    ),
    lambda p, c, gain: gain * (one_hot(p, c) - p): (
        "This is the push of a cross entropy, on log p(c). Here p(c) itself is in the output: a factor p(c) is missing."
    ),
    lambda p, c, gain: -push_of(p, c, gain): "The sign is wrong: a gain pushes the chosen score upwards.",
}


def check_push(function: Callable[[Tensor, int, float], Tensor | None]) -> Check:
    """Compare `function`(probs (E,), chosen, gain) -> (E,) with torch's gradient of the softmax.

    >>> check_push(push_of)
    ✔ Right: the push agrees in all 4 cases.
    """
    with seeded(0):
        sizes = (2, 0, 1.0), (3, 2, 0.5), (8, 5, -1.5), (4, 1, 3.0)
        cases = [((2 * torch.randn(num_experts)).softmax(dim=0), c, gain) for num_experts, c, gain in sizes]
    return check_values(function, push_of, cases, PUSH_MISTAKES, "the push")
