"""Fair opponents of a mixture of experts: dense baselines."""

import copy
import math
import re

from torch import nn

from moe_lessons.nn.ffn import ACTIVATIONS, GATED, FeedForward
from moe_lessons.nn.seeding import seeded
from moe_lessons.support.errors import check_choice


def dense_name(width: float) -> str:
    """Name a dense model by its `width`, in multiples of the active width of the MoE that it is compared with.

    >>> dense_name(1), dense_name(8 / 3)
    ('dense, 1×', 'dense, 2.67×')
    """
    return f"dense, {width:.3g}×"


def dense_width(name: str) -> float:
    """Read the width from a `dense_name`; nan from the name of any other model."""
    found = re.fullmatch(r"dense, ([\d.]+)×", name)
    return float(found[1]) if found else math.nan


def is_moe(module: nn.Module) -> bool:
    """Return whether a module is a mixture of experts: ours, or a learner's class with the same attributes."""
    return all(hasattr(module, name) for name in ("num_experts", "top_k", "experts"))


def dense_baseline(model: nn.Module, match: str = "flops", seed: int = 0) -> nn.Module:
    """A copy of `model` in which every mixture of experts is a dense `FeedForward`.

    match='flops': its width is K·F, so that a token meets as many parameters as in the mixture.
    match='params': its width is E·F, so that it has as many parameters as the mixture.
    A shared expert adds its width to either, and biases count; the router's parameters (E·D) have no counterpart. All
    other weights are copied; the new ones start from `seed`.

    `model` may be an `MoE` or any module that contains some. ValueError where it contains none.

    >>> from moe_lessons.nn import MoE
    >>> dense_baseline(MoE(d_model=4, d_ff=16, num_experts=8, top_k=2), match="flops")
    FeedForward(d_model=4, d_ff=32, activation='swiglu')
    """
    check_choice("match", match, ("flops", "params"))
    if not isinstance(model, nn.Module) or not any(is_moe(module) for module in model.modules()):
        raise ValueError(f"model must contain a mixture of experts, got {type(model).__name__}")
    with seeded(seed):
        baseline = copy.deepcopy(model)  # as a whole: weights that are shared stay shared
        made = {moe: _dense(moe, match) for moe in baseline.modules() if is_moe(moe)}
    for module in list(baseline.modules()):
        for name, child in module._modules.items():
            module._modules[name] = made.get(child, child)
    return made.get(baseline, baseline)


def with_baselines(model: nn.Module, seed: int = 0) -> dict[str, nn.Module]:
    """Set the dense baselines of a mixture beside it, by name: the FLOP-matched and the parameter-matched one, which
    are one where K = E. All that is no mixture starts equal in them."""
    moe = next(filter(is_moe, model.modules()))
    matches = {dense_name(1): "flops", dense_name(moe.num_experts / moe.top_k): "params"}
    return {"MoE": model} | {name: dense_baseline(model, match, seed) for name, match in matches.items()}


def _dense(moe: nn.Module, match: str) -> FeedForward:
    """One FFN with the parameters of K or of all E experts, and of a shared one."""
    weight = next(moe.experts.parameters())
    known = [getattr(module, "activation", None) for module in moe.experts.modules()]
    activation = next((name for name in known if name in ACTIVATIONS), "swiglu")
    per_unit = moe.d_model * (3 if activation in GATED else 2)  # parameters of one hidden unit
    share = moe.top_k / moe.num_experts if match == "flops" else 1
    parts = moe.experts, getattr(moe, "shared_expert", None) or nn.Identity()
    routed, shared = (sum(weight.numel() for weight in part.parameters()) for part in parts)
    width = round((share * routed + shared) / per_unit)
    return FeedForward(moe.d_model, max(width, 1), activation).to(weight.device, weight.dtype)
