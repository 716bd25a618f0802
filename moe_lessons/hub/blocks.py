"""A Hugging Face MoE block as our `MoE`, with its weights.

    family       scores    experts are chosen by         weight of a chosen expert    experts         beside them
    Mixtral      softmax   score                         score / sum of K chosen      SwiGLU
    OLMoE        softmax   score                         score, or as Mixtral (*)     SwiGLU
    Qwen2-MoE    softmax   score                         score, or as Mixtral (*)     SwiGLU          a gated expert
    Qwen3-MoE    softmax   score                         score, or as Mixtral (*)     SwiGLU
    DeepSeek-V3  sigmoid   score + bias, in best groups  factor · score / sum (*)     SwiGLU          a shared expert
    gpt-oss      softmax   score                         score / sum of K chosen      clamped, biases
    Llama 4      sigmoid   logit                         score, on expert's input     SwiGLU          a shared expert
    Switch       softmax   score, K = 1, capacity (**)   score                        ReLU

(*) norm_topk_prob. (**) each expert takes C tokens of each sequence, the first ones.

Each is built from its specification in `nn.families`.
The blocks are known by their class, as in transformers 5.18 and later (5.x, tested up to 5.24), which is not imported.
Where the same weights still give something else:

- The router computes in float32, or float64 for float64. Theirs rounds to float32 in float64 too, and in bfloat16
  most round the logits (Switch the scores, DeepSeek-V3 neither) to bfloat16, where a near-tie may fall the other way.
- In training, Mixtral multiplies x itself by the jitter, in place, so that experts and caller see it as well; Switch
  does where its router's type is that of x. Here the router alone sees it. Switch's dropout is left out.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from moe_lessons.nn.balancing import apply_capacity
from moe_lessons.nn.families import FAMILIES as SPECS
from moe_lessons.nn.families import Spec
from moe_lessons.nn.moe import MoE
from moe_lessons.nn.routing import Routing

SILU = {"SiLU": "swiglu", "SiLUActivation": "swiglu"}  # the activation of their gate: the name of ours


def convert_block(hf_block: nn.Module) -> MoE:
    """Our `MoE` with the weights of one Hugging Face MoE block: for the same x the same output and gradients.

    hf_block: of one of `FAMILIES`, such as `model.model.layers[0].mlp` of an OLMoE. The weights are copied; their type,
        device, requires_grad and training mode are kept. One made of several can be trained where one of them can.

    Raises ValueError for a block of another family, for weights of another shape or quantised ones, and for an
    activation that `Experts` lacks. What remains different: see the head of this module.
    """
    name = type(hf_block).__name__
    if name not in FAMILIES or not type(hf_block).__module__.startswith("transformers."):
        known = ", ".join(f"{family} ({block})" for block, (family, _) in FAMILIES.items())
        raise ValueError(f"hf_block must be one MoE block from transformers: {known}; got {name}")
    family, convert = FAMILIES[name]
    try:
        with torch.device("meta"):  # a new module has shapes only: the numbers are copied
            return convert(hf_block, SPECS[family]).train(hf_block.training)
    except AttributeError as error:
        raise ValueError(f"hf_block must be the {family} block of transformers 5.18 or later: {error}") from error


def mixtral(block: nn.Module, spec: Spec) -> MoE:
    return swiglu(block, spec | {"jitter_noise": block.jitter_noise}, {})


def olmoe(block: nn.Module, spec: Spec, **more: Tensor) -> MoE:
    return swiglu(block, spec | {"norm_topk_prob": bool(block.gate.norm_topk_prob)}, more)


def qwen2_moe(block: nn.Module, spec: Spec) -> MoE:
    gate = {"shared_expert_gate.weight": copied(block.shared_expert_gate.weight)}
    return olmoe(block, spec, **dense(block.shared_expert), **gate)


def deepseek_v3(block: nn.Module, spec: Spec) -> MoE:
    gate = block.gate
    groups = {"num_groups": gate.num_group, "topk_groups": gate.topk_group}
    scale = {"norm_topk_prob": bool(gate.norm_topk_prob), "routed_scaling_factor": gate.routed_scaling_factor}
    bias = {"router.expert_bias": copied(gate.e_score_correction_bias)}
    return swiglu(block, spec | groups | scale, dense(block.shared_experts) | bias)


def llama4(block: nn.Module, spec: Spec) -> MoE:
    return swiglu(block, spec, dense(block.shared_expert), lambda w: w.mT)  # (E, D, 2F) -> (E, 2F, D)


def swiglu(block: nn.Module, spec: Spec, more: dict, layout: Callable = lambda w: w) -> MoE:
    """A block whose experts are ours in this layout: (E, 2F, D), gate first, and (E, D, F). more: its other weights."""
    experts, gate = block.experts, block.router if hasattr(block, "router") else block.gate
    weights = {f"experts.{name}": copied(getattr(experts, name), layout) for name in ("gate_up_proj", "down_proj")}
    weights |= {"router.weight": copied(gate.weight), **more}
    return assembled(spec | {"top_k": gate.top_k, "activation": activation_of(experts.act_fn, SILU)}, weights)


def gpt_oss(block: nn.Module, spec: Spec) -> MoE:
    experts = block.experts
    for name, value in {"alpha": 1.702, "limit": 7.0}.items():
        if getattr(experts, name) != value:
            raise ValueError(f"{name} of hf_block.experts must be {value}, got {getattr(experts, name)}")
    # Theirs is a softmax over the K chosen logits: that of all, divided by the sum of the K chosen.
    weights = {
        "router.weight": copied(block.router.weight),
        "router.bias": copied(block.router.bias),
        "experts.gate_up_proj": copied(experts.gate_up_proj, lambda w: gate_first(w).mT),  # (E, D, 2F) -> (E, 2F, D)
        "experts.gate_up_proj_bias": copied(experts.gate_up_proj_bias, gate_first),  # (E, 2F)
        "experts.down_proj": copied(experts.down_proj, lambda w: w.mT),  # (E, F, D) -> (E, D, F)
        "experts.down_proj_bias": copied(experts.down_proj_bias),  # (E, D)
    }
    return assembled(spec | {"top_k": block.router.top_k}, weights)


def switch(block: nn.Module, spec: Spec) -> MoE:
    linear, experts = block.router.classifier, list(block.experts.values())
    bias = {} if linear.bias is None else {"router.bias": copied(linear.bias)}
    weights = {
        "router.weight": copied(linear.weight),
        "experts.up_proj": copied([expert.wi.weight for expert in experts], torch.stack),  # E of (F, D) -> (E, F, D)
        "experts.down_proj": copied([expert.wo.weight for expert in experts], torch.stack),  # E of (D, F) -> (E, D, F)
        **bias,
    }
    own = {"activation": activation_of(experts[0].act, {"ReLU": "relu", "GELUActivation": "gelu"})}
    own |= {"router_bias": bool(bias), "jitter_noise": block.router.jitter_noise, "capacity_factor": None}
    moe = assembled(spec | own, weights, SwitchMoE)
    moe.expert_capacity = block.router.expert_capacity
    return moe


FAMILIES: dict[str, tuple[str, Callable[[nn.Module, Spec], MoE]]] = {
    "MixtralSparseMoeBlock": ("Mixtral", mixtral),
    "OlmoeSparseMoeBlock": ("OLMoE", olmoe),
    "Qwen2MoeSparseMoeBlock": ("Qwen2-MoE", qwen2_moe),
    "Qwen3MoeSparseMoeBlock": ("Qwen3-MoE", olmoe),
    "DeepseekV3MoE": ("DeepSeek-V3", deepseek_v3),
    "GptOssMLP": ("gpt-oss", gpt_oss),
    "Llama4TextMoe": ("Llama 4", llama4),
    "SwitchTransformersSparseMLP": ("Switch", switch),
}


class SwitchMoE(MoE):
    """The capacity of Hugging Face's Switch: a fixed number of tokens for each expert and each sequence (T, D) of x."""

    expert_capacity: int

    def limit(self, routing: Routing, shape: tuple[int, ...]) -> Routing:
        sequence = routing.token_idx // max(shape[-2] if len(shape) > 1 else 1, 1)  # (A,)
        queue = sequence * self.num_experts + routing.expert_idx  # (A,) one for each sequence and expert
        limited = apply_capacity(replace(routing, expert_idx=queue), self.expert_capacity)
        dropped = limited.dropped_expert_idx % self.num_experts
        return replace(limited, expert_idx=limited.expert_idx % self.num_experts, dropped_expert_idx=dropped)


def assembled(spec: Spec, weights: dict[str, Tensor], block: type[MoE] = MoE) -> MoE:
    """A block of this specification, of the sizes of these weights, which are named as in its state_dict."""
    (num_experts, d_model), d_ff = weights["router.weight"].shape, weights["experts.down_proj"].shape[-1]
    own = {"num_experts": num_experts, "shared_experts": 0}
    if "shared_expert.down_proj" in weights:
        own["shared_d_ff"] = weights["shared_expert.down_proj"].shape[-1]
    return filled(block(d_model, d_ff, **spec | own), weights)


def filled(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """`module`, made on the meta device, with these weights, which are named as in its state_dict."""
    for name, empty in module.state_dict().items():
        if weights[name].shape != empty.shape:
            wanted, got = tuple(empty.shape), tuple(weights[name].shape)
            raise ValueError(f"{name} of the Hugging Face module must have the shape {wanted} in our layout, got {got}")
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, weights[name])
    return module


def copied(source: Tensor | list[Tensor], layout: Callable[..., Tensor] = lambda tensor: tensor) -> Tensor:
    """A copy of one tensor, or of several as one, in our layout: a parameter if they are."""
    parts = [source] if isinstance(source, Tensor) else source
    for part in parts:
        if not part.is_floating_point() or part.element_size() == 1:
            raise ValueError(f"weights to be copied must have 16 bits or more, not quantised ones, got {part.dtype}")
    with torch.no_grad():
        copy = layout(source).clone(memory_format=torch.contiguous_format)
    return nn.Parameter(copy, any(p.requires_grad for p in parts)) if isinstance(parts[0], nn.Parameter) else copy


def dense(mlp: nn.Module, name: str = "shared_expert") -> dict[str, Tensor]:
    """A dense SwiGLU network: gate (F, D) and up (F, D) -> (2F, D), down (D, F)."""
    gate_up_proj = copied([mlp.gate_proj.weight, mlp.up_proj.weight], torch.cat)
    return {f"{name}.gate_up_proj": gate_up_proj, f"{name}.down_proj": copied(mlp.down_proj.weight)}


def gate_first(interleaved: Tensor) -> Tensor:
    """gpt-oss stores gate and up interleaved, g u g u: (..., 2F) -> (..., 2F), all of gate before all of up."""
    return torch.cat([interleaved[..., ::2], interleaved[..., 1::2]], dim=-1)


def activation_of(act_fn: nn.Module, ours: dict[str, str]) -> str:
    """Our name of an activation, from the class of theirs."""
    if type(act_fn).__name__ not in ours:
        raise ValueError(f"the activation of hf_block must be {' or '.join(ours)}, got {type(act_fn).__name__}")
    return ours[type(act_fn).__name__]
