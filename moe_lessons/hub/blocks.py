"""A Hugging Face MoE block as our `MoE`, with its weights. What sets the families apart stands in `nn.families`.

The blocks are known by their class in transformers 5.18 to 5.24, which is not imported. Where the same weights still
give something else:

- The router computes in float32, or float64 for float64. Theirs rounds to float32 in float64 too, and in bfloat16
  most round the logits (Switch the scores, DeepSeek-V3 neither) to bfloat16, where a near-tie may fall the other way.
- In training, the router alone sees the jitter; Mixtral multiplies x itself, in place, and so does Switch where its
  router's type is that of x. Switch's dropout is left out.
"""

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moe_lessons.nn.balancing import apply_capacity
from moe_lessons.nn.families import FAMILIES
from moe_lessons.nn.moe import MoE
from moe_lessons.nn.routing import Routing


class SwitchMoE(MoE):
    """The capacity of Hugging Face's Switch: a fixed number of tokens for each expert and each sequence (T, D) of x."""

    def __init__(self, *sizes: int, expert_capacity: int, **options):
        super().__init__(*sizes, **options | {"capacity_factor": None})
        self.expert_capacity = expert_capacity

    def limit(self, routing: Routing, shape: tuple[int, ...]) -> Routing:
        sequence = routing.token_idx // max(shape[-2] if len(shape) > 1 else 1, 1)  # (A,)
        queue = sequence * self.num_experts + routing.expert_idx  # (A,) one for each sequence and expert
        limited = apply_capacity(replace(routing, expert_idx=queue), self.expert_capacity)
        dropped = limited.dropped_expert_idx % self.num_experts
        return replace(limited, expert_idx=limited.expert_idx % self.num_experts, dropped_expert_idx=dropped)


def swapped(parts: list[Tensor]) -> Tensor:
    return parts[0].mT  # (E, in, out) -> (E, out, in)


def gate_first(parts: list[Tensor]) -> Tensor:
    """gpt-oss has gate and up interleaved, g u g u, in the last dimension; here all of gate comes first."""
    sorted_out = torch.cat([parts[0][..., ::2], parts[0][..., 1::2]], dim=-1)  # (E, D, 2F), of biases (E, 2F)
    return sorted_out.mT if sorted_out.ndim == 3 else sorted_out


class Family(NamedTuple):
    """A kind of block: options of `MoE` by their place in it, and our weights by theirs (* is each expert)."""

    name: str
    options: dict[str, str]
    weights: dict[str, str]
    layouts: dict[str, Callable[[list[Tensor]], Tensor]]  # of the weights


LAYOUTS = {"": torch.cat, "stacked": torch.stack, "swapped": swapped, "gate first": gate_first}
BLOCKS: dict[str, Family] = {}
with open(Path(__file__).with_name("blocks.csv"), encoding="utf-8", newline="") as rows:
    for row in csv.DictReader(rows):
        family = BLOCKS.setdefault(row["block"], Family(row["family"], {}, {}, {}))
        (family.options if row["kind"] == "option" else family.weights)[row["ours"]] = row["theirs"]
        family.layouts[row["ours"]] = LAYOUTS[row["layout"]]


def convert_block(hf_block: nn.Module) -> MoE:
    """Our `MoE` with the weights of one Hugging Face MoE block: for the same x the same output and gradients.

    hf_block: of one of `BLOCKS`, such as `model.model.layers[0].mlp` of an OLMoE. The weights are copied; their type,
        device, requires_grad and training mode are kept.

    Raises ValueError for another block, other shapes, quantised weights, or an activation that `Experts` lacks."""
    kind = type(hf_block).__name__
    if kind not in BLOCKS or not type(hf_block).__module__.startswith("transformers."):
        known = ", ".join(f"{family.name} ({block})" for block, family in BLOCKS.items())
        raise ValueError(f"hf_block must be one MoE block from transformers: {known}; got {kind}")
    family, given, weights = BLOCKS[kind], hf_block.state_dict(keep_vars=True), {}
    try:
        options = {name: attrgetter(path)(hf_block) for name, path in family.options.items()}
        for name, paths in family.weights.items():
            parts = [given[key] for path in paths.split() for key in given if fnmatchcase(key, path)]
            if parts:
                weights[name] = copied(parts, family.layouts[name])
            elif name != "router.bias":  # which Switch may have
                raise AttributeError(f"it has no {paths}")
    except AttributeError as error:
        raise ValueError(f"hf_block must be the {family.name} block of transformers 5.18 or later: {error}") from error
    (num_experts, d_model), d_ff = weights["router.weight"].shape, weights["experts.down_proj"].shape[-1]
    options |= {"num_experts": num_experts, "shared_experts": 0, "router_bias": "router.bias" in weights}
    options |= activation_of(hf_block.experts)
    if "shared_expert.down_proj" in weights:
        options["shared_d_ff"] = weights["shared_expert.down_proj"].shape[-1]
    with torch.device("meta"):  # a new module has shapes only: the numbers are copied
        moe = (SwitchMoE if family.name == "Switch" else MoE)(d_model, d_ff, **FAMILIES[family.name] | options)
    return filled(moe, weights).train(hf_block.training)


def activation_of(experts: nn.Module) -> dict[str, Any]:
    """The argument of `MoE`; none for gpt-oss, whose activation is no module and has fixed numbers."""
    for name, value in {"alpha": 1.702, "limit": 7.0}.items():
        if getattr(experts, name, value) != value:
            raise ValueError(f"{name} of hf_block.experts must be {value}, got {getattr(experts, name)}")
    act = next((module for name, module in experts.named_modules() if re.search(r"\bact(_fn)?$", name)), None)
    gated, plain = {"SiLU": "swiglu", "SiLUActivation": "swiglu"}, {"ReLU": "relu", "GELUActivation": "gelu"}
    ours, name = gated if hasattr(experts, "gate_up_proj") else plain, type(act).__name__
    if act is not None and name not in ours:
        raise ValueError(f"the activation of hf_block must be {' or '.join(ours)}, got {name}")
    return {} if act is None else {"activation": ours[name]}


def filled(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """`module`, made on the meta device, with these weights, which are named as in its state_dict."""
    for name, empty in module.state_dict().items():
        if weights[name].shape != empty.shape:
            wanted, got = tuple(empty.shape), tuple(weights[name].shape)
            raise ValueError(f"{name} of the Hugging Face module must have the shape {wanted} in our layout, got {got}")
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, weights[name])
    return module


def copied(parts: list[Tensor], layout: Callable[[list[Tensor]], Tensor] = torch.cat) -> Tensor:
    """A copy of several tensors as one, in our layout: a parameter if they are."""
    for part in parts:
        if not part.is_floating_point() or part.element_size() == 1:
            raise ValueError(f"weights to be copied must have 16 bits or more, not quantised ones, got {part.dtype}")
    copy = layout([part.detach() for part in parts]).clone(memory_format=torch.contiguous_format)
    return nn.Parameter(copy, any(p.requires_grad for p in parts)) if isinstance(parts[0], nn.Parameter) else copy
