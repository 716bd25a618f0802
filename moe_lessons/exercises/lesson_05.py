"""Lesson 05: how much an uneven load slows a layer down, and where one token pushes the scores."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from moe_lessons.exercises.exercise import Check, Comparison, Problem, exercise, is_nothing, kind_of
from moe_lessons.exercises.lesson_02 import SIZES
from moe_lessons.nn import Routing


def my_slowdown(loads, num_devices):
    work = loads.view(num_devices, -1).sum(dim=1)  # (num_devices,)
    return work.max() / work.mean()


SLOWDOWN_MISTAKES = {
    lambda loads, n: loads.max() / loads.mean():
        "This is right with one expert on each device. Where a device has several, add up their loads first.",
    lambda loads, n: loads.view(n, -1).sum(dim=1).max() / loads.sum():
        "This is the share of the busiest device. Divide by the even share, one device's part of the work.",
    lambda loads, n: loads.view(n, -1).sum(dim=1).max() / loads.mean():
        "The mean is over devices, not over experts: each device has several.",
    lambda loads, n: loads.view(-1, n).sum(dim=0).max() / (loads.sum() / n):
        "You deal the experts out like cards. Neighbours belong together: device 0 has the first E / num_devices.",
    lambda loads, n: loads.view(n, -1).sum(dim=1).max(): "These are the busiest device's tokens. Divide by the mean.",
}  # fmt: skip


@exercise(1, my_slowdown, SLOWDOWN_MISTAKES, "the slowdown")
def slowdown() -> list[tuple]:
    sizes = (6, 2), (4, 4), (8, 2), (12, 4), (6, 1)
    return [(torch.randint(1, 30, (num_experts,)).float(), n) for num_experts, n in sizes]


def my_push(probs, chosen, gain):
    push = -gain * probs[chosen] * probs  # every score is pushed down …
    push[chosen] += gain * probs[chosen]  # … and the chosen one up
    return push


PUSH_MISTAKES = {
    lambda p, c, gain: gain * torch.eye(len(p))[c]:
        "Not only the chosen score is pushed: a change of any score changes p(c).",
    lambda p, c, gain: gain * p[c] * (1 - p[c]) * torch.eye(len(p))[c]:
        "The chosen score is right, and the others are pushed as well: by −gain · p(c) · p(e).",
    lambda p, c, gain: gain * (torch.eye(len(p))[c] - p):
        "This is the push of a cross entropy, on log p(c). Here the output has p(c) itself: a factor p(c) is missing.",
    lambda p, c, gain: -my_push(p, c, gain): "The sign is wrong: a gain pushes the chosen score upwards.",
}  # fmt: skip


@exercise(3, my_push, PUSH_MISTAKES, "the push", axes=("score",))
def push() -> list[tuple]:
    sizes = (2, 0, 1.0), (8, 5, -1.5), (4, 1, 3.0)
    drawn = [((2 * torch.randn(num_experts)).softmax(dim=0), chosen, gain) for num_experts, chosen, gain in sizes]
    return [(torch.tensor([0.5, 0.2, 0.3]), 1, 2.0), *drawn]


class NewRouter(nn.Module):  # the router that the lesson shows as new
    def __init__(self, d_model: int, num_experts: int, top_k: int):
        super().__init__()
        self.top_k, self.weight = top_k, nn.Parameter(torch.randn(num_experts, d_model) / d_model**0.5)

    def forward(self, x: Tensor) -> Routing:
        logits = x @ self.weight.T  # (T, E)
        best, experts = logits.topk(self.top_k, dim=-1)  # (T, K)
        return Routing.from_topk(logits, logits.softmax(dim=-1), experts, self.weights(logits, best))

    weights = staticmethod(lambda logits, best: best.softmax(dim=-1))


class MyRouter(NewRouter):
    def forward(self, x):
        logits = x @ self.weight.T  # (T, E)
        probs = logits.softmax(dim=-1)  # (T, E)
        weights, experts = probs.topk(self.top_k, dim=-1)  # (T, K)
        if self.top_k > 1:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return Routing.from_topk(logits, probs, experts, weights)


def router_with(weights: Callable[[Tensor, Tensor], Tensor]) -> type[NewRouter]:  # weights(logits, the K best)
    return type("Router", (NewRouter,), {"weights": staticmethod(weights)})


def decisions_of(router_class: Callable[[int, int, int], nn.Module]) -> Callable:
    """Give what such a router decides, as a function of x (T, D), its weight (E, D) and K."""

    def decide(x: Tensor, weight: Tensor, top_k: int) -> tuple[Tensor, ...] | None:
        router = router_class(weight.shape[1], len(weight), top_k)
        routing = None if is_nothing(router) else functional_call(router, {"weight": weight}, (x,))
        if is_nothing(routing):
            return None
        if not isinstance(routing, Routing):
            raise Problem(f"forward must return a Routing, not {kind_of(routing)}.")
        try:
            indices, weights = routing.topk_indices, routing.topk_weights  # (T, K)
        except (RuntimeError, ValueError) as error:
            raise Problem(f"The Routing cannot be read. Its experts and weights must be (T, K): {error}.") from None
        pulled = (weights * torch.linspace(-1, 1, weights.numel()).view_as(weights)).sum()
        (gradient,) = torch.autograd.grad(pulled + 0 * weight.sum(), weight)  # 0 where nothing reaches it
        return indices, weights, routing.router_probs, gradient

    return decide


def fixed(logits: Tensor, best: Tensor) -> Tensor:
    weights = best.softmax(dim=-1) if best.shape[1] > 1 else logits.softmax(dim=-1).amax(dim=-1, keepdim=True)
    return weights.detach()


ROUTER_MISTAKES = {
    NewRouter:
        "Where K is 1 the weight of the chosen expert is always 1: no change of the router changes the output. Which "
        "number about this expert does change with the scores?",
    router_with(lambda logits, best: logits.softmax(dim=-1).topk(best.shape[1]).values):
        "For K = 1 it is right. For K above 1 the weights of a token must still sum to 1, as they did before.",
    router_with(lambda logits, best: best):
        "These are the scores themselves, which may be negative. Take the softmax over all E experts first.",
    router_with(lambda logits, best: best.sigmoid()):
        "This is the sigmoid of each score by itself, and another router. For K = 1 use the probability among all E.",
    router_with(fixed): "The weights are right, but their gradient does not reach the router: no detach, no .item().",
}  # fmt: skip


@exercise(3, MyRouter, ROUTER_MISTAKES)
def mended_router(answer: Callable[[int, int, int], nn.Module]) -> Check:
    def cases() -> list[tuple]:
        return [(torch.randn(T, D), (torch.randn(E, D) / D**0.5).requires_grad_(), K) for T, D, E, K in SIZES]

    mistakes = {decisions_of(mistake): advice for mistake, advice in ROUTER_MISTAKES.items()}
    what = "the experts, best first", "the weights", "router_probs", "the gradient by the router's weight"
    return Comparison(decisions_of(MyRouter), what, cases, mistakes, axes=("row", "column"))(decisions_of(answer))
