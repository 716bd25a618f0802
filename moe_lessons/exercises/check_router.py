"""The exercise of lesson 05: mend a router that does not learn where K is 1, and break nothing where K is more."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moe_lessons.exercises.exercise import Check, attempt
from moe_lessons.nn import Routing, TopKRouter, seeded

SIZES = ((7, 6, 4, 1), (5, 4, 3, 2), (9, 6, 5, 3), (3, 5, 2, 1))  # tokens T, d_model D, num_experts E, top_k K
CLOSE = 1e-5

# what is often written instead: weights (T, K) from the logits (T, E), and what to say about it
MISTAKES: dict[Callable[[Tensor, int], Tensor], str] = {
    lambda logits, k: logits.topk(k).values.softmax(dim=-1): (
        "Where K is 1 the weight of the chosen expert is always 1: no change of the router changes the output. Which "
        "number about this expert does change with the scores?"
    ),
    lambda logits, k: logits.softmax(dim=-1).topk(k).values: (
        "For K = 1 it is right. For K above 1 the weights of a token must still sum to 1, as they did before."
    ),
    lambda logits, k: logits.topk(k).values: (
        "These are the scores themselves, which may be negative. Take the softmax over all E experts first."
    ),
}


def check_router(router_class: Callable[[int, int, int], nn.Module]) -> Check:
    """Try `router_class`(d_model, num_experts, top_k): its router must decide as a `TopKRouter` with its weights does.

    It must be a module with `weight` (E, D) and map x (T, D) to a `Routing`. Compared are the experts, their weights,
    and the gradient that reaches the router, for K = 1 and above. It never raises: what goes wrong is said in words.

    >>> check_router(TopKRouter)
    ✔ Right: for K = 1 the router learns, and for K above 1 it does what it did.
    """
    for seed, sizes in enumerate(SIZES):
        problem = _problem(router_class, seed, *sizes)
        if problem is not None:
            return problem
    return Check("right", "Right: for K = 1 the router learns, and for K above 1 it does what it did.")


def _problem(router_class, seed: int, num_tokens: int, d_model: int, num_experts: int, top_k: int) -> Check | None:
    at = f"with {num_tokens} tokens, {num_experts} experts and K = {top_k}"
    with seeded(seed):
        x, pull = torch.randn(num_tokens, d_model), torch.randn(num_tokens, top_k)
        stopped, missing = f"Your router stopped {at}:", "forward returns nothing. Write it, then run the cell again."
        router, problem = attempt(lambda: router_class(d_model, num_experts, top_k), stopped, missing)
        if problem is None:
            routing, problem = attempt(lambda: router(x.clone()), stopped, missing)
    if problem is not None:
        return problem
    if not isinstance(routing, Routing):
        return Check("wrong", f"Not yet: forward must return a Routing, not a {type(routing).__name__}.")
    weight = getattr(router, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.shape != (num_experts, d_model):
        return Check("wrong", "Not yet: keep the parameter weight (E, D) of the router as it was.")
    try:
        return _compared(routing, x, weight, top_k, pull, at)
    except Exception as error:  # parts whose shapes do not fit each other
        text = "the Routing cannot be read. Its experts and weights must be (T, K), its probs (T, E)"
        return Check("wrong", f"Not yet: {at}, {text}: {type(error).__name__}: {error}")


def _compared(routing: Routing, x: Tensor, weight: nn.Parameter, top_k: int, pull: Tensor, at: str) -> Check | None:
    """What differs from `TopKRouter` with the same weight (E, D); pull (T, K): a gradient that comes from the task."""
    num_experts, d_model = weight.shape
    with seeded(0):
        model = TopKRouter(d_model, num_experts, top_k)
    model.load_state_dict({"weight": weight.detach()})
    expected = model(x)
    experts, weights = routing.topk_indices, routing.topk_weights
    if not torch.equal(experts, expected.topk_indices):
        return Check("wrong", f"Not yet: {at}, each token must go to the K experts of the highest scores, best first.")
    if not _same(weights, expected.topk_weights):
        for mistake, advice in MISTAKES.items():
            if _same(weights, mistake(x @ weight.T, top_k)):
                return Check("wrong", f"Not yet. {advice}")
        return Check("wrong", f"Not yet: {at}, the weights of the chosen experts are not the ones that were asked for.")
    if not _same(_gradient(weights, weight, pull), _gradient(expected.topk_weights, model.weight, pull)):
        text = f"Not yet: {at}, the weights are right, but their gradient does not reach the router. Is it cut off?"
        return Check("wrong", text)
    if not _same(routing.router_probs, expected.router_probs):
        return Check("wrong", "Not yet: router_probs must be the softmax over all E experts, as they were.")
    return None


def _gradient(weights: Tensor, parameter: nn.Parameter, pull: Tensor) -> Tensor:
    """What the router's parameter hears of a task that pulls at the weights (T, K); zeros where it hears nothing."""
    if not weights.requires_grad:
        return torch.zeros_like(parameter)
    (gradient,) = torch.autograd.grad((weights * pull).sum(), parameter, allow_unused=True)
    return torch.zeros_like(parameter) if gradient is None else gradient


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.detach().float(), b.detach().float(), atol=CLOSE)
