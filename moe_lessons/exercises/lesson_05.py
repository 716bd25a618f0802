"""Lesson 05: how much an uneven load slows a layer down, and where one token pushes the scores."""

import torch
from torch import Tensor

from moe_lessons.exercises.compare import Comparison
from moe_lessons.exercises.exercise import Exercise

# --- slowdown ------------------------------------------------------------------------------------------------------


def by_devices(loads: Tensor, num_devices: int) -> float:
    """loads (E,), the tokens of each expert, on equal devices with neighbouring experts -> busiest device over mean."""
    work = [sum(part) for part in torch.as_tensor(loads).view(num_devices, -1).tolist()]
    return max(work) / (sum(work) / num_devices)


def slowdown_cases() -> list[tuple]:
    sizes = (6, 2), (4, 4), (8, 2), (12, 4), (6, 1)
    return [(torch.randint(1, 30, (num_experts,)).float(), n) for num_experts, n in sizes]


def my_slowdown(loads, num_devices):
    work = loads.view(num_devices, -1).sum(dim=1)  # (num_devices,)
    return work.max() / work.mean()


slowdown = Exercise(
    "slowdown", lesson="05", stars=1, solution=my_slowdown,
    check=Comparison(by_devices, "the slowdown", slowdown_cases, mistakes={
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
        lambda loads, n: loads.view(n, -1).sum(dim=1).max(): (
            "These are the busiest device's tokens. Divide by the mean."
        ),
    }),
    hints=(
        "The layer waits for its busiest device. What would each device do if the load were even?",
        "loads.view(num_devices, -1) has a row for each device. Sum the rows, then compare the largest with the mean.",
    ),
)  # fmt: skip

# --- push ----------------------------------------------------------------------------------------------------------


def push_by_gradient(probs: Tensor, chosen: int, gain: float) -> Tensor:
    """Minus the gradient (E,) of the loss by the scores whose softmax is probs (E,).

    gain: how far the loss falls for each unit by which the probability of the chosen expert rises.
    """
    scores = probs.detach().log().requires_grad_()  # whose softmax is probs
    (gradient,) = torch.autograd.grad(-gain * scores.softmax(dim=0)[chosen], scores)
    return -gradient


def push_cases() -> list[tuple]:
    sizes = (2, 0, 1.0), (8, 5, -1.5), (4, 1, 3.0)
    drawn = [((2 * torch.randn(num_experts)).softmax(dim=0), chosen, gain) for num_experts, chosen, gain in sizes]
    return [(torch.tensor([0.5, 0.2, 0.3]), 1, 2.0), *drawn]


def one_hot(probs: Tensor, chosen: int) -> Tensor:
    return torch.eye(len(probs))[chosen]


def my_push(probs, chosen, gain):
    push = -gain * probs[chosen] * probs  # every score is pushed down …
    push[chosen] += gain * probs[chosen]  # … and the chosen one up
    return push


push = Exercise(
    "push", lesson="05", stars=3, solution=my_push,
    check=Comparison(push_by_gradient, "the push", push_cases, axes=("score",), mistakes={
        lambda p, c, gain: gain * one_hot(p, c): (
            "Not only the chosen score is pushed: a change of any score changes p(c)."
        ),
        lambda p, c, gain: gain * p[c] * (1 - p[c]) * one_hot(p, c): (
            "The chosen score is right, and the others are pushed as well: by −gain · p(c) · p(e)."
        ),
        lambda p, c, gain: gain * (one_hot(p, c) - p): (
            "This is the push of a cross entropy, on log p(c). Here p(c) itself is in the output: a factor p(c) is "
            "missing."
        ),
        lambda p, c, gain: -push_by_gradient(p, c, gain): (
            "The sign is wrong: a gain pushes the chosen score upwards."
        ),
    }),
    hints=(
        "The loss falls by gain times the change of p(c). How does p(c) change with its own score, and with another?",
        "The derivative of p(c) by its own score is p(c) · (1 − p(c)), by the score of another e it is −p(c) · p(e).",
    ),
)  # fmt: skip
