"""Lesson 00: from the router's probabilities of one token to the weights of its experts, in plain Python."""

import torch

from moe_lessons.exercises.exercise import exercise


def my_weights(probs, k):
    chosen = sorted(range(len(probs)), key=lambda e: probs[e])[-k:]  # the k experts of the largest probabilities
    total = sum(probs[e] for e in chosen)
    return [probs[e] / total if e in chosen else 0 for e in range(len(probs))]


WEIGHTS_MISTAKES = [
    (lambda probs, k: [p if w else 0.0 for p, w in zip(probs, my_weights(probs, k))],
     "The right experts are chosen, but their weights do not sum to 1. Divide each by the sum of the chosen ones."),
    (lambda probs, k: probs, "Every expert has a weight. All but the k largest must have 0."),
    (lambda probs, k: [1 / k if w else 0.0 for w in my_weights(probs, k)],
     "The right experts are chosen, but all have the same weight. The weights keep the ratio of the probabilities."),
    (lambda probs, k: my_weights([1 - p for p in probs], k), "You chose the k experts of the smallest probabilities."),
    (lambda probs, k: [w for w in my_weights(probs, k) if w],
     "You return the chosen experts only. Return a number for each expert, 0 for those that do not work."),
]  # fmt: skip


@exercise(1, my_weights, WEIGHTS_MISTAKES, "the weights", axes=("expert",))
def token_weights() -> list[tuple]:
    return [(torch.randn(E).softmax(dim=0).tolist(), k) for E, k in ((3, 2), (4, 1), (5, 3), (2, 2))]
