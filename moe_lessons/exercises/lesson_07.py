"""Lesson 07: the gradient of one token on the router's logits."""

import torch

from moe_lessons.exercises.exercise import exercise


def my_logit_gradient(probs, chosen, grad_p):
    gradient = -grad_p * probs[chosen] * probs  # ∂p(c)/∂z(e) = −p(c) · p(e) where e ≠ c
    gradient[chosen] += grad_p * probs[chosen]  # ∂p(c)/∂z(c) = p(c) · (1 − p(c))
    return gradient


GRADIENT_MISTAKES = [
    (lambda p, c, grad_p: grad_p * torch.eye(len(p))[c],
     "Not only the chosen logit has a gradient: p(c) depends on every logit."),
    (lambda p, c, grad_p: grad_p * p[c] * (1 - p[c]) * torch.eye(len(p))[c],
     "The chosen logit is right. The others have a gradient, too: ∂L/∂p(c) · (−p(c) · p(e))."),
    (lambda p, c, grad_p: grad_p * p[c] * torch.where(torch.eye(len(p))[c] > 0, torch.ones_like(p), -p),
     "The others are right. The chosen logit is also in the denominator of the softmax: p(c) · (1 − p(c))."),
    (lambda p, c, grad_p: grad_p * (torch.eye(len(p))[c] - p),
     "This is the gradient through log p(c). The output is multiplied by p(c) itself: a factor p(c) is missing."),
    (lambda p, c, grad_p: -my_logit_gradient(p, c, grad_p),
     "The sign is wrong: where ∂L/∂p(c) is negative, so is the gradient on the chosen logit."),
]  # fmt: skip


@exercise(2, my_logit_gradient, GRADIENT_MISTAKES, "the gradient", axes=("logit",))
def logit_gradient() -> list[tuple]:
    sizes = (2, 0, -1.0), (8, 5, 1.5), (4, 1, -3.0)
    drawn = [((2 * torch.randn(num_experts)).softmax(dim=0), chosen, grad_p) for num_experts, chosen, grad_p in sizes]
    return [(torch.tensor([0.5, 0.2, 0.3]), 1, -2.0), *drawn]
