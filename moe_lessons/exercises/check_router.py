"""The exercise of lesson 05: mend a router that does not learn where K is 1, and break nothing where K is more."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from moe_lessons.exercises.exercise import SIZES, Check, Problem, attempt, compare, judge, same
from moe_lessons.nn import Routing, TopKRouter, seeded

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
    and the gradient that reaches the router, for K = 1 and above.

    >>> check_router(TopKRouter)
    ✔ Right: for K = 1 the router learns, and for K above 1 it does what it did.
    """
    right = "Right: for K = 1 the router learns, and for K above 1 it does what it did."
    unreadable = "the Routing cannot be read. Its experts and weights must be (T, K), its probs (T, E)"
    return judge(enumerate(SIZES), partial(_try_router, router_class), right, unreadable)


def _try_router(router_class: Callable, seed: int, sizes: tuple[int, int, int, int]) -> None:
    num_tokens, d_model, num_experts, top_k = sizes
    at = f"with {num_tokens} tokens, {num_experts} experts and K = {top_k}"
    stopped, missing = f"Your router stopped {at}:", "forward returns nothing. Write it, then run the cell again."
    with seeded(seed):
        x, pull = torch.randn(num_tokens, d_model), torch.randn(num_tokens, top_k)
        router = attempt(lambda: router_class(d_model, num_experts, top_k), stopped, missing)
        routing = attempt(lambda: router(x.clone()), stopped, missing)
        right = TopKRouter(d_model, num_experts, top_k)
    if not isinstance(routing, Routing):
        raise Problem(f"Not yet: forward must return a Routing, not a {type(routing).__name__}.")
    weight = getattr(router, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.shape != right.weight.shape:
        raise Problem("Not yet: keep the parameter weight (E, D) of the router as it was.")
    right.load_state_dict({"weight": weight.detach()})
    expected = right(x)
    for token, (chosen, best) in enumerate(zip(routing.topk_indices.tolist(), expected.topk_indices.tolist())):
        if chosen != best:
            text = "each token must go to the K experts of the highest scores, best first"
            raise Problem(f"Not yet: {at}, {text}: token {token} to {best}, not to {chosen}.")
    weights, wanted = routing.topk_weights, expected.topk_weights
    text = f"{at}, the weights of the chosen experts are not the ones that were asked for"
    compare(weights, wanted, MISTAKES, (x @ weight.T, top_k), text)
    (gradient,) = torch.autograd.grad((weights * pull).sum() + 0 * weight.sum(), weight)  # 0 where nothing reaches it
    if not same(gradient, *torch.autograd.grad((wanted * pull).sum(), right.weight)):
        raise Problem(f"Not yet: {at}, the weights are right, but their gradient does not reach the router.")
    if not same(routing.router_probs, expected.router_probs):
        raise Problem("Not yet: router_probs must be the softmax over all E experts, as they were.")
