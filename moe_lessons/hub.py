"""A Hugging Face MoE block as our `MoE`, or a Mixtral or Llama as our `LanguageModel`, with its weights.

    family       scores    experts are chosen by   weight of a chosen expert       experts             beside them
    Mixtral      softmax   score                   score / sum of the K chosen     SwiGLU
    OLMoE        softmax   score                   score, or as Mixtral (*)        SwiGLU
    Qwen2-MoE    softmax   score                   score, or as Mixtral (*)        SwiGLU              a shared expert
                                                                                                       with its own gate
    Qwen3-MoE    softmax   score                   score, or as Mixtral (*)        SwiGLU
    DeepSeek-V3  sigmoid   score + expert bias,    score / sum (*), times a        SwiGLU              a shared expert
                           in the best groups      factor
    gpt-oss      softmax   score                   score / sum of the K chosen     clamped SwiGLU,
                                                                                   with biases
    Llama 4      sigmoid   logit                   score, on the expert's input    SwiGLU              a shared expert
    Switch       softmax   score, K = 1, and no    score                           ReLU
                           more than C tokens of
                           a sequence each                                         (*) norm_topk_prob

The blocks are known by their class, as in transformers 5.18 and later (5.x, tested up to 5.24), which is not imported.
From 5.13 to 5.17 all but Switch are the same: there it drops no token. Before 5.13 DeepSeek-V3 is built otherwise.

Where the same weights still give something else:

- The router computes in float32, or float64 for float64. Theirs rounds to float32 in float64 too, and in bfloat16
  most round the logits (Switch the scores, DeepSeek-V3 neither) to bfloat16, where a near-tie may fall the other way.
- Jitter, in training: Mixtral multiplies x itself by the noise, in place, so that the experts see it as well, and so
  does the caller; Switch does where its router's type is that of x. Here the router alone sees it.
- Switch's dropout inside the experts, in training, is left out.
- gpt-oss and Llama 4 return router scores beside y, and Llama 4 returns y as (T, D); here every block returns
  (y, Routing), with y shaped like x.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from moe_lessons.errors import check_positive_int
from moe_lessons.nn.balancing import apply_capacity
from moe_lessons.nn.moe import MoE
from moe_lessons.nn.routers import SigmoidRouter
from moe_lessons.nn.routing import Routing, SwitchRouter, TopKRouter
from moe_lessons.nn.transformer import LanguageModel, TransformerConfig

SILU = {"SiLU": "swiglu", "SiLUActivation": "swiglu"}  # the activation of their gate: the name of ours


def convert_block(hf_block: nn.Module) -> MoE:
    """Our `MoE` with the weights of one Hugging Face MoE block: for the same x the same output and gradients.

    hf_block: a block of one of `FAMILIES`, such as `model.model.layers[0].mlp` of an OLMoE. The weights are copied;
        their type and device, requires_grad, and training mode are kept. A weight made of several (gate and up, the
        experts of Switch) can be trained where one of them can.

    Raises ValueError for a block of another family, for weights of another shape or quantised ones, and for an
    activation that `Experts` lacks. What remains different: see the head of this module.
    """
    name = type(hf_block).__name__
    if name not in FAMILIES or not type(hf_block).__module__.startswith("transformers."):
        known = ", ".join(f"{family} ({block})" for block, (family, _) in FAMILIES.items())
        raise ValueError(f"hf_block must be one MoE block from transformers: {known}; got {name}")
    family, convert = FAMILIES[name]
    try:
        return convert(hf_block).train(hf_block.training)
    except AttributeError as missing:
        wanted = f"the {family} block of transformers 5.18 or later 5.x"
        raise ValueError(f"hf_block must be {wanted}, got one that differs: {missing}") from missing


def mixtral(block: nn.Module) -> MoE:
    router = TopKRouter(*sizes(block.gate), norm_topk_prob=True, jitter_noise=block.jitter_noise, device="meta")
    weights = {"router.weight": copied(block.gate.weight), **stacked(block.experts)}
    return assembled(router, weights, activation=activation_of(block.experts.act_fn, SILU))


def olmoe(block: nn.Module) -> MoE:
    router = TopKRouter(*sizes(block.gate), norm_topk_prob=bool(block.gate.norm_topk_prob), device="meta")
    weights = {"router.weight": copied(block.gate.weight), **stacked(block.experts)}
    return assembled(router, weights, activation=activation_of(block.experts.act_fn, SILU))


def qwen2_moe(block: nn.Module) -> MoE:
    router = TopKRouter(*sizes(block.gate), norm_topk_prob=bool(block.gate.norm_topk_prob), device="meta")
    weights = {"router.weight": copied(block.gate.weight), **stacked(block.experts), **dense(block.shared_expert)}
    weights["shared_expert_gate.weight"] = copied(block.shared_expert_gate.weight)
    return assembled(router, weights, activation=activation_of(block.experts.act_fn, SILU))


def deepseek_v3(block: nn.Module) -> MoE:
    gate = block.gate
    groups = {"num_groups": gate.num_group, "topk_groups": gate.topk_group}
    scale = {"norm_topk_prob": bool(gate.norm_topk_prob), "routed_scaling_factor": gate.routed_scaling_factor}
    router = SigmoidRouter(*sizes(gate), **groups, **scale, device="meta")
    weights = {"router.weight": copied(gate.weight), **stacked(block.experts), **dense(block.shared_experts)}
    weights["router.expert_bias"] = copied(gate.e_score_correction_bias)
    return assembled(router, weights, activation=activation_of(block.experts.act_fn, SILU))


def gpt_oss(block: nn.Module) -> MoE:
    experts = block.experts
    for name, value in {"alpha": 1.702, "limit": 7.0}.items():
        if getattr(experts, name) != value:
            raise ValueError(f"{name} of hf_block.experts must be {value}, got {getattr(experts, name)}")
    # Theirs is a softmax over the K chosen logits: that of all, divided by the sum of the K chosen.
    router = TopKRouter(*sizes(block.router), norm_topk_prob=True, bias=True, device="meta")
    weights = {
        "router.weight": copied(block.router.weight),
        "router.bias": copied(block.router.bias),
        "experts.gate_up_proj": copied(experts.gate_up_proj, lambda w: gate_first(w).mT),  # (E, D, 2F) -> (E, 2F, D)
        "experts.gate_up_proj_bias": copied(experts.gate_up_proj_bias, gate_first),  # (E, 2F)
        "experts.down_proj": copied(experts.down_proj, lambda w: w.mT),  # (E, F, D) -> (E, D, F)
        "experts.down_proj_bias": copied(experts.down_proj_bias),  # (E, D)
    }
    return assembled(router, weights, activation="clamped_swiglu", bias=True)


def llama4(block: nn.Module) -> MoE:
    weights = {
        "router.weight": copied(block.router.weight),
        "experts.gate_up_proj": copied(block.experts.gate_up_proj, lambda w: w.mT),  # (E, D, 2F) -> (E, 2F, D)
        "experts.down_proj": copied(block.experts.down_proj, lambda w: w.mT),  # (E, F, D) -> (E, D, F)
        **dense(block.shared_expert),
    }
    router = Llama4Router(*sizes(block.router), device="meta")
    return assembled(router, weights, activation=activation_of(block.experts.act_fn, SILU), weight_input=True)


def switch(block: nn.Module) -> MoE:
    linear, experts = block.router.classifier, list(block.experts.values())
    weights = {
        "router.weight": copied(linear.weight),
        "experts.up_proj": copied([expert.wi.weight for expert in experts], torch.stack),  # E of (F, D) -> (E, F, D)
        "experts.down_proj": copied([expert.wo.weight for expert in experts], torch.stack),  # E of (D, F) -> (E, D, F)
    }
    if linear.bias is not None:
        weights["router.bias"] = copied(linear.bias)
    noise, bias = block.router.jitter_noise, linear.bias is not None
    router = SwitchRouter(*sizes(linear, top_k=1)[:2], jitter_noise=noise, bias=bias, device="meta")
    activation = activation_of(experts[0].act, {"ReLU": "relu", "GELUActivation": "gelu"})
    return assembled(router, weights, SwitchMoE, activation=activation, expert_capacity=block.router.expert_capacity)


FAMILIES: dict[str, tuple[str, Callable[[nn.Module], MoE]]] = {
    "MixtralSparseMoeBlock": ("Mixtral", mixtral),
    "OlmoeSparseMoeBlock": ("OLMoE", olmoe),
    "Qwen2MoeSparseMoeBlock": ("Qwen2-MoE", qwen2_moe),
    "Qwen3MoeSparseMoeBlock": ("Qwen3-MoE", olmoe),
    "DeepseekV3MoE": ("DeepSeek-V3", deepseek_v3),
    "GptOssMLP": ("gpt-oss", gpt_oss),
    "Llama4TextMoe": ("Llama 4", llama4),
    "SwitchTransformersSparseMLP": ("Switch", switch),
}


class Llama4Router(TopKRouter):
    """The K best logits, each weighed by its own sigmoid: by logits, since in float32 sigmoids above 17 are all 1."""

    def choose(self, logits: Tensor) -> Routing:
        topk_logits, topk_indices = logits.topk(self.top_k, dim=-1)  # (T, K)
        scores = logits.sigmoid()  # (T, E)
        probs = scores / (scores.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing.from_topk(logits, probs, topk_indices, topk_logits.sigmoid())


class SwitchMoE(MoE):
    """The capacity of Hugging Face's Switch: a fixed number of tokens for each expert and each sequence (T, D) of x."""

    def __init__(self, *args, expert_capacity: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.expert_capacity = check_positive_int("expert_capacity", expert_capacity)

    def _limit(self, routing: Routing, shape: tuple[int, ...]) -> Routing:
        sequence = routing.token_idx // max(shape[-2] if len(shape) > 1 else 1, 1)  # (A,)
        queue = sequence * self.num_experts + routing.expert_idx  # (A,) one for each sequence and expert
        limited = apply_capacity(replace(routing, expert_idx=queue), self.expert_capacity)
        dropped = limited.dropped_expert_idx % self.num_experts
        return replace(limited, expert_idx=limited.expert_idx % self.num_experts, dropped_expert_idx=dropped)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, expert_capacity={self.expert_capacity}"


def assembled(router: nn.Module, weights: dict[str, Tensor], block: type[MoE] = MoE, **arguments) -> MoE:
    """A block of the sizes of `router` and of these weights, which are named as in its state_dict."""
    shared_down_proj = weights.get("shared_expert.down_proj")
    moe = block(
        router.d_model,
        weights["experts.down_proj"].shape[-1],
        router.num_experts,
        router.top_k,
        router=router,
        shared_d_ff=None if shared_down_proj is None else shared_down_proj.shape[-1],
        shared_expert_gate="shared_expert_gate.weight" in weights,
        device="meta",  # shapes without numbers, which come from `weights`
        **arguments,
    )
    return filled(moe, weights)


def filled(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """`module`, made on the meta device, with these weights, which are named as in its state_dict."""
    for name, empty in module.state_dict().items():
        if weights[name].shape != empty.shape:
            wanted, got = tuple(empty.shape), tuple(weights[name].shape)
            raise ValueError(f"{name} of the Hugging Face module must have the shape {wanted} in our layout, got {got}")
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, weights[name])
    return module


def copied(
    source: Tensor | list[Tensor], layout: Callable[..., Tensor] = lambda tensor: tensor, one_shape: bool = True
) -> Tensor:
    """A copy of one tensor, or of several (of one shape) as one, in our layout: a parameter if they are."""
    parts = [source] if isinstance(source, Tensor) else source
    if one_shape and len({part.shape for part in parts}) > 1:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise ValueError(f"hf_block must have weights of one shape where several make one of ours, got {shapes}")
    for part in parts:
        if not part.is_floating_point() or part.element_size() == 1:
            raise ValueError(f"hf_block must have weights of 16 bits or more, not quantised ones, got {part.dtype}")
    with torch.no_grad():
        copy = layout(source).clone(memory_format=torch.contiguous_format)
    trainable = any(part.requires_grad for part in parts)
    return nn.Parameter(copy, requires_grad=trainable) if isinstance(parts[0], nn.Parameter) else copy


def stacked(experts: nn.Module) -> dict[str, Tensor]:
    """Experts whose layout is ours: (E, 2F, D), gate first, and (E, D, F)."""
    return {f"experts.{name}": copied(getattr(experts, name)) for name in ("gate_up_proj", "down_proj")}


def dense(mlp: nn.Module, name: str = "shared_expert") -> dict[str, Tensor]:
    """A dense SwiGLU network: gate (F, D) and up (F, D) -> (2F, D), down (D, F)."""
    return {
        f"{name}.gate_up_proj": copied([mlp.gate_proj.weight, mlp.up_proj.weight], torch.cat),
        f"{name}.down_proj": copied(mlp.down_proj.weight),
    }


def gate_first(taking_turns: Tensor) -> Tensor:
    """gpt-oss stores gate and up in turns, g u g u: (..., 2F) -> (..., 2F), all of gate before all of up."""
    return torch.cat([taking_turns[..., ::2], taking_turns[..., 1::2]], dim=-1)


def sizes(gate: nn.Module, top_k: int | None = None) -> tuple[int, int, int]:
    """(D, E, K) of a router with the weight (E, D)."""
    if gate.weight.ndim != 2:
        raise ValueError(f"the router's weight in hf_block must be (E, D), got shape {tuple(gate.weight.shape)}")
    return gate.weight.shape[1], gate.weight.shape[0], top_k or gate.top_k


def activation_of(act_fn: nn.Module, ours: dict[str, str]) -> str:
    """Our name of an activation, from the class of theirs."""
    if type(act_fn).__name__ not in ours:
        raise ValueError(f"the activation of hf_block must be {' or '.join(ours)}, got {type(act_fn).__name__}")
    return ours[type(act_fn).__name__]


# --- a whole model ---------------------------------------------------------------------------------------


def convert_model(hf_model: nn.Module) -> LanguageModel:
    """Our `LanguageModel` with the weights of a Hugging Face MixtralForCausalLM or LlamaForCausalLM: equal logits.

    The weights are copied, as by `convert_block`. Raises ValueError for another class, and for what our model lacks:
    biases, a sliding window, scaled rotary positions, a head_dim that is not d_model / num_heads, another activation.
    Dropout of the attention, in training, is left out.
    """
    name = type(hf_model).__name__
    known = type(hf_model).__module__.startswith("transformers.")
    if not known or name not in ("MixtralForCausalLM", "LlamaForCausalLM"):
        raise ValueError(f"hf_model must be a MixtralForCausalLM or LlamaForCausalLM from transformers, got {name}")
    theirs, inner = hf_model.config, hf_model.model
    wanted = {"head_dim": (None, theirs.hidden_size // theirs.num_attention_heads), "sliding_window": (None,)}
    wanted |= {"attention_bias": (False,), "mlp_bias": (False,), "hidden_act": ("silu",)}
    for field, allowed in wanted.items():
        if getattr(theirs, field, allowed[0]) not in allowed:
            raise ValueError(f"{field} of hf_model must be {allowed[-1]}, got {getattr(theirs, field)}")
    if theirs.rope_parameters["rope_type"] != "default":
        raise ValueError(f"rope_type of hf_model must be 'default', got {theirs.rope_parameters['rope_type']!r}")
    config = TransformerConfig(
        vocab_size=theirs.vocab_size,
        d_model=theirs.hidden_size,
        num_layers=theirs.num_hidden_layers,
        num_heads=theirs.num_attention_heads,
        num_kv_heads=theirs.num_key_value_heads,
        max_positions=theirs.max_position_embeddings,
        d_ff=theirs.intermediate_size,
        num_experts=getattr(theirs, "num_local_experts", 1),
        top_k=getattr(theirs, "num_experts_per_tok", 1),
        moe_layers=None if name == "MixtralForCausalLM" else (),
        tied_embedding=hf_model.lm_head.weight is inner.embed_tokens.weight,
        rope_theta=theirs.rope_parameters["rope_theta"],
        norm_eps=theirs.rms_norm_eps,
    )
    weights = {"embed.weight": copied(inner.embed_tokens.weight), "norm.weight": copied(inner.norm.weight)}
    weights["head.weight"] = weights["embed.weight"] if config.tied_embedding else copied(hf_model.lm_head.weight)
    with torch.device("meta"):  # shapes without numbers
        model = LanguageModel(config)
    for i, (ours, layer) in enumerate(zip(model.layers, inner.layers)):
        attention = layer.self_attn
        qkv = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        own = {
            "attention_norm.weight": copied(layer.input_layernorm.weight),
            "attention.qkv_proj.weight": copied(qkv, torch.cat, one_shape=False),
            "attention.out_proj.weight": copied(attention.o_proj.weight),
            "ffn_norm.weight": copied(layer.post_attention_layernorm.weight),
        }
        if config.moe_layers is None:
            ours.ffn = convert_block(layer.mlp)
            own |= {f"ffn.{key}": weight for key, weight in ours.ffn.named_parameters()}
        else:
            own |= dense(layer.mlp, "ffn")
        weights |= {f"layers.{i}.{key}": weight for key, weight in own.items()}
    return filled(model, weights).train(hf_model.training)
