"""Count the parameters of published mixtures of experts, and write published_models.csv and published_sizes.json.

    python data/make_published_models.py

Each model is built from its published configuration by its class in Hugging Face `transformers`,
on torch's meta device: all shapes, no weights, no download. README.md beside this file says what is counted.
"""

import csv
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moe_lessons.analysis.roofline import ModelSizes
from moe_lessons.hub.kv_cache import cached_layers
from moe_lessons.hub.published import count_model

CSV = Path(__file__).with_name("published_models.csv")
SIZES_FILE = CSV.with_name("published_sizes.json")
CSV_COLUMNS = (
    "name", "year", "source", "num_experts", "top_k", "shared_experts", "d_model", "d_ff", "scores", "balancing",
    "total_params", "active_params", "total_published_b", "active_published_b", "note",
)  # fmt: skip


@dataclass(frozen=True)
class PublishedModel:
    """A published model: its configuration, and the size its makers give (in billions; None: not given).

    scores: what the router makes of its logits, as in the model's class. balancing: what the makers say of training,
    where, and "not stated" where their source says nothing.
    """

    name: str
    year: int
    source: str
    num_experts: int
    top_k: int
    shared_experts: int
    scores: str
    balancing: str
    total_published_b: float | None
    active_published_b: float | None
    note: str
    hf_class: str
    hf_config: dict[str, Any]


def build(model: PublishedModel) -> nn.Module:
    """The model on the meta device: every parameter has its shape and no memory."""
    import transformers

    model_class = getattr(transformers, model.hf_class)
    with torch.device("meta"):
        module = model_class(model_class.config_class(**model.hf_config))
    module.tie_weights()
    return module


def count_sizes(model: PublishedModel) -> ModelSizes:
    """The sizes of its configuration. ValueError where the class has other experts than this table says."""
    built = build(model)
    sizes = count_model(built, cached_layers(built))
    if {(group.num_experts, group.top_k) for group in sizes.groups} != {(model.num_experts, model.top_k)}:
        raise ValueError(f"{model.name} must have {model.top_k} of {model.num_experts} experts, got {sizes.groups}")
    return sizes


def expert_sizes(model: PublishedModel) -> dict[str, int]:
    """D and F of one expert, from the configuration; a test finds them in the model."""
    config = model.hf_config
    d_model = config.get("hidden_size") or config["d_model"]
    names = ("moe_intermediate_size", "intermediate_size", "d_ff")
    d_ff = next((config[name] for name in names if name in config), None) or config["ffn_config"]["ffn_hidden_size"]
    return {"d_model": d_model, "d_ff": d_ff}


def row(model: PublishedModel) -> dict[str, Any]:
    """One line of the table."""
    facts = {field.name: getattr(model, field.name) for field in fields(model)}
    sizes = count_sizes(model)
    facts |= {"total_params": sizes.total, "active_params": sizes.active, **expert_sizes(model)}
    return {column: "" if facts[column] is None else facts[column] for column in CSV_COLUMNS}


def main() -> None:
    with CSV.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row(model) for model in PUBLISHED)
    SIZES_FILE.write_text(sizes_text(), encoding="utf-8")
    print(f"wrote {CSV} and {SIZES_FILE} ({len(PUBLISHED)} models)")


def sizes_text() -> str:
    """All that the calculators need of each model, a line for each."""
    lines = [f"{json.dumps(model.name)}: {json.dumps(asdict(count_sizes(model)))}" for model in PUBLISHED]
    return "{\n" + ",\n".join(lines) + "\n}\n"


SWITCH = (
    "encoder-decoder; active equals a dense T5-Base plus the routers; width and ReLU as in the configuration of the "
    "checkpoint in transformers: table 9 of the paper has 2048 with GEGLU, as many weights"
)
PUBLISHED = (
    PublishedModel(
        name="Switch-Base-8",
        year=2021,
        source="arXiv:2101.03961; configuration of google/switch-base-8",
        num_experts=8,
        top_k=1,
        shared_experts=0,
        scores="softmax",
        balancing="auxiliary loss: arXiv:2101.03961, section 2.2",
        total_published_b=None,
        active_published_b=None,
        note=SWITCH,
        hf_class="SwitchTransformersForConditionalGeneration",
        hf_config=dict(
            vocab_size=32128,
            d_model=768,
            d_kv=64,
            d_ff=3072,
            num_layers=12,
            num_decoder_layers=12,
            num_sparse_encoder_layers=6,
            num_sparse_decoder_layers=6,
            num_heads=12,
            num_experts=8,
            feed_forward_proj="relu",
            tie_word_embeddings=True,
        ),
    ),
    PublishedModel(
        name="Switch-Base-128",
        year=2021,
        source="arXiv:2101.03961",
        num_experts=128,
        top_k=1,
        shared_experts=0,
        scores="softmax",
        balancing="auxiliary loss: arXiv:2101.03961, section 2.2",
        total_published_b=7.4,
        active_published_b=None,
        note=SWITCH,
        hf_class="SwitchTransformersForConditionalGeneration",
        hf_config=dict(
            vocab_size=32128,
            d_model=768,
            d_kv=64,
            d_ff=3072,
            num_layers=12,
            num_decoder_layers=12,
            num_sparse_encoder_layers=6,
            num_sparse_decoder_layers=6,
            num_heads=12,
            num_experts=128,
            feed_forward_proj="relu",
            tie_word_embeddings=True,
        ),
    ),
    PublishedModel(
        name="Mixtral 8x7B",
        year=2023,
        source="arXiv:2401.04088 and Mistral AI announcement",
        num_experts=8,
        top_k=2,
        shared_experts=0,
        scores="softmax",
        balancing="not stated",
        total_published_b=46.7,
        active_published_b=12.9,
        note="the paper rounds to 47 B and 13 B",
        hf_class="MixtralForCausalLM",
        hf_config=dict(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            num_local_experts=8,
            num_experts_per_tok=2,
            tie_word_embeddings=False,
        ),
    ),
    PublishedModel(
        name="DeepSeekMoE-16B",
        year=2024,
        source="arXiv:2401.06066",
        num_experts=64,
        top_k=6,
        shared_experts=2,
        scores="softmax",
        balancing="auxiliary loss: arXiv:2401.06066, section 3.3",
        total_published_b=16.4,
        active_published_b=2.8,
        note=("counted with the Glm4Moe class as a stand-in with the same shapes; the first layer is dense"),
        hf_class="Glm4MoeForCausalLM",
        hf_config=dict(
            vocab_size=102400,
            hidden_size=2048,
            intermediate_size=10944,
            moe_intermediate_size=1408,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=16,
            head_dim=128,
            n_routed_experts=64,
            n_shared_experts=2,
            num_experts_per_tok=6,
            first_k_dense_replace=1,
            use_qk_norm=False,
            attention_bias=False,
            n_group=1,
            topk_group=1,
            tie_word_embeddings=False,
        ),
    ),
    PublishedModel(
        name="DeepSeek-V2",
        year=2024,
        source="arXiv:2405.04434",
        num_experts=160,
        top_k=6,
        shared_experts=2,
        scores="softmax",
        balancing="auxiliary loss: arXiv:2405.04434, section 2.2.3",
        total_published_b=236,
        active_published_b=21,
        note="the first layer is dense",
        hf_class="DeepseekV2ForCausalLM",
        hf_config=dict(
            vocab_size=102400,
            hidden_size=5120,
            intermediate_size=12288,
            moe_intermediate_size=1536,
            num_hidden_layers=60,
            num_attention_heads=128,
            num_key_value_heads=128,
            n_shared_experts=2,
            n_routed_experts=160,
            num_experts_per_tok=6,
            first_k_dense_replace=1,
            kv_lora_rank=512,
            q_lora_rank=1536,
            qk_rope_head_dim=64,
            qk_nope_head_dim=128,
            v_head_dim=128,
            n_group=8,
            topk_group=3,
            tie_word_embeddings=False,
        ),
    ),
    PublishedModel(
        name="DeepSeek-V3",
        year=2024,
        source="arXiv:2412.19437",
        num_experts=256,
        top_k=8,
        shared_experts=1,
        scores="sigmoid",
        balancing="bias update: arXiv:2412.19437, section 2.1.2",
        total_published_b=671,
        active_published_b=37,
        note="without the multi-token-prediction module; the first three layers are dense",
        hf_class="DeepseekV3ForCausalLM",
        hf_config=dict(
            vocab_size=129280,
            hidden_size=7168,
            intermediate_size=18432,
            moe_intermediate_size=2048,
            num_hidden_layers=61,
            num_attention_heads=128,
            num_key_value_heads=128,
            n_shared_experts=1,
            n_routed_experts=256,
            num_experts_per_tok=8,
            first_k_dense_replace=3,
            kv_lora_rank=512,
            q_lora_rank=1536,
            qk_rope_head_dim=64,
            qk_nope_head_dim=128,
            v_head_dim=128,
            n_group=8,
            topk_group=4,
            tie_word_embeddings=False,
        ),
    ),
    PublishedModel(
        name="Qwen1.5-MoE-A2.7B",
        year=2024,
        source="Qwen model card",
        num_experts=60,
        top_k=4,
        shared_experts=4,
        scores="softmax",
        balancing="not stated",
        total_published_b=14.3,
        active_published_b=2.7,
        note="the four shared experts are built as one that is 5632 wide",
        hf_class="Qwen2MoeForCausalLM",
        hf_config=dict(
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=5632,
            moe_intermediate_size=1408,
            shared_expert_intermediate_size=5632,
            num_hidden_layers=24,
            num_attention_heads=16,
            num_key_value_heads=16,
            num_experts=60,
            num_experts_per_tok=4,
            decoder_sparse_step=1,
            tie_word_embeddings=False,
        ),
    ),
    PublishedModel(
        name="Qwen3-30B-A3B",
        year=2025,
        source="arXiv:2505.09388",
        num_experts=128,
        top_k=8,
        shared_experts=0,
        scores="softmax",
        balancing="auxiliary loss: arXiv:2505.09388, section 2",
        total_published_b=30.5,
        active_published_b=3.3,
        note="",
        hf_class="Qwen3MoeForCausalLM",
        hf_config=dict(
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=6144,
            moe_intermediate_size=768,
            num_hidden_layers=48,
            num_attention_heads=32,
            num_key_value_heads=4,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            norm_topk_prob=True,
            tie_word_embeddings=False,
        ),
    ),
    PublishedModel(
        name="OLMoE-1B-7B",
        year=2024,
        source="arXiv:2409.02060",
        num_experts=64,
        top_k=8,
        shared_experts=0,
        scores="softmax",
        balancing="auxiliary loss: arXiv:2409.02060, section 2",
        total_published_b=6.9,
        active_published_b=1.3,
        note="",
        hf_class="OlmoeForCausalLM",
        hf_config=dict(
            vocab_size=50304,
            hidden_size=2048,
            intermediate_size=1024,
            num_hidden_layers=16,
            num_attention_heads=16,
            num_key_value_heads=16,
            num_experts=64,
            num_experts_per_tok=8,
            tie_word_embeddings=False,
        ),
    ),
    PublishedModel(
        name="gpt-oss-20b",
        year=2025,
        source="arXiv:2508.10925",
        num_experts=32,
        top_k=4,
        shared_experts=0,
        scores="softmax",
        balancing="not stated",
        total_published_b=20.9,
        active_published_b=3.6,
        note="the published active count leaves out the embedding (0.58 B)",
        hf_class="GptOssForCausalLM",
        hf_config=dict(
            vocab_size=201088,
            hidden_size=2880,
            intermediate_size=2880,
            num_hidden_layers=24,
            num_attention_heads=64,
            num_key_value_heads=8,
            head_dim=64,
            num_local_experts=32,
            num_experts_per_tok=4,
            tie_word_embeddings=False,
        ),
    ),
    PublishedModel(
        name="DBRX",
        year=2024,
        source="Databricks model card",
        num_experts=16,
        top_k=4,
        shared_experts=0,
        scores="softmax",
        balancing="not stated",
        total_published_b=132,
        active_published_b=36,
        note="",
        hf_class="DbrxForCausalLM",
        hf_config=dict(
            vocab_size=100352,
            d_model=6144,
            n_heads=48,
            n_layers=40,
            max_seq_len=32768,
            attn_config=dict(kv_n_heads=8, clip_qkv=8, rope_theta=500000),
            ffn_config=dict(ffn_hidden_size=10752, moe_num_experts=16, moe_top_k=4, hidden_size=6144),
            tie_word_embeddings=False,
        ),
    ),
    PublishedModel(
        name="Grok-1",
        year=2024,
        source="xAI model card",
        num_experts=8,
        top_k=2,
        shared_experts=0,
        scores="softmax",
        balancing="not stated",
        total_published_b=314,
        active_published_b=None,
        note=(
            "counted with the Mixtral class as a stand-in: 0.5 % over the published total, cause "
            "not found; the source says that a quarter of the weights is active, counted 26.5 %"
        ),
        hf_class="MixtralForCausalLM",
        hf_config=dict(
            vocab_size=131072,
            hidden_size=6144,
            intermediate_size=32768,
            num_hidden_layers=64,
            num_attention_heads=48,
            num_key_value_heads=8,
            num_local_experts=8,
            num_experts_per_tok=2,
            tie_word_embeddings=True,
        ),
    ),
    PublishedModel(
        name="Llama 4 Scout",
        year=2025,
        source="Meta model card",
        num_experts=16,
        top_k=1,
        shared_experts=1,
        scores="sigmoid",
        balancing="not stated",
        total_published_b=109,
        active_published_b=17,
        note="the text part only; the published total holds the image encoder too",
        hf_class="Llama4ForCausalLM",
        hf_config=dict(
            vocab_size=202048,
            hidden_size=5120,
            intermediate_size=8192,
            intermediate_size_mlp=16384,
            num_hidden_layers=48,
            num_attention_heads=40,
            num_key_value_heads=8,
            head_dim=128,
            num_local_experts=16,
            num_experts_per_tok=1,
            interleave_moe_layer_step=1,
            tie_word_embeddings=False,
        ),
    ),
    PublishedModel(
        name="GLM-4.5",
        year=2025,
        source="arXiv:2508.06471",
        num_experts=160,
        top_k=8,
        shared_experts=1,
        scores="sigmoid",
        balancing="bias update: arXiv:2508.06471, section 2.1",
        total_published_b=355,
        active_published_b=32,
        note=(
            "the published counts hold the multi-token-prediction layer (left out here) and leave "
            "out the embedding and the head (counted here)"
        ),
        hf_class="Glm4MoeForCausalLM",
        hf_config=dict(
            vocab_size=151552,
            hidden_size=5120,
            intermediate_size=12288,
            moe_intermediate_size=1536,
            num_hidden_layers=92,
            num_attention_heads=96,
            num_key_value_heads=8,
            head_dim=128,
            n_routed_experts=160,
            n_shared_experts=1,
            num_experts_per_tok=8,
            first_k_dense_replace=3,
            use_qk_norm=True,
            attention_bias=True,
            n_group=1,
            topk_group=1,
            tie_word_embeddings=False,
        ),
    ),
    PublishedModel(
        name="Phi-3.5-MoE",
        year=2024,
        source="arXiv:2404.14219",
        num_experts=16,
        top_k=2,
        shared_experts=0,
        scores="softmax",
        balancing="not stated",
        total_published_b=42,
        active_published_b=6.6,
        note="",
        hf_class="PhimoeForCausalLM",
        hf_config=dict(
            vocab_size=32064,
            hidden_size=4096,
            intermediate_size=6400,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            num_local_experts=16,
            num_experts_per_tok=2,
            attention_bias=True,
            lm_head_bias=True,
            tie_word_embeddings=False,
        ),
    ),
    PublishedModel(
        name="Jamba v0.1",
        year=2024,
        source="arXiv:2403.19887",
        num_experts=16,
        top_k=2,
        shared_experts=0,
        scores="softmax",
        balancing="not stated",
        total_published_b=52,
        active_published_b=12,
        note="half of its layers are mixtures; most mixing of tokens is by Mamba, not by attention",
        hf_class="JambaForCausalLM",
        hf_config=dict(
            vocab_size=65536,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            num_experts=16,
            num_experts_per_tok=2,
            expert_layer_period=2,
            expert_layer_offset=1,
            attn_layer_period=8,
            attn_layer_offset=4,
            mamba_d_state=16,
            mamba_d_conv=4,
            mamba_expand=2,
            mamba_dt_rank=256,
            mamba_conv_bias=True,
            mamba_proj_bias=False,
            tie_word_embeddings=False,
        ),
    ),
)

if __name__ == "__main__":
    main()
