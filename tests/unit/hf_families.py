"""Small models of Hugging Face with 2 of 8 experts for a token: families that our documents name, and some that keep
their experts, scores or caches in a way of their own."""

from typing import Any

import torch
import transformers
from torch import nn

READ = {  # families whose routers the lens reads
    "dbrx": "DbrxForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM", "deepseek_v4": "DeepseekV4ForCausalLM",
    "gemma4": "Gemma4ForCausalLM", "glm4_moe": "Glm4MoeForCausalLM", "gpt_oss": "GptOssForCausalLM",
    "jamba": "JambaForCausalLM", "longcat_flash": "LongcatFlashForCausalLM", "minimax_m2": "MiniMaxM2ForCausalLM",
    "mixtral": "MixtralForCausalLM", "nemotron_h": "NemotronHForCausalLM", "olmoe": "OlmoeForCausalLM",
    "phimoe": "PhimoeForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM", "zaya": "ZayaForCausalLM",
}  # fmt: skip
NOT_READ = {
    "doge": "DogeForCausalLM", "jetmoe": "JetMoeForCausalLM", "llama4_text": "Llama4ForCausalLM",
    "nllb_moe": "NllbMoeForConditionalGeneration", "switch_transformers": "SwitchTransformersForConditionalGeneration",
}  # fmt: skip
DENSE = {"falcon": "FalconForCausalLM", "gemma3_text": "Gemma3ForCausalLM", "mamba": "MambaForCausalLM"}
CLASSES = READ | NOT_READ | DENSE

SIZES = {  # of which each configuration takes those that it knows
    "vocab_size": 128, "hidden_size": 32, "d_model": 32, "intermediate_size": 48, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "num_experts_per_tok": 2,
    "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "decoder_sparse_step": 1,
    "max_position_embeddings": 128, "sliding_window": 16, "num_nextn_predict_layers": 0, "num_mtp_layers": 0,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16}
LATENT |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
MIXED = ["sliding_attention", "full_attention"] * 2
OWN = {
    "dbrx": {
        "n_heads": 4, "n_layers": 2, "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 8, "moe_top_k": 2},
    },
    "deepseek_v3": LATENT,
    "deepseek_v4": {"q_lora_rank": 16, "index_topk": 4, "index_head_dim": 16, "index_n_heads": 2},
    "doge": {"is_moe": True, "num_experts": 16},
    "gemma4": {
        "enable_moe_block": True, "top_k_experts": 2, "layer_types": MIXED, "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 128,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
    "jetmoe": {"kv_channels": 8},
    "longcat_flash": LATENT
    | {"expert_ffn_hidden_size": 16, "ffn_hidden_size": 48, "num_layers": 4, "moe_topk": 2, "qk_head_dim": 16},
    "nemotron_h": {
        "moe_shared_expert_intermediate_size": 16, "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8,
        "n_groups": 1, "chunk_size": 8,
    },
    "nllb_moe": {"encoder_sparse_step": 1}
    | dict.fromkeys(("encoder_layers", "decoder_layers"), 2)
    | dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
    "qwen3_next": dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8)
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4},
    "switch_transformers": {"num_layers": 4, "num_decoder_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 48}
    | dict.fromkeys(("num_sparse_encoder_layers", "num_sparse_decoder_layers"), 1),
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def small(family: str) -> tuple[Any, type[nn.Module]]:
    """A small configuration of a family, and its class."""
    kind = getattr(transformers, CLASSES[family])
    known = {name for base in kind.config_class.__mro__ for name in getattr(base, "__annotations__", {})}
    sizes = {name: value for name, value in SIZES.items() if name in known}
    return kind.config_class(**sizes | OWN.get(family, {})), kind


def runnable(family: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A small model of a family, in eval mode, with finite weights, and inputs of 2 texts of 8 tokens."""
    config, kind = small(family)
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():  # some parts start at what was in memory
        for parameter in model.parameters():
            if not torch.isfinite(parameter).all():
                parameter.normal_(std=0.02)
        for name, table in model.named_buffers():
            if name.endswith("tid2eid"):  # of a hash router: as in memory, all 0
                table.copy_(torch.rand(len(table), 8).topk(table.shape[1]).indices)
    return model, {"input_ids": torch.randint(3, 100, (2, 8)), "use_cache": False}
