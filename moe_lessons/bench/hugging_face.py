"""The same layer, and the same language model, as Hugging Face has them.

The layer is the block of OLMoE, which has our softmax router and our stacked weights; the model is Mixtral.
"""

import torch
from torch import nn

from moe_lessons.nn import LanguageModel, MoE

IMPLEMENTATIONS = ("eager", "grouped_mm")
DECODING_ONLY = "batched_mm"  # it gathers the weights of every assignment: gigabytes where there are many tokens


def transformers_version() -> str | None:
    """The version of transformers, if one is installed that lets the experts run in several ways (5.18 or newer)."""
    try:
        import transformers
        import transformers.integrations.moe  # noqa: F401
    except ImportError:
        return None
    return transformers.__version__


def implementations(decoding: bool) -> tuple[str, ...]:
    """The ways of Hugging Face to run the experts that are worth timing."""
    return (*IMPLEMENTATIONS, DECODING_ONLY) if decoding else IMPLEMENTATIONS


def hugging_face_blocks(moe: MoE, decoding: bool) -> dict[str, nn.Module]:
    """`OlmoeSparseMoeBlock` on the very weights of `moe` (SwiGLU), once for each implementation of its experts.

    decoding: with `batched_mm`. Empty where transformers is missing.
    """
    if transformers_version() is None:
        return {}
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    weights = {name.replace("router.", "gate."): weight for name, weight in moe.state_dict().items()}
    blocks = {}
    for implementation in implementations(decoding):
        config = OlmoeConfig(
            hidden_size=moe.d_model,
            intermediate_size=moe.d_ff,
            num_experts=moe.num_experts,
            num_experts_per_tok=moe.top_k,
            norm_topk_prob=moe.router.norm_topk_prob,
            experts_implementation=implementation,
            num_attention_heads=1,  # there is no attention in the block; 1 divides every size
            num_key_value_heads=1,
        )
        with torch.device("meta"):  # no memory of its own: it takes our weights
            block = OlmoeSparseMoeBlock(config)
        block.load_state_dict(weights, assign=True)
        blocks[f"HF {implementation}"] = block
    return blocks


def hugging_face_models(model: LanguageModel, decoding: bool) -> dict[str, nn.Module]:
    """`MixtralForCausalLM` with a copy of the weights of `model`, once for each implementation of its experts.

    decoding: with `batched_mm`. Empty where transformers is missing.
    """
    if transformers_version() is None:
        return {}
    from transformers import MixtralConfig, MixtralForCausalLM

    ours, state = model.config, model.state_dict()
    widths = [ours.d_model, *[ours.num_kv_heads * ours.head_dim] * 2]  # of queries, keys and values
    outer = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    inner = {"attention_norm": "input_layernorm", "attention.out_proj": "self_attn.o_proj"}
    inner |= {"ffn_norm": "post_attention_layernorm", "ffn.router": "mlp.gate"}
    weights = {f"{theirs}.weight": state[f"{name}.weight"] for name, theirs in outer.items()}
    for i in range(ours.num_layers):
        here, there = f"layers.{i}.", f"model.layers.{i}."
        weights |= {f"{there}{theirs}.weight": state[f"{here}{name}.weight"] for name, theirs in inner.items()}
        for name in ("gate_up_proj", "down_proj"):
            weights[f"{there}mlp.experts.{name}"] = state[f"{here}ffn.experts.{name}"]
        for name, weight in zip("qkv", state[f"{here}attention.qkv_proj.weight"].split(widths)):
            weights[f"{there}self_attn.{name}_proj.weight"] = weight
    models = {}
    for implementation in implementations(decoding):
        config = MixtralConfig(
            vocab_size=ours.vocab_size,
            hidden_size=ours.d_model,
            intermediate_size=ours.d_ff,
            num_hidden_layers=ours.num_layers,
            num_attention_heads=ours.num_heads,
            num_key_value_heads=ours.num_kv_heads,
            max_position_embeddings=ours.max_positions,
            num_local_experts=ours.num_experts,
            num_experts_per_tok=ours.top_k,
            rope_theta=ours.rope_theta,
            rms_norm_eps=ours.norm_eps,
            tie_word_embeddings=ours.tied_embedding,
            output_router_logits=True,
            sliding_window=None,
            eos_token_id=None,
            experts_implementation=implementation,
        )
        hf = MixtralForCausalLM(config).to(model.embed.weight.device)
        hf.load_state_dict(weights)
        models[f"HF {implementation}"] = hf
    return models
