"""Lesson 05: mend a router that does not learn where K is 1, and break nothing where K is more."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from moe_lessons.exercises.check_block import SIZES
from moe_lessons.exercises.compare import agree, difference
from moe_lessons.exercises.exercise import Check, Exercise, Problem, attempt, judge, recognise
from moe_lessons.nn import Routing, TopKRouter, seeded


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
}


def check_router(router_class: Callable[[int, int, int], nn.Module]) -> Check:
    """Try `router_class`(d_model, num_experts, top_k): its router must decide as a `TopKRouter` with its weights does.

    It must be a module with `weight` (E, D) and map x (T, D) to a `Routing`. Compared are the experts, their weights,
    and the gradient that reaches the router, for K = 1 and above.

    >>> check_router(TopKRouter)
    ✔ Right. For K = 1 the router learns, and for K above 1 it does what it did.
    """
    right = "For K = 1 the router learns, and for K above 1 it does what it did."
    unreadable = "The Routing cannot be read. Its experts and weights must be (T, K), its probs (T, E)"
    return judge(enumerate(SIZES), partial(_try_router, router_class), right, unreadable)


def _try_router(router_class: Callable, seed: int, sizes: tuple[int, int, int, int]) -> None:
    num_tokens, d_model, num_experts, top_k = sizes
    at = f"With {num_tokens} tokens, {num_experts} experts and K = {top_k}"
    with seeded(seed):
        x, pull = torch.randn(num_tokens, d_model), torch.randn(num_tokens, top_k)
        router = attempt(lambda: router_class(d_model, num_experts, top_k), at)
        routing = attempt(lambda: router(x.clone()), at)
        right = TopKRouter(d_model, num_experts, top_k)
    if not isinstance(routing, Routing):
        raise Problem(f"forward must return a Routing, not a {type(routing).__name__}.")
    weight = getattr(router, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.shape != right.weight.shape:
        raise Problem("Keep the parameter weight (E, D) of the router as it was.")
    right.load_state_dict({"weight": weight.detach()})
    expected = right(x)
    for token, (chosen, best) in enumerate(zip(routing.topk_indices.tolist(), expected.topk_indices.tolist())):
        if chosen != best:
            text = "each token must go to the K experts of the highest scores, best first"
            raise Problem(f"{at}, {text}: token {token} to {best}, not to {chosen}.")
    weights, wanted = (r.topk_weights.double() for r in (routing, expected))
    if not agree(weights, wanted):
        recognise(MISTAKES, lambda mistake: agree(weights, _weights_of(mistake, weight, x, top_k)))
        raise Problem(f"{at}, {difference('the weights', weights.detach(), wanted.detach(), ('token', 'choice'))}")
    (gradient,) = torch.autograd.grad((weights * pull).sum() + 0 * weight.sum(), weight)  # 0 where nothing reaches it
    if not agree(gradient, torch.autograd.grad((wanted * pull).sum(), right.weight)[0]):
        raise Problem(f"{at}, the weights are right, but their gradient does not reach the router.")
    if not agree(routing.router_probs, expected.router_probs):
        raise Problem("router_probs must be the softmax over all E experts, as they were.")


def _weights_of(router_class: type[NewRouter], weight: Tensor, x: Tensor, top_k: int) -> Tensor:
    router = router_class(weight.shape[1], weight.shape[0], top_k)
    router.load_state_dict({"weight": weight.detach()})
    return router(x).topk_weights.double()


mended_router = Exercise(
    "mended_router", lesson="05", stars=3, solution=MyRouter,
    check=check_router,
    hints=(
        "The softmax of a single number is 1, whatever the number. For K = 1 use the expert's probability among *all* "
        "experts.",
        "For K above 1, the softmax over the K best scores is the same as their K probabilities divided by their sum.",
    ),
    mistakes=MISTAKES,
)  # fmt: skip
