"""Lesson 06: a bias that counts for the choice of the experts, and not for their weights."""

import torch
from torch import Tensor

from moe_lessons.exercises.compare import Comparison
from moe_lessons.exercises.exercise import Exercise
from moe_lessons.nn import SigmoidRouter
from moe_lessons.nn.dispatch import weight_matrix


@torch.no_grad()
def weights_by_router(scores: Tensor, bias: Tensor, top_k: int) -> Tensor:
    """What the package's router makes of the scores: (T, E)."""
    router = SigmoidRouter(4, scores.shape[1], top_k, norm_topk_prob=True)
    router.expert_bias.copy_(bias)
    routing = router.choose(scores.logit())
    return weight_matrix(scores, routing, routing.weight).T


def biased_cases() -> list[tuple]:
    sizes = (5, 4, 2), (12, 8, 3), (1, 6, 2), (7, 16, 4)  # tokens T, experts E, top_k K
    return [(0.1 + 0.8 * torch.rand(T, E), 0.5 * torch.randn(E), K) for T, E, K in sizes]


def my_biased_weights(scores, bias, top_k):
    chosen = (scores + bias).topk(top_k, dim=1).indices  # (T, K): the bias counts here …
    kept = torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))  # (T, E): … and not here
    return kept / kept.sum(dim=1, keepdim=True)


def kept_of(values: Tensor, by: Tensor, top_k: int) -> Tensor:
    """(T, E): the values of the K experts that are largest in `by`, else 0."""
    return torch.zeros_like(values).scatter(1, by.topk(top_k).indices, 1.0) * values


def to_one(values: Tensor) -> Tensor:
    return values / values.sum(1, keepdim=True)


MISTAKES = {
    lambda s, b, k: to_one(kept_of(s + b, s + b, k)): (
        "The right experts, but the bias is in their weights. It is there to choose: take the weights from the scores."
    ),
    lambda s, b, k: to_one(kept_of(s, s, k)): (
        "You chose by the scores alone. Add the bias before you take the K largest."
    ),
    lambda s, b, k: to_one(kept_of(s + b, s, k)): (
        "The other way round: the bias counts for the choice, and the weights come from the scores."
    ),
    lambda s, b, k: to_one(kept_of(s, s - b, k)): (
        "You subtracted the bias. A larger one must make its expert easier to choose."
    ),
    lambda s, b, k: kept_of(
        s, s + b, k
    ): "The right experts, with their scores. Divide these by their sum, row by row.",
    lambda s, b, k: kept_of(to_one(s), s + b, k): (
        "You divided by the sum of all E scores. Divide by the sum of the K that were chosen."
    ),
    lambda s, b, k: kept_of(s, s + b, k).where(kept_of(s, s + b, k) > 0, -torch.inf).softmax(1): (
        "The scores are between 0 and 1 already. No softmax: only divide them by their sum."
    ),
    lambda s, b, k: to_one(kept_of(torch.ones_like(s), s + b, k)): (
        "The right experts, but all with the same weight. Weigh each by its score."
    ),
}

biased_weights = Exercise(
    "biased_weights",
    lesson="06",
    stars=2,
    check=Comparison(weights_by_router, "the weights", biased_cases, MISTAKES, axes=("token", "expert")),
    hints=(
        "Two tables of the same shape: one says who is chosen, the other what a chosen expert weighs.",
        "`chosen = (scores + bias).topk(top_k).indices`, and `scores.gather(1, chosen)` are the scores of these.",
    ),
    solution=my_biased_weights,
)
