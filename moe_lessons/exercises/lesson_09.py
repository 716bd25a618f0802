"""Lesson 09: which layers leak future tokens."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from moe_lessons.exercises.exercise import Problem, attempt, exercise
from moe_lessons.nn import DISPATCH, ExpertChoiceRouter, MoE, NoisyTopKRouter, SoftMoE, apply_capacity, seeded
from moe_lessons.support.errors import shown

TRIED_TOKENS = 13  # three groups of four, and a token alone
TINY = "And tiny differences are rounding: compare with torch.allclose(a, b, atol=1e-5)."
ADVICE = (  # for each layer, where it is judged wrongly
    f"A token may change itself: compare only the tokens before the cut. {TINY}",
    "Cut late tokens off, and look at the outputs of the tokens before.",
    f"It only looks back. Did you take early tokens away and look at later ones? Turn that round. {TINY}",
    "Its noise is drawn anew in each call, so two calls differ anyway. Call layer.eval() first.",
    "An expert prefers a later token to an earlier one. Try every place.",
    "A later first choice takes the place of an earlier second choice. Try every place in the sequence.",
    "A later token with a larger probability takes an earlier one's place. Try every place.",
    "Only earlier tokens can take a token's place here. Look at the tokens before the cut.",
    "The last of the 13 tokens is alone in its group, so a cut there shows nothing. Try every place.",
    "How many tokens come later matters here, not which. Cut them off instead of changing them.",
)


class OutputOnly(nn.Module):
    """A block without its routing: x (T, D) -> y (T, D), for one sequence of tokens. run: how the block is called."""

    def __init__(self, block: nn.Module, run: Callable[[nn.Module, Tensor], Any] = lambda block, x: block(x)):
        super().__init__()
        self.block, self.run = block, run

    def forward(self, x: Tensor) -> Tensor:
        out = self.run(self.block, x)
        return out[0] if isinstance(out, tuple) else out


class CausalityCase(NamedTuple):
    layer: nn.Module
    truth: bool  # whether it leaks future tokens
    advice: str  # where an answer says otherwise


def causality_cases() -> dict[str, CausalityCase]:
    """Make the layers of the exercise by name, from the same random numbers each time. All are in training mode."""

    def moe(top_k: int = 2, router: type[nn.Module] | None = None, **kwargs) -> MoE:
        return MoE(8, 16, 4, top_k, router=router and router(8, 4, top_k), **kwargs)

    def looking_back(_, x: Tensor) -> Tensor:  # the mean of the tokens so far: the later ones cancel, up to rounding
        return (x.sum(dim=0) - (x.sum(dim=0) - x.cumsum(dim=0))) / torch.arange(1, len(x) + 1)[:, None]

    def two_places(moe: MoE, x: Tensor) -> Tensor:  # for each expert, however long the sequence
        return DISPATCH["loop"](moe.experts, x, apply_capacity(moe.router(x), 2))

    def in_groups(moe: MoE, x: Tensor) -> Tensor:  # of four tokens, each apart, as large models do
        return torch.cat([moe(group)[0] for group in x.split(4)])

    with seeded(0):
        layers = {
            "top-k": (OutputOnly(moe()), False),
            "Soft MoE": (OutputOnly(SoftMoE(8, 16, 4)), True),
            "mean of all tokens so far": (OutputOnly(nn.Identity(), looking_back), False),
            "top-k with noise": (OutputOnly(moe(router=NoisyTopKRouter)), False),
            "expert choice": (OutputOnly(moe(router=ExpertChoiceRouter)), True),
            "top-2, capacity in order": (OutputOnly(moe(capacity_factor=1.0)), True),
            "top-1, capacity by weight": (OutputOnly(moe(1, capacity_factor=1.0, capacity_priority="weight")), True),
            "top-1, a fixed capacity in order": (OutputOnly(moe(1), two_places), False),
            "expert choice in groups of 4": (OutputOnly(moe(router=ExpertChoiceRouter), in_groups), True),
            "tokens divided by their number": (OutputOnly(nn.Identity(), lambda _, x: x / len(x)), True),
        }
    return {name: CausalityCase(*layers[name], advice) for name, advice in zip(layers, ADVICE)}


def my_leaks_future(layer, x):
    layer.eval()  # no noise
    y = layer(x)
    for t in range(1, len(x)):
        without_the_rest = layer(x[:t])  # the first t tokens, as if nothing came after them
        if not torch.allclose(without_the_rest, y[:t], atol=1e-5):
            return True
    return False


@torch.no_grad()
def tell_apart(answer: Callable[[nn.Module, Tensor], bool], name: str, case: CausalityCase) -> str:
    with seeded(1):
        x = torch.randn(TRIED_TOKENS, 8)
        given = x.clone()
        verdict = attempt(answer, case.layer, x, at=f"At the layer {name!r}")
    value = verdict.item() if isinstance(verdict, Tensor) and verdict.numel() == 1 else verdict
    if not isinstance(value, bool | np.bool_):
        raise Problem(f"Return True or False, not {shown(verdict)} (at {name!r}).")
    if value != case.truth:
        if not torch.equal(x, given):
            raise Problem("Your function changed x itself, and so what it compares with. Use x.clone().")
        truth = "leaks future tokens" if case.truth else "is causal"
        raise Problem(f"{name!r} {truth}, and your function says otherwise. {case.advice}")
    return f"Your test tells all {len(ADVICE)} layers apart."


@exercise(3, my_leaks_future, try_case=tell_apart)
def causality() -> list[tuple]:
    return list(causality_cases().items())
