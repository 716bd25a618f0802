"""Lesson 07: how much an uneven load slows a layer down, and where one token pushes the scores."""

import torch

from moe_lessons.exercises.exercise import exercise


def my_slowdown(loads, num_devices):
    work = loads.view(num_devices, -1).sum(dim=1)  # (num_devices,)
    return work.max() / work.mean()


SLOWDOWN_MISTAKES = [
    (lambda loads, n: loads.max() / loads.mean(),
     "This is right with one expert on each device. Where a device has several, add up their loads first."),
    (lambda loads, n: loads.view(n, -1).sum(dim=1).max() / loads.sum(),
     "This is the share of the busiest device. Divide by the even share, one device's part of the work."),
    (lambda loads, n: loads.view(n, -1).sum(dim=1).max() / loads.mean(),
     "The mean is over devices, not over experts: each device has several."),
    (lambda loads, n: loads.view(-1, n).sum(dim=0).max() / (loads.sum() / n),
     "You deal the experts out like cards. Neighbours belong together: device 0 has the first E / num_devices."),
    (lambda loads, n: loads.view(n, -1).sum(dim=1).max(), "These are the busiest device's tokens. Divide by the mean."),
]  # fmt: skip


@exercise(1, my_slowdown, SLOWDOWN_MISTAKES, "the slowdown")
def slowdown() -> list[tuple]:
    sizes = (6, 2), (4, 4), (8, 2), (12, 4), (6, 1)
    return [(torch.randint(1, 30, (num_experts,)).float(), n) for num_experts, n in sizes]


def my_push(probs, chosen, gain):
    push = -gain * probs[chosen] * probs  # every score is pushed down …
    push[chosen] += gain * probs[chosen]  # … and the chosen one up
    return push


PUSH_MISTAKES = [
    (lambda p, c, gain: gain * torch.eye(len(p))[c],
     "Not only the chosen score is pushed: a change of any score changes p(c)."),
    (lambda p, c, gain: gain * p[c] * (1 - p[c]) * torch.eye(len(p))[c],
     "The chosen score is right, and the others are pushed as well: by −gain · p(c) · p(e)."),
    (lambda p, c, gain: gain * p[c] * torch.where(torch.eye(len(p))[c] > 0, torch.ones_like(p), -p),
     "The others are right. The chosen score stands below the fraction too: its push is gain · p(c) · (1 − p(c))."),
    (lambda p, c, gain: gain * (torch.eye(len(p))[c] - p),
     "This is the push of a cross entropy, on log p(c). Here the output has p(c) itself: a factor p(c) is missing."),
    (lambda p, c, gain: -my_push(p, c, gain), "The sign is wrong: a gain pushes the chosen score upwards."),
]  # fmt: skip


@exercise(2, my_push, PUSH_MISTAKES, "the push", axes=("score",))
def push() -> list[tuple]:
    sizes = (2, 0, 1.0), (8, 5, -1.5), (4, 1, 3.0)
    drawn = [((2 * torch.randn(num_experts)).softmax(dim=0), chosen, gain) for num_experts, chosen, gain in sizes]
    return [(torch.tensor([0.5, 0.2, 0.3]), 1, 2.0), *drawn]
