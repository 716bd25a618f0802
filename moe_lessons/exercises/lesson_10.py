"""Lesson 10: is a router healthy, layer by layer, and what a loss sees that pools the layers."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise
from moe_lessons.exercises.lesson_02 import top_mask
from moe_lessons.training import DEAD_SHARE


def my_health(loads, top_k):
    shares = loads / loads.sum(dim=1, keepdim=True)  # (L, E) of the assignments
    dead = (top_k * shares < 0.01).sum(dim=1)  # of the tokens: each makes K assignments
    busiest = loads.shape[1] * shares.max(dim=1).values
    entropy = torch.special.entr(shares).sum(dim=1) / torch.tensor(loads.shape[1]).log()
    return dead, busiest, entropy, (dead > 0) | (busiest >= 3)


def health_with(loads: Tensor, top_k: int, ill: Callable | None = None, **other: Callable) -> tuple[Tensor, ...]:
    """Change `ill` of the right answer, or another part: a function of the shares (L, E) and K."""
    shares = loads / loads.sum(dim=1, keepdim=True)
    parts = dict(zip(("dead", "busiest", "entropy"), my_health(loads, top_k)))
    parts |= {name: part(shares, top_k) for name, part in other.items()}
    ill = ill or (lambda dead, busiest: (dead > 0) | (busiest >= 3))
    return *parts.values(), ill(parts["dead"], parts["busiest"])


HEALTH_MISTAKES = {
    lambda loads, k: [part.expand(len(loads)) for part in my_health(loads.sum(dim=0, keepdim=True), k)]:
        "You added the layers up. Expert 3 of one layer and expert 3 of the next have only the number in common.",
    lambda loads, k: health_with(loads, k, dead=lambda p, _: (p < DEAD_SHARE).sum(dim=1)):
        "Dead means: under 1 % of the tokens. These are shares of assignments, K for each token: multiply by top_k.",
    lambda loads, k: health_with(loads, k, dead=lambda p, _: (p == 0).sum(dim=1)):
        "You count experts without any token. An expert under 1 % of the tokens counts as dead, too.",
    lambda loads, k: health_with(loads, k, dead=lambda p, k: (p < DEAD_SHARE / p.shape[1]).sum(dim=1)):
        "You compare with 1 % of an even share. Dead means: under 1 % of all tokens.",
    lambda loads, k: health_with(loads, k, busiest=lambda p, _: p.max(dim=1).values):
        "The busiest expert's share is right. Divide it by the mean share, 1 / E.",
    lambda loads, k: health_with(loads, k, entropy=lambda p, _: torch.special.entr(p).sum(dim=1)):
        "The entropy is over that of an even load: divide by log E, so that 1 is even.",
    lambda loads, k: health_with(loads, k, entropy=lambda p, _: -(p * p.log()).sum(1) / math.log(p.shape[1])):
        "0 · log 0 is nan here, and should count as 0: torch.special.entr does.",
    lambda loads, k: health_with(loads, k, ill=lambda dead, busiest: dead > 0):
        "A layer is also ill without a dead expert, where the busiest has three times the mean or more.",
    lambda loads, k: health_with(loads, k, ill=lambda dead, busiest: (dead > 0) | (busiest > 3)):
        "A layer whose busiest expert has exactly three times the mean is ill, too: >=.",
    lambda loads, k: health_with(loads, k, ill=lambda dead, busiest: (dead > 0) & (busiest >= 3)):
        "One of the two is enough: a dead expert, or a busiest one with three times the mean.",
}  # fmt: skip


@exercise(2, my_health, HEALTH_MISTAKES, ("dead", "max over mean", "the entropy", "ill"), axes=("layer",))
def router_health() -> list[tuple]:
    def some(layers: int, experts: int, **own: list[int]) -> Tensor:
        loads = torch.randint(400, 900, (layers, experts)).float()
        for layer, load in own.items():
            loads[int(layer[1:]), : len(load)] = torch.tensor(load).float()
        return loads

    mixed = some(4, 8, l1=[0, 0, 2, 6], l2=[9000], l3=[40])  # of 40 assignments in some 5,000, K decides
    exactly = [3072, 1024, 1024, 1024, 512, 512, 512, 512]  # three times the mean; powers of two do not round
    near = some(4, 8, l0=[0], l1=[2000], l2=[3000], l3=exactly)
    return [(mixed, 2), (some(3, 6, l0=[0, 0, 0]), 1), (some(5, 16, l3=[50, 30]), 4), (some(2, 4), 2), (near, 2)]


def my_two_losses(probs, top_k):
    layers, num_tokens, num_experts = probs.shape
    chosen = torch.zeros_like(probs).scatter(2, probs.topk(top_k, dim=2).indices, 1)  # (L, T, E)
    f, P = chosen.mean(dim=1) / top_k, probs.mean(dim=1)  # (L, E) each
    pooled = num_experts * (f.mean(dim=0) * P.mean(dim=0)).sum()  # first the mean, then the product
    mean = num_experts * (f * P).sum(dim=1).mean()  # first the product, then the mean
    return pooled, mean


def of_squares(shares: Tensor) -> tuple[Tensor, Tensor]:
    return shares.shape[1] * shares.mean(dim=0).square().sum(), shares.shape[1] * shares.square().sum(dim=1).mean()


LOSS_MISTAKES = {
    lambda p, k: my_two_losses(p, k)[1:] * 2:
        "Your pooled loss multiplies in each layer and then averages: that is the mean once more. Pool f and P first, "
        "over all layers' tokens, and then multiply.",
    lambda p, k: [k * loss for loss in my_two_losses(p, k)]:
        "This is Hugging Face's scale, K times ours: f is the share of the assignments, so divide by K.",
    lambda p, k: [x / p.shape[2] for x in my_two_losses(p, k)]: "The factor E is missing: an even load should give 1.",
    lambda p, k: my_two_losses(p, k)[::-1]: "These are the right two numbers, the wrong way round: pooled first.",
    lambda p, k: (my_two_losses(p, k)[0], len(p) * my_two_losses(p, k)[1]):
        "You added the layers' losses up. The second number is their mean.",
    lambda p, k: of_squares(p.mean(dim=1)):
        "You multiplied P with P. f is counted: how often each expert is among the K chosen.",
    lambda p, k: of_squares(top_mask(p, k).float().mean(dim=1) / k):
        "You multiplied f with f. The other factor is P, the mean probability; the gradient needs it.",
}  # fmt: skip


@exercise(2, my_two_losses, LOSS_MISTAKES, ("the pooled loss", "the mean of the layers"))
def pooled_loss() -> Iterator[tuple]:
    for L, T, E, K in ((3, 20, 8, 2), (2, 12, 4, 1), (4, 9, 6, 3), (1, 10, 8, 2)):
        yield (torch.randn(L, T, E) + 2 * torch.randn(L, 1, E)).softmax(dim=-1), K
