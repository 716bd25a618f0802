"""Lesson 00: from the router's probabilities of one token to the weights of its experts, in plain Python."""

from collections.abc import Callable

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise
from moe_lessons.nn import MoE, Routing, TopKRouter


def my_weights(probs, k):
    chosen = sorted(range(len(probs)), key=lambda e: probs[e])[-k:]  # the k experts of the largest probabilities
    total = sum(probs[e] for e in chosen)
    return [probs[e] / total if e in chosen else 0 for e in range(len(probs))]


WEIGHTS_MISTAKES = {
    lambda probs, k: [p if w else 0.0 for p, w in zip(probs, my_weights(probs, k))]:
        "The right experts are chosen, but their weights do not sum to 1. Divide each by the sum of the chosen ones.",
    lambda probs, k: probs: "Every expert has a weight. All but the k largest must have 0.",
    lambda probs, k: [1 / k if w else 0.0 for w in my_weights(probs, k)]:
        "The right experts are chosen, but all have the same weight. The weights keep the ratio of the probabilities.",
    lambda probs, k: my_weights([1 - p for p in probs], k): "You chose the k experts of the smallest probabilities.",
    lambda probs, k: [w for w in my_weights(probs, k) if w]:
        "You return the chosen experts only. Return a number for each expert, 0 for those that do not work.",
}  # fmt: skip


@exercise(1, my_weights, WEIGHTS_MISTAKES, "the weights", axes=("expert",))
def token_weights() -> list[tuple]:
    return [(torch.randn(E).softmax(dim=0).tolist(), k) for E, k in ((3, 2), (4, 1), (5, 3), (2, 2))]


def mixture_with(weights: Callable[[list, int], list]) -> type[MoE]:
    """Make a mixture for `widgets.Playground(block=…)` whose weights are what `weights`(probs, k) says of each token.
    It computes with plain numbers; the gradient is that of the same formula, the K largest divided by their sum."""

    class Router(TopKRouter):
        def forward(self, x: Tensor) -> Routing:
            routing = super().forward(x)
            probs = routing.router_probs  # (T, E)
            own = torch.tensor([[float(w) for w in weights(row, self.top_k)] for row in probs.tolist()])  # (T, E)
            own, experts = own.topk(self.top_k, dim=-1)  # (T, K)
            same = probs.gather(1, experts)
            same = same / same.sum(dim=1, keepdim=True)
            return Routing.from_topk(routing.router_logits, probs, experts, same + (own - same).detach())

    class Mixture(MoE):
        def __init__(self, d_model: int, d_ff: int, num_experts: int, top_k: int):
            super().__init__(d_model, d_ff, num_experts, top_k, router=Router(d_model, num_experts, top_k))

    return Mixture
