"""A Hugging Face MoE block as our `MoE`, with its weights.

The blocks are known by their class in transformers 5.18 to 5.24, which is not imported. Where the same weights still
give something else:

- The router computes in float32, or float64 for float64. Theirs rounds to float32 in float64 too, and in bfloat16
  most round the logits (Switch the scores, DeepSeek-V3 neither) to bfloat16, where a near-tie may fall the other way.
- In training, the router alone sees the jitter; Mixtral multiplies x itself, in place, and so does Switch where its
  router's type is that of x. Switch's dropout is left out.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from moe_lessons.hub.variants import GptOssMoE, Llama4MoE, Llama4Router, Qwen2MoE, SwitchMoE
from moe_lessons.nn import MoE, TopKRouter

Layout = Callable[[list[Tensor]], Tensor]


def swapped(parts: list[Tensor]) -> Tensor:
    return parts[0].mT  # (E, in, out) -> (E, out, in)


def gate_first(parts: list[Tensor]) -> Tensor:
    """gpt-oss has gate and up interleaved, g u g u, in the last dimension; here all of gate comes first."""
    sorted_out = torch.cat([parts[0][..., ::2], parts[0][..., 1::2]], dim=-1)  # (E, D, 2F), of biases (E, 2F)
    return sorted_out.mT if sorted_out.ndim == 3 else sorted_out


@dataclass(frozen=True)
class Block:
    """A kind of block of Hugging Face, and how to make ours of it."""

    family: str
    weights: dict[str, list[str]]  # ours -> theirs, of which several stand one after the other; {e}: of each expert
    options: dict[str, str]  # of `make`, by where they stand in the block
    make: Callable[..., MoE] = MoE
    fixed: dict[str, Any] = field(default_factory=dict)  # options that are the same in all such blocks
    layouts: dict[str, Layout] = field(default_factory=dict)  # of weights that are laid out otherwise


GATE = {"router.weight": ["gate.weight"]}
ROUTER = {"router.weight": ["router.weight"]}
STACKED = {name: [name] for name in ("experts.gate_up_proj", "experts.down_proj")}
BIASES = {name: [name] for name in ("router.bias", "experts.gate_up_proj_bias", "experts.down_proj_bias")}
NORM = {"top_k": "gate.top_k", "norm_topk_prob": "gate.norm_topk_prob"}


def shared(name: str) -> dict[str, list[str]]:
    """The weights of a shared expert, called `name` there."""
    inputs = [f"{name}.{part}.weight" for part in ("gate_proj", "up_proj")]
    return {"shared_expert.gate_up_proj": inputs, "shared_expert.down_proj": [f"{name}.down_proj.weight"]}


BLOCKS = {
    "MixtralSparseMoeBlock": Block(
        "Mixtral",
        GATE | STACKED,
        {"top_k": "gate.top_k", "jitter_noise": "jitter_noise"},
        fixed={"norm_topk_prob": True},
    ),
    "OlmoeSparseMoeBlock": Block("OLMoE", GATE | STACKED, NORM),
    "Qwen2MoeSparseMoeBlock": Block(
        "Qwen2-MoE",
        GATE | STACKED | shared("shared_expert") | {"shared_expert.gate.weight": ["shared_expert_gate.weight"]},
        NORM,
        Qwen2MoE,
    ),
    "Qwen3MoeSparseMoeBlock": Block("Qwen3-MoE", GATE | STACKED, NORM),
    "DeepseekV3MoE": Block(
        "DeepSeek-V3",
        GATE | STACKED | shared("shared_experts") | {"router.expert_bias": ["gate.e_score_correction_bias"]},
        NORM
        | {"num_groups": "gate.num_group", "topk_groups": "gate.topk_group"}
        | {"routed_scaling_factor": "gate.routed_scaling_factor"},
        fixed={"router": "sigmoid"},
    ),
    "GptOssMLP": Block(
        "gpt-oss",
        ROUTER | STACKED | BIASES,
        {"top_k": "router.top_k"},
        GptOssMoE,
        fixed={"norm_topk_prob": True},
        layouts={
            "experts.gate_up_proj": gate_first,
            "experts.gate_up_proj_bias": gate_first,
            "experts.down_proj": swapped,
        },
    ),
    "Llama4TextMoe": Block(
        "Llama 4",
        ROUTER | STACKED | shared("shared_expert"),
        {"top_k": "router.top_k"},
        Llama4MoE,
        fixed={"router": Llama4Router},
        layouts={"experts.gate_up_proj": swapped, "experts.down_proj": swapped},
    ),
    "SwitchTransformersSparseMLP": Block(
        "Switch",
        {
            "router.weight": ["router.classifier.weight"],
            "experts.up_proj": ["experts.expert_{e}.wi.weight"],
            "experts.down_proj": ["experts.expert_{e}.wo.weight"],
        },
        {"jitter_noise": "router.jitter_noise", "expert_capacity": "router.expert_capacity"},
        SwitchMoE,
        fixed={"top_k": 1},
        layouts={"experts.up_proj": torch.stack, "experts.down_proj": torch.stack},
    ),
}


def convert_block(hf_block: nn.Module) -> MoE:
    """Our `MoE` with the weights of one Hugging Face MoE block: for the same x the same output and gradients.

    hf_block: of one of `BLOCKS`, such as `model.model.layers[0].mlp` of an OLMoE. The weights are copied; their type,
        device, requires_grad and training mode are kept.

    Raises ValueError for another block, other shapes, quantised weights, or an activation that `Experts` lacks."""
    kind = type(hf_block).__name__
    if kind not in BLOCKS or not type(hf_block).__module__.startswith("transformers."):
        known = ", ".join(f"{block.family} ({name})" for name, block in BLOCKS.items())
        raise ValueError(f"hf_block must be one MoE block from transformers: {known}; got {kind}")
    block, given = BLOCKS[kind], hf_block.state_dict(keep_vars=True)
    try:
        options = {name: attrgetter(path)(hf_block) for name, path in block.options.items()}
        weights = {name: copied(found(given, paths), block.layouts.get(name)) for name, paths in block.weights.items()}
    except (AttributeError, KeyError) as error:
        raise ValueError(f"hf_block must be the {block.family} block of transformers 5.18 or later: {error}") from error
    options |= block.fixed | activation_of(hf_block.experts)
    if "router.classifier.bias" in given:  # which Switch may have
        weights["router.bias"] = copied([given["router.classifier.bias"]])
    if "router.bias" in weights:
        options["router"] = partial(TopKRouter, bias=True)
    if "shared_expert.down_proj" in weights:
        options["shared_d_ff"] = weights["shared_expert.down_proj"].shape[-1]
    (num_experts, d_model), d_ff = weights["router.weight"].shape, weights["experts.down_proj"].shape[-1]
    with torch.device("meta"):  # a new module has shapes only: the numbers are copied
        moe = block.make(d_model, d_ff, num_experts, options.pop("top_k"), **options)
    return filled(moe, weights).train(hf_block.training)


def found(given: dict[str, Tensor], names: list[str]) -> list[Tensor]:
    """The tensors of these names, of every expert where a name has an {e}. KeyError where one is missing."""
    if "{e}" in names[0]:
        names = [name for e in range(len(given)) if (name := names[0].format(e=e)) in given] or names
    return [given[name] for name in names]


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


def copied(parts: list[Tensor], layout: Layout | None = None) -> Tensor:
    """A copy of several tensors as one, in our layout (None: one after the other): a parameter if they are."""
    for part in parts:
        if not part.is_floating_point() or part.element_size() == 1:
            raise ValueError(f"weights to be copied must have 16 bits or more, not quantised ones, got {part.dtype}")
    copy = (layout or torch.cat)([part.detach() for part in parts]).clone(memory_format=torch.contiguous_format)
    return nn.Parameter(copy, any(p.requires_grad for p in parts)) if isinstance(parts[0], nn.Parameter) else copy
