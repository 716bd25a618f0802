"""Which layers let a token see the future? An exercise that checks itself, and the layers that it is tried on."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from moe_lessons.exercises.exercise import Check, Problem, attempt, judge
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
def sees_the_future(layer: nn.Module, x: Tensor) -> bool:
    """Whether the output of any token depends on the tokens after it: one answer to the exercise. x (T, D).

    The tokens before place t are computed with what follows and without. The layer is left in eval mode.
    """
    layer.eval()
    y = layer(x)
    return any(not torch.allclose(layer(x[:t]), y[:t], atol=1e-5) for t in range(1, len(x)))


@torch.no_grad()
def check_causality(function: Callable[[nn.Module, Tensor], bool | None]) -> Check:
    """Try `function`(layer, x (T, D)) -> whether a token sees the future, on layers whose truth is known.

    >>> check_causality(sees_the_future)
    ✔ Right: your check tells all 9 layers apart.
    """
    missing = "sees_the_future returns nothing. Write it, then run the cell again."

    def try_case(name: str, case: CausalityCase) -> None:
        with seeded(1):
            x = torch.randn(NUM_TOKENS, D_MODEL)
            given = x.clone()
            verdict = attempt(partial(function, case.layer, x), f"Your function stopped at {name!r}:", missing)
        value = verdict.item() if isinstance(verdict, Tensor) and verdict.numel() == 1 else verdict
        if not isinstance(value, bool | np.bool_):
            raise Problem(f"Not yet: return True or False, nothing of type {type(verdict).__name__} ({name!r}).")
        if value == case.truth:
            return
        if not torch.equal(x, given):
            raise Problem("Not yet: your function changed x itself, and so what it compares with. Use x.clone().")
        truth = "sees the future" if case.truth else "does not see the future"
        raise Problem(f"Not yet: {name!r} {truth}, and your function says otherwise. {case.advice}")

    cases = causality_cases()
    return judge(cases.items(), try_case, f"Right: your check tells all {len(cases)} layers apart.")
