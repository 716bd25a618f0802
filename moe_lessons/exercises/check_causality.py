"""Which layers let a token see the future? An exercise that checks itself, and the layers that it is tried on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moe_lessons.exercises.exercise import Check, attempt
from moe_lessons.nn import (
    ExpertChoiceRouter,
    MoE,
    NoisyTopKRouter,
    SoftMoE,
    apply_capacity,
    choose_dispatch,
    seeded,
)
from moe_lessons.nn.dispatch import DISPATCH

D_MODEL, D_FF, NUM_EXPERTS = 8, 16, 4
NUM_TOKENS = 13  # three groups of four, and a token alone
ROUNDING = 1e-5  # the same sum, computed in another order, differs by less than this
TINY = "And tiny differences are rounding: compare with torch.allclose(a, b, atol=1e-5)."


class OutputOnly(nn.Module):
    """A block without its routing: x (T, D) -> y (T, D), for one sequence of tokens."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x)
        return out[0] if isinstance(out, tuple) else out


class FixedCapacity(nn.Module):
    """A mixture whose experts take `capacity` (C) assignments each, however long the sequence: x (T, D) -> y (T, D)."""

    def __init__(self, moe: MoE, capacity: int):
        super().__init__()
        self.moe, self.capacity = moe, capacity

    def forward(self, x: Tensor) -> Tensor:
        routing = apply_capacity(self.moe.router(x), self.capacity)
        return DISPATCH[choose_dispatch(self.moe.experts, routing)](self.moe.experts, x, routing)


class InGroups(nn.Module):
    """Runs a block on each group of `size` tokens apart, as large models do: x (T, D) -> y (T, D)."""

    def __init__(self, block: nn.Module, size: int):
        super().__init__()
        self.block, self.size = block, size

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.block(group) for group in x.split(self.size)])


class LookingBack(nn.Module):
    """The mean of a token and of all tokens before it: x (T, D) -> y (T, D).

    The sum so far is computed as the sum of all minus the sum of the rest: the later tokens cancel, up to rounding.
    """

    def forward(self, x: Tensor) -> Tensor:
        rest = x.sum(dim=0) - x.cumsum(dim=0)
        return (x.sum(dim=0) - rest) / torch.arange(1, len(x) + 1)[:, None]


@dataclass(frozen=True)
class CausalityCase:
    """A layer, whether a token of it sees the future, and what to say to one who finds otherwise."""

    layer: nn.Module
    truth: bool
    advice: str


def causality_cases() -> dict[str, CausalityCase]:
    """The layers of the exercise by name, made from the same random numbers each time. All are in training mode."""

    def moe(top_k: int = 2, router=None, **kwargs) -> OutputOnly:
        return OutputOnly(MoE(D_MODEL, D_FF, NUM_EXPERTS, top_k, router=router, **kwargs))

    def expert_choice() -> OutputOnly:
        return moe(router=ExpertChoiceRouter(D_MODEL, NUM_EXPERTS, 2))

    with seeded(0):
        return {
            "top-k": CausalityCase(
                moe(), False, f"A token may change itself: compare only the tokens before those you changed. {TINY}"
            ),
            "Soft MoE": CausalityCase(
                OutputOnly(SoftMoE(D_MODEL, D_FF, NUM_EXPERTS)),
                True,
                "Change late tokens of a copy of x (or cut them off), and look at the outputs of the tokens before.",
            ),
            "mean of all tokens so far": CausalityCase(
                LookingBack(),
                False,
                f"It only looks back. Did you change an early token and look at later ones? Turn that round. {TINY}",
            ),
            "top-k with noise": CausalityCase(
                moe(router=NoisyTopKRouter(D_MODEL, NUM_EXPERTS, 2)),
                False,
                "Its noise is drawn anew in each call, so two calls differ anyway. Call layer.eval() first.",
            ),
            "expert choice": CausalityCase(
                expert_choice(),
                True,
                "An expert prefers a later token to an earlier one. Change more than a little, and try several places.",
            ),
            "top-2, capacity in order": CausalityCase(
                moe(capacity_factor=1.0),
                True,
                "A later first choice takes the place of an earlier second choice. Try every place in the sequence.",
            ),
            "top-1, capacity by weight": CausalityCase(
                moe(top_k=1, capacity_factor=1.0, capacity_priority="weight"),
                True,
                "A later token of which the router is surer takes an earlier one's place. Try every place.",
            ),
            "top-1, a fixed capacity in order": CausalityCase(
                FixedCapacity(moe(top_k=1).block, capacity=2),
                False,
                "Only earlier tokens can take a token's place here. Look at the tokens before those that you change.",
            ),
            "expert choice in groups of 4": CausalityCase(
                InGroups(expert_choice(), size=4),
                True,
                "The last of the 13 tokens is alone in its group, so changing that one shows nothing. Try every place.",
            ),
        }


@torch.no_grad()
def sees_the_future(layer: nn.Module, x: Tensor) -> bool:
    """Whether the output of any token depends on the tokens after it: one answer to the exercise. x (T, D).

    The tokens before place t are computed twice: with what follows, and without. Where that differs, they saw it.
    The layer is left in eval mode.
    """
    layer.eval()
    y = layer(x)
    return any(not torch.allclose(layer(x[:t]), y[:t], atol=ROUNDING) for t in range(1, len(x)))


@torch.no_grad()
def check_causality(function: Callable[[nn.Module, Tensor], bool | None]) -> Check:
    """Try `function`(layer, x (T, D)) -> whether a token sees the future, on layers whose truth is known.

    It never raises: whatever the function does is said in words.

    >>> check_causality(sees_the_future)
    ✔ Right: your check tells all 9 layers apart.
    """
    cases = causality_cases()
    verdicts, changed_x = {}, False
    for name, case in cases.items():
        with seeded(1):
            x = torch.randn(NUM_TOKENS, D_MODEL)
            given = x.clone()
            missing = "sees_the_future returns nothing. Write it, then run the cell again."
            call = partial(function, case.layer, x)
            verdict, problem = attempt(call, f"Your function stopped at {name!r}:", missing)
        if problem is not None:
            return problem
        if not _is_truth_value(verdict):
            kind = type(verdict).__name__
            return Check("wrong", f"Not yet: return True or False, nothing of type {kind} ({name!r}).")
        verdicts[name] = bool(verdict)
        changed_x |= not torch.equal(x, given)
    wrong = [name for name, case in cases.items() if verdicts[name] != case.truth]
    if not wrong:
        return Check("right", f"Right: your check tells all {len(cases)} layers apart.")
    if changed_x:
        return Check("wrong", "Not yet: your function changed x itself, and so what it compares with. Use x.clone().")
    name, advice = wrong[0], cases[wrong[0]].advice
    if len(set(verdicts.values())) == 1:
        said = f"your function says {verdicts[name]} of every layer, of {name!r} too"
        return Check("wrong", f"Not yet: {said}. {advice}")
    truth = "sees the future" if cases[name].truth else "does not see the future"
    return Check("wrong", f"Not yet: {name!r} {truth}, and your function says otherwise. {advice}")


def _is_truth_value(verdict: Any) -> bool:
    """A bool, or one from torch or numpy."""
    if isinstance(verdict, Tensor):
        return verdict.dtype == torch.bool and verdict.numel() == 1
    return type(verdict).__name__ in ("bool", "bool_")
