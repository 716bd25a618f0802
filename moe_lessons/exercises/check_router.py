"""Lesson 05: mend a router that does not learn where K is 1, and break nothing where K is more."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from moe_lessons.exercises.compare import Comparison, kind_of
from moe_lessons.exercises.exercise import Exercise, Problem, is_nothing
from moe_lessons.exercises.lesson_02 import SIZES
from moe_lessons.nn import Routing, TopKRouter


class NewRouter(nn.Module):
    """The router that the lesson shows as new."""

    def __init__(self, d_model: int, num_experts: int, top_k: int):
        super().__init__()
        self.top_k, self.weight = top_k, nn.Parameter(torch.randn(num_experts, d_model) / d_model**0.5)

    def forward(self, x: Tensor) -> Routing:
        logits = x @ self.weight.T  # (T, E)
        best, experts = logits.topk(self.top_k, dim=-1)  # (T, K)
        return Routing.from_topk(logits, logits.softmax(dim=-1), experts, self.weights(logits, best))

    def weights(self, logits: Tensor, best: Tensor) -> Tensor:
        return best.softmax(dim=-1)


class MyRouter(NewRouter):
    def forward(self, x):
        logits = x @ self.weight.T  # (T, E)
        probs = logits.softmax(dim=-1)  # (T, E)
        weights, experts = probs.topk(self.top_k, dim=-1)  # (T, K)
        if self.top_k > 1:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return Routing.from_topk(logits, probs, experts, weights)


def router_with(weights: Callable[[Tensor, Tensor], Tensor]) -> type[NewRouter]:
    """A NewRouter with other weights (T, K), a function of the logits (T, E) and the K best of them (T, K)."""
    return type("Router", (NewRouter,), {"weights": lambda self, logits, best: weights(logits, best)})


def decisions_of(router_class: Callable[[int, int, int], nn.Module]) -> Callable:
    """How such a router decides: a function of x (T, D), its weight (E, D) and K."""

    def decide(x: Tensor, weight: Tensor, top_k: int) -> tuple[Tensor, ...] | None:
        router = router_class(weight.shape[1], len(weight), top_k)
        routing = None if is_nothing(router) else functional_call(router, {"weight": weight}, (x,))
        if is_nothing(routing):
            return None
        if not isinstance(routing, Routing):
            raise Problem(f"forward must return a Routing, not {kind_of(routing)}.")
        try:
            indices, weights = routing.topk_indices, routing.topk_weights  # (T, K)
        except RuntimeError as error:
            raise Problem(f"The Routing cannot be read. Its experts and weights must be (T, K): {error}.") from None
        pulled = (weights * torch.linspace(-1, 1, weights.numel()).view_as(weights)).sum()
        (gradient,) = torch.autograd.grad(pulled + 0 * weight.sum(), weight)  # 0 where nothing reaches it
        return indices, weights, routing.router_probs, gradient

    return decide


def router_cases() -> list[tuple]:
    return [(torch.randn(T, D), (torch.randn(E, D) / D**0.5).requires_grad_(), K) for T, D, E, K in SIZES]


def right_weights(logits: Tensor, best: Tensor) -> Tensor:
    return logits.softmax(dim=-1).amax(dim=-1, keepdim=True) if best.shape[1] == 1 else best.softmax(dim=-1)


MISTAKES = {
    NewRouter: (
        "Where K is 1 the weight of the chosen expert is always 1: no change of the router changes the output. Which "
        "number about this expert does change with the scores?"
    ),
    router_with(lambda logits, best: logits.softmax(dim=-1).topk(best.shape[1]).values): (
        "For K = 1 it is right. For K above 1 the weights of a token must still sum to 1, as they did before."
    ),
    router_with(lambda logits, best: best): (
        "These are the scores themselves, which may be negative. Take the softmax over all E experts first."
    ),
    router_with(lambda logits, best: best.sigmoid()): (
        "This is the sigmoid of each score by itself, and another router. For K = 1 use the probability among all E."
    ),
    router_with(lambda logits, best: right_weights(logits, best).detach()): (
        "The weights are right, but their gradient does not reach the router: no detach, no .item()."
    ),
}

against_package = Comparison(
    decisions_of(TopKRouter),
    ("the experts, best first", "the weights", "router_probs", "the gradient by the router's weight"),
    router_cases,
    {decisions_of(mistake): advice for mistake, advice in MISTAKES.items()},
    axes=("row", "column"),
)


mended_router = Exercise(
    "mended_router", lesson="05", stars=3, solution=MyRouter,
    check=lambda router_class: against_package(decisions_of(router_class)),
    hints=(
        "The softmax of a single number is 1, whatever the number. For K = 1 use the expert's probability among *all* "
        "experts.",
        "For K above 1, the softmax over the K best scores is the same as their K probabilities divided by their sum.",
    ),
    mistakes=MISTAKES,
)  # fmt: skip
