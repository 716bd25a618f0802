"""Every family of transformers with a mixture of experts, as a small configuration: 2 of 8 experts for a token."""

import functools
import importlib
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

SIZES: dict[str, Any] = {  # each configuration takes those that it knows
    "vocab_size": 128, "hidden_size": 32, "d_model": 32, "n_embd": 32, "intermediate_size": 48, "ffn_dim": 48,
    "d_ff": 48, "moe_intermediate_size": 16, "expert_ffn_hidden_size": 16, "ffn_hidden_size": 48,
    "shared_expert_intermediate_size": 16, "shared_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16,
    "num_hidden_layers": 4, "n_layers": 4, "num_layers": 4, "num_decoder_layers": 2, "encoder_layers": 2,
    "decoder_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_attention_heads": 4,
    "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "num_key_value_heads": 2, "kv_n_heads": 2, "head_dim": 8, "d_kv": 8, "num_experts": 8,
    "num_local_experts": 8, "n_routed_experts": 8, "moe_num_experts": 8, "num_experts_per_tok": 2, "moe_top_k": 2,
    "moe_k": 2, "top_k_experts": 2, "moe_topk": 2, "n_group": 2, "topk_group": 1, "num_expert_group": 2,
    "first_k_dense_replace": 1, "num_dense_layers": 1, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "num_mtp_layers": 0, "num_nextn_predict_layers": 0, "n_shared_experts": 1, "moe_num_shared_experts": 1,
    "num_shared_experts": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "qk_head_dim": 16, "v_head_dim": 8, "max_position_embeddings": 128, "max_seq_len": 128, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "index_topk": 4, "index_head_dim": 16, "index_n_heads": 2,
    "sliding_window": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1,
    "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8,
    "mamba_chunk_size": 8, "kv_channels": 8, "embed_dim": 32, "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 128, "global_head_dim": 8, "num_global_key_value_heads": 2,
    "num_kv_shared_layers": 0, "decoder_start_token_id": 0, "linear_num_heads": 2, "linear_head_dim": 8,
    "encoder_sparse_step": 1, "n_head": 4, "n_layer": 2, "n_positions": 128, "rotary_dim": 4,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0, "mrope_section": [1, 1, 2]}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 16},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "reformer": {"is_decoder": True},
    "falcon_h1": {"mamba_d_ssm": 64},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "xmod": {"default_language": "en_XX"},
    "deepseek_ocr2": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "diffusion_gemma": {"enable_moe_block": True, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "dots3_note": {"layer_types": ["indexed_attention"] * 4},
    "doge": {"is_moe": True, "num_experts": 16},
    "ernie4_5_vl_moe": {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 128,
                        "moe_intermediate_size": [16, 16]},
    "gemma4": {"enable_moe_block": True, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "glm4v_moe": {"head_dim": 8, "rope_parameters": ROPE},
    "glm5_next": {"index_topk": 16, "qk_rope_head_dim": 0},
    "hy_v4_vl": {"rope_parameters": ROPE},
    "inkling2": {"unpadded_vocab_size": 128},
    "inkling2_loop": {"unpadded_vocab_size": 128, "n_layers_per_attn_res_block": 2, "loop_layer_index_start": 2,
                      "loop_layer_index_end": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "qwen4_exp": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
                  "indexer_compress_ratio": 2},
    "zaya": {"num_experts_per_tok": 1},
    "vitpose_backbone": {"num_experts": 2, "part_features": 8, "image_size": [32, 32]},
}  # fmt: skip
OMIT = {"mistral4": ("head_dim",), "vitpose_backbone": ("num_layers",)}
KINDS = ("ForCausalLM", "ForConditionalGeneration", "ForTokenClassification", "Backbone", "Model")
WHOLE = {  # the others do not go with small sizes
    "qwen3_omni_moe": "Qwen3OmniMoeThinkerForConditionalGeneration", "muse_spark": "MuseSparkTextModel",
}  # fmt: skip
TEXT = {  # the part of a model for text, where the whole is large, or needs pictures
    family: f"{prefix}TextModel"
    for family, prefix in {
        "deepseek_ocr2": "DeepseekOcr2", "diffusion_gemma": "DiffusionGemmaEncoder", "dots3_note": "Dots3Note",
        "ernie4_5_vl_moe": "Ernie4_5_VLMoe", "glm4v_moe": "Glm4vMoe", "glm5_next": "Glm5Next", "hy_v4_vl": "HYV4VL",
        "mistral_large4": "MistralLarge4", "muse_spark": "MuseSpark", "qwen3_omni_moe": "Qwen3OmniMoeThinker",
        "qwen3_vl_moe": "Qwen3VLMoe", "step3p7": "Step3p7", "unlimited_ocr": "UnlimitedOcr",
    }.items()
}  # fmt: skip
LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "ffn_types", "block_types")  # one for each layer


@functools.cache
def families() -> dict[str, list[str]]:
    """Each family whose code calls experts, with its model classes: those for text first."""
    found = {}
    for path in sorted(Path(transformers.__file__).with_name("models").glob("*/modeling_*.py")):
        text, family = path.read_text(encoding="utf-8"), path.parent.name
        if any(sign in text for sign in ("self.experts(", "TopKGating", "CDMoE")):
            names = re.findall(r"^class (\w+)", text, re.MULTILINE)
            names = [name for name in names if name.endswith(KINDS) and "PreTrained" not in name]
            names.sort(key=lambda name: [name.endswith(kind) for kind in KINDS].index(True))
            found[family] = [WHOLE[family]] if family in WHOLE else names
    return found


def small(family: str, name: str) -> tuple[Any, type[nn.Module]]:
    """A small configuration of one class of a family, and the class."""
    kind = getattr(transformers, name, None)
    kind = kind or getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), name)
    changes = SIZES | OVERRIDES.get(family, OVERRIDES.get(family.removesuffix("_text"), {}))
    text = getattr(kind.config_class, "sub_configs", {}).get("text_config")
    if any(hasattr(part, "kv_lora_rank") for part in (kind.config_class, text) if isinstance(part, type)):
        changes["num_key_value_heads"] = 4
    changes = {key: value for key, value in changes.items() if key not in OMIT.get(family, ())}
    if family == "dbrx":  # its parts are configurations by themselves
        ffn = {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 8, "moe_top_k": 2}
        attention = {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4}
        sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "vocab_size": 128}
        return kind.config_class(**sizes, ffn_config=ffn, attn_config=attention), kind
    return _construct(kind.config_class, changes), kind


def runnable(family: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A small model of a family, in eval mode, with finite weights, and inputs of 2 texts of 8 tokens."""
    known = families()[family]
    names = [TEXT[family]] if family in TEXT else sorted(known, key=lambda name: not name.endswith(KINDS[0]))
    failures = []
    for name in names:
        try:
            config, kind = small(family, name)
            torch.manual_seed(0)
            model = kind(config).eval()
            with torch.no_grad():  # some parts start at what was in memory
                for parameter in model.parameters():
                    if not torch.isfinite(parameter).all():
                        parameter.normal_(std=0.02)
                for name, table in model.named_buffers():
                    if name.endswith("tid2eid"):  # of a hash router: as in memory, all 0
                        table.copy_(torch.rand(len(table), 8).topk(table.shape[1]).indices)
            ids = torch.randint(3, 100, (2, 8))
            inputs = {"input_ids": ids, "use_cache": False}
            return model, inputs | ({"decoder_input_ids": ids[:, :5]} if model.config.is_encoder_decoder else {})
        except Exception as error:
            failures.append(f"{name}: {error!r:.200}")
    raise RuntimeError(f"no class of {family} could be made: " + "; ".join(failures))


def _construct(config_class: type, changes: dict[str, Any]) -> Any:
    """Made with small sizes, so that what it derives from them is small too; else made smaller afterwards."""
    known = {name for base in config_class.__mro__ for name in getattr(base, "__annotations__", {})}
    parts = getattr(config_class, "sub_configs", None) or {}
    parts = {key: part for key, part in parts.items() if key == "text_config"}
    try:
        inner = {key: _construct(part, changes) for key, part in parts.items()}
        return config_class(**{k: v for k, v in changes.items() if k in known and k not in parts} | inner)
    except Exception:  # a configuration that does not take its sizes so
        return _shrink(config_class(), changes)


def _shrink(config: Any, changes: dict[str, Any]) -> Any:
    for value in list(vars(config).values()):
        if isinstance(value, transformers.PreTrainedConfig):
            _shrink(value, changes)
    lists = {key: getattr(config, key, None) for key in LISTS if key not in changes}
    lists = {
        key: v for key, v in lists.items() if isinstance(v, list | tuple) and len(v) != changes["num_hidden_layers"]
    }
    lists = {key: (list(dict.fromkeys(v)) * 4)[-4:] for key, v in lists.items()}
    for key, value in (changes | lists).items():
        if hasattr(config, key):
            with suppress(Exception):  # what cannot be set stays
                setattr(config, key, value)
    return config
