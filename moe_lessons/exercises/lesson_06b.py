"""Lesson 06b: which layers let a token see the future? And the layers that an answer is tried on."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from moe_lessons.exercises.compare import kind_of
from moe_lessons.exercises.exercise import Check, Exercise, Problem, attempt, judge
from moe_lessons.nn import DISPATCH, ExpertChoiceRouter, MoE, NoisyTopKRouter, SoftMoE, apply_capacity, seeded

D_MODEL, D_FF, NUM_EXPERTS = 8, 16, 4
NUM_TOKENS = 13  # three groups of four, and a token alone
TINY = "And tiny differences are rounding: compare with torch.allclose(a, b, atol=1e-5)."


class OutputOnly(nn.Module):
    """A block without its routing: x (T, D) -> y (T, D), for one sequence of tokens. run: how the block is called."""

    def __init__(self, block: nn.Module, run: Callable[[nn.Module, Tensor], Any] = lambda block, x: block(x)):
        super().__init__()
        self.block, self.run = block, run

    def forward(self, x: Tensor) -> Tensor:
        out = self.run(self.block, x)
        return out[0] if isinstance(out, tuple) else out


def looking_back(block: nn.Module, x: Tensor) -> Tensor:
    """The mean of a token and of all tokens before it: the later ones cancel, up to rounding."""
    rest = x.sum(dim=0) - x.cumsum(dim=0)
    return (x.sum(dim=0) - rest) / torch.arange(1, len(x) + 1)[:, None]


class CausalityCase(NamedTuple):
    """A layer, whether a token of it sees the future, and what to say where an answer says otherwise."""

    layer: nn.Module
    truth: bool
    advice: str


def causality_cases() -> dict[str, CausalityCase]:
    """The layers of the exercise by name, made from the same random numbers each time. All are in training mode."""

    def moe(top_k: int = 2, router: type[nn.Module] | None = None, **kwargs) -> MoE:
        router = router and router(D_MODEL, NUM_EXPERTS, top_k)
        return MoE(D_MODEL, D_FF, NUM_EXPERTS, top_k, router=router, **kwargs)

    def two_places(moe: MoE, x: Tensor) -> Tensor:  # for each expert, however long the sequence
        return DISPATCH["loop"](moe.experts, x, apply_capacity(moe.router(x), 2))

    def in_groups(moe: MoE, x: Tensor) -> Tensor:  # of four tokens, each apart, as large models do
        return torch.cat([moe(group)[0] for group in x.split(4)])

    with seeded(0):
        cases = {
            "top-k": (OutputOnly(moe()), False,
                f"A token may change itself: compare only the tokens before those you changed. {TINY}"),
            "Soft MoE": (OutputOnly(SoftMoE(D_MODEL, D_FF, NUM_EXPERTS)), True,
                "Change late tokens of a copy of x (or cut them off), and look at the outputs of the tokens before."),
            "mean of all tokens so far": (OutputOnly(nn.Identity(), looking_back), False,
                f"It only looks back. Did you change an early token and look at later ones? Turn that round. {TINY}"),
            "top-k with noise": (OutputOnly(moe(router=NoisyTopKRouter)), False,
                "Its noise is drawn anew in each call, so two calls differ anyway. Call layer.eval() first."),
            "expert choice": (OutputOnly(moe(router=ExpertChoiceRouter)), True,
                "An expert prefers a later token to an earlier one. Change more than a little, at several places."),
            "top-2, capacity in order": (OutputOnly(moe(capacity_factor=1.0)), True,
                "A later first choice takes the place of an earlier second choice. Try every place in the sequence."),
            "top-1, capacity by weight": (OutputOnly(moe(1, capacity_factor=1.0, capacity_priority="weight")), True,
                "A later token with a larger probability takes an earlier one's place. Try every place."),
            "top-1, a fixed capacity in order": (OutputOnly(moe(1), two_places), False,
                "Only earlier tokens can take a token's place here. Look at the tokens before those that you change."),
            "expert choice in groups of 4": (OutputOnly(moe(router=ExpertChoiceRouter), in_groups), True,
                "The last of the 13 tokens is alone in its group, so a change there shows nothing. Try every place."),
        }  # fmt: skip
    return {name: CausalityCase(*case) for name, case in cases.items()}


@torch.no_grad()
def check_causality(function: Callable[[nn.Module, Tensor], bool | None]) -> Check:
    """Try `function`(layer, x (T, D)) -> whether a token sees the future, on layers whose truth is known.

    >>> check_causality(my_sees_the_future)
    ✔ Right. Your test tells all 9 layers apart.
    """

    def try_case(name: str, case: CausalityCase) -> None:
        with seeded(1):
            x = torch.randn(NUM_TOKENS, D_MODEL)
            given = x.clone()
            verdict = attempt(partial(function, case.layer, x), f"At the layer {name!r}")
        is_one = isinstance(verdict, Tensor) and verdict.numel() == 1 and not verdict.is_meta
        value = verdict.item() if is_one else verdict
        if not isinstance(value, bool | np.bool_):
            raise Problem(f"Return True or False, not {kind_of(verdict)} (at {name!r}).")
        if value == case.truth:
            return
        if not torch.equal(x, given):
            raise Problem(CHANGED, known=True)
        truth = "sees the future" if case.truth else "does not see the future"
        raise Problem(f"{name!r} {truth}, and your function says otherwise. {case.advice}", known=True)

    cases = causality_cases()
    return judge(cases.items(), try_case, f"Your test tells all {len(cases)} layers apart.")


def my_sees_the_future(layer, x):
    layer.eval()  # no noise
    y = layer(x)
    for t in range(1, len(x)):
        without_the_rest = layer(x[:t])  # the first t tokens, as if nothing came after them
        if not torch.allclose(without_the_rest, y[:t], atol=1e-5):
            return True
    return False


def by_change(change: Callable[[Tensor, int], Tensor], places=range(1, NUM_TOKENS)) -> Callable:
    """An answer: change x at and after each of the places t, and compare the tokens before."""

    def sees(layer: nn.Module, x: Tensor) -> bool:
        y = layer.eval()(x)
        return any(not same(layer(change(x.clone(), t))[:t], y[:t]) for t in places)

    return sees


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5)


def redrawn(x: Tensor, t: int) -> Tensor:
    return torch.cat([x[:t], 3 * torch.randn_like(x[t:])])


CHANGED = "Your function changed x itself, and so what it compares with. Use x.clone()."
MISTAKES = {
    lambda f, x: any(not same(f(x[:t]), f(x)[:t]) for t in range(1, len(x))): "Call layer.eval() first.",
    lambda f, x: any(not torch.equal(f.eval()(x[:t]), f(x)[:t]) for t in range(1, len(x))): TINY,
    lambda f, x: not same(f.eval()(torch.cat([x[:1] + 1, x[1:]]))[1:], f(x)[1:]): "Did you change an early token",
    lambda f, x: not same(f.eval()(torch.cat([x[:-1], x[-1:] + 1])), f(x)): "A token may change itself",
    lambda f, x: not same(f.eval()(x.add_(1))[:-1], f(x)[:-1]): CHANGED,
    by_change(redrawn, [12] * 10): "The last of the 13 tokens is alone in its group",
    by_change(lambda x, t: torch.cat([x[:t], x[t:] + 0.01])): "Change more than a little, at several places.",
}

causality = Exercise(
    "causality", lesson="06b", stars=3, solution=my_sees_the_future,
    check=check_causality,
    hints=(
        "Run the layer on the whole sequence, then change something *late* and look at what came out *early*.",
        "You can cut the sequence off at a place t, or put other tokens from t on. One place is not enough: try each.",
        "Three traps: noise that is still on (`layer.eval()`), `x` changed by accident (`x.clone()`), and differences "
        "that are only rounding (`torch.allclose(a, b, atol=1e-5)`).",
    ),
    mistakes=MISTAKES,
)  # fmt: skip
