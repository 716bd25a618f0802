"""Lesson 02: routing weights by a mask, and the experts on their tokens."""

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import Problem, exercise, has_gradient
from moe_lessons.nn import FeedForward

CASE_SIZES = ((4, 6, 3, 2), (7, 6, 4, 1), (9, 4, 5, 3), (1, 5, 2, 2))  # tokens T, d_model D, num_experts E, top_k K


def top_mask(scores: Tensor, top_k: int) -> Tensor:
    """Mark the K largest of each row of scores (T, E)."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(top_k).indices, True)


def my_weights(router_logits, top_k):
    kept, chosen = router_logits.topk(top_k, dim=-1)  # (T, K)
    masked = torch.full_like(router_logits, -torch.inf).scatter(1, chosen, kept)  # (T, E)
    return masked.softmax(dim=-1)


MASK_MISTAKES = [
    (lambda logits, k: (logits * top_mask(logits, k)).softmax(dim=-1),
     "The experts that were not chosen still have a weight: a score of 0 has a share, since e⁰ = 1. Use −inf."),
    (lambda logits, k: logits.softmax(dim=-1) * top_mask(logits, k),
     "The weights of a token do not sum to 1: you set them to zero after the softmax. Mask first, then the softmax."),
    (lambda logits, k: logits.softmax(dim=-1),
     "Every expert has a weight. Mask all but the top_k scores of each token."),
    (lambda logits, k: logits.masked_fill(~top_mask(logits, k), -torch.inf).softmax(dim=0).nan_to_num(0),
     "Your softmax runs down a column, over the tokens. Let it run along a row, over the experts: dim=-1."),
    (lambda logits, k: logits.masked_fill(top_mask(logits, k), -torch.inf).softmax(dim=-1),
     "You masked the chosen experts and kept the others. Turn the mask round."),
]  # fmt: skip


@exercise(1, my_weights, MASK_MISTAKES, "the routing weights", axes=("token", "expert"), then=has_gradient)
def masked_weights() -> list[tuple]:
    return [(torch.randn(T, E, requires_grad=True), K) for T, _, E, K in CASE_SIZES]


class CountingExpert(FeedForward):
    """An expert that counts its calls, and the rows that it computes."""

    calls = rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + x.numel() // self.d_model
        return super().forward(x)


def my_moe(x, weights, experts):
    y = torch.zeros_like(x)
    for e, expert in enumerate(experts):
        tokens = weights[:, e].nonzero().flatten()  # those of expert e
        y[tokens] += weights[tokens, e, None] * expert(x[tokens])
    return y


BLOCK_MISTAKES = [
    (lambda x, w, experts: my_moe(x, w * ((w > 0).cumsum(dim=1) == (w > 0).sum(dim=1, keepdim=True)), experts),
     "Only the last expert of each token is left: add to y[tokens], +=, instead of writing over it."),
    (lambda x, w, experts: my_moe(x, (w > 0).to(w), experts),
     "The right experts ran, but unweighted: multiply each output by its weight before you add."),
    (lambda x, w, experts: my_moe(x, w * (w == w.amax(dim=1, keepdim=True)), experts),
     "Only the best expert of each token ran. Add the weighted outputs of all whose weight is not 0."),
    (lambda x, w, experts: my_moe(x, w.flip(1), experts),
     "Weights and experts do not belong together: column e of the weights is for experts[e]."),
]  # fmt: skip


def few_calls(result: Tensor, x: Tensor, weights: Tensor, experts: list[CountingExpert]) -> None:
    """Raise Problem for a right result of experts that computed more than theirs (half was counted of the solution)."""
    if sum(expert.rows for expert in experts) > 2 * int((weights > 0).sum()):
        raise Problem(
            "The numbers are right, but every expert processed every token, as a dense layer does. Give each expert "
            "only the tokens whose weight for it is not 0.",
        )
    if sum(expert.calls for expert in experts) > 2 * len(experts):
        raise Problem(
            "The numbers are right, but with more calls than needed. Loop over the experts, and give each all its "
            "tokens in one call: training is many times faster then.",
        )
    has_gradient(result, weights)


@exercise(2, my_moe, BLOCK_MISTAKES, "the output y", axes=("token", "number"), then=few_calls)
def moe_block() -> list[tuple]:
    weights = [my_weights(torch.randn(T, E), K).requires_grad_() for T, _, E, K in CASE_SIZES]
    sizes = zip(CASE_SIZES, weights)
    return [(torch.randn(T, D), w, [CountingExpert(D, 8) for _ in range(E)]) for (T, D, E, _), w in sizes]
