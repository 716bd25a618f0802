"""A Mixtral or Llama as our `LanguageModel`, with its weights."""

import torch
from torch import nn

from moe_lessons.hub.blocks import convert_block, copied, dense, filled
from moe_lessons.nn.transformer import LanguageModel, TransformerConfig

FIELDS = {  # of `TransformerConfig`, and their names in the configuration of a Mixtral or Llama
    "vocab_size": "vocab_size", "d_model": "hidden_size", "d_ff": "intermediate_size", "norm_eps": "rms_norm_eps",
    "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads",
    "num_experts": "num_local_experts", "top_k": "num_experts_per_tok", "tied_embedding": "tie_word_embeddings",
    "max_positions": "max_position_embeddings", "rope_theta": "rope_theta",
}  # fmt: skip


def convert_model(hf_model: nn.Module) -> LanguageModel:
    """Our `LanguageModel` with the weights of a Hugging Face MixtralForCausalLM or LlamaForCausalLM: equal logits.

    The weights are copied, as by `convert_block`; dropout is left out. Raises ValueError for another class, and for
    what ours lacks: biases, a sliding window, scaled rotary positions, another activation, a head_dim that is not D/H.
    """
    name = type(hf_model).__name__
    if name not in ("MixtralForCausalLM", "LlamaForCausalLM") or "transformers." not in type(hf_model).__module__:
        raise ValueError(f"hf_model must be a MixtralForCausalLM or LlamaForCausalLM from transformers, got {name}")
    inner, theirs = hf_model.model, hf_model.config.to_dict() | hf_model.config.rope_parameters
    wanted = {"head_dim": theirs["hidden_size"] // theirs["num_attention_heads"], "sliding_window": None}
    wanted |= {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "rope_type": "default"}
    for field, value in wanted.items():
        if theirs.get(field) not in (value, None):
            raise ValueError(f"{field} of hf_model must be {value!r}, got {theirs[field]!r}")
    fields = {ours: theirs[name] for ours, name in FIELDS.items() if name in theirs}
    if name == "LlamaForCausalLM":
        fields |= {"num_experts": 1, "top_k": 1, "moe_layers": ()}
    config = TransformerConfig(**fields)
    weights = {"embed.weight": copied(inner.embed_tokens.weight), "norm.weight": copied(inner.norm.weight)}
    weights["head.weight"] = weights["embed.weight"] if config.tied_embedding else copied(hf_model.lm_head.weight)
    with torch.device("meta"):
        model = LanguageModel(config)
    for i, (ours, layer) in enumerate(zip(model.layers, inner.layers)):
        qkv = [getattr(layer.self_attn, f"{name}_proj").weight for name in "qkv"]
        own = {
            "attention_norm.weight": copied(layer.input_layernorm.weight),
            "attention.qkv_proj.weight": copied(qkv, torch.cat),
            "attention.out_proj.weight": copied(layer.self_attn.o_proj.weight),
            "ffn_norm.weight": copied(layer.post_attention_layernorm.weight),
        }
        if config.moe_layers is None:
            ours.ffn = convert_block(layer.mlp)
            own |= {f"ffn.{key}": weight for key, weight in ours.ffn.named_parameters()}
        else:
            own |= dense(layer.mlp, "ffn")
        weights |= {f"layers.{i}.{key}": weight for key, weight in own.items()}
    return filled(model, weights).train(hf_model.training)
