"""The KV cache of a model of transformers by the usual formulas, from its configuration.

A layer of attention keeps a key and a value for each of its G heads of keys and values, each h numbers: 2·G·h; G is the
number of heads where they are not grouped (arXiv:2305.13245). Latent attention (MLA, arXiv:2405.04434, section 2.1)
keeps one latent and one key with rotary positions for all heads. A window keeps the last tokens only. A layer whose
state has a fixed size (Mamba, linear attention) keeps nothing of a token."""

from typing import Any

from torch import nn

from moe_lessons.analysis.roofline import Cached

WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}  # and their fields
UNUSUAL = ("cross_attention_layers", "recurrent_kv_cache_mode", "mem_len", "ngram")  # fields of other kinds of memory
FIXED = ("linear_attention", "mamba", "mamba2", "conv", "recurrent", "moe", "mlp")  # kinds of layers without a cache
SIZES = (  # fields from which the formulas are computed
    "num_attention_heads", "num_key_value_heads", "num_kv_heads", "num_kv_shared_layers", "hidden_size", "head_dim",
    "d_kv", "dim_head", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", *WINDOWS.values(),
)  # fmt: skip


def cached_layers(model: nn.Module) -> list[Cached]:
    """Return what each layer of a model on the meta device keeps. ValueError, with the reason, where no formula is
    known."""
    whole, name = model.config, type(model).__name__
    config = whole.get_text_config(decoder=True)
    try:
        kinds = [kind for kind in layer_kinds(config, whole.is_encoder_decoder) if kind not in FIXED]
        shape = attention_shape(config) if kinds else (0, 0)
        windows = {kind: getattr(config, WINDOWS[kind]) for kind in set(kinds) & {*WINDOWS}}
        if not all(isinstance(size, int | None) for size in (*shape, *windows.values())):
            raise TypeError("a size for each layer")
    except Exception as error:  # whatever a configuration of transformers raises that lacks a field, or has it by layer
        raise ValueError(f"the configuration of {name} does not have the usual fields of attention") from error
    unusual = [field for field in UNUSUAL if hasattr(config, field)]
    if unknown := [*unusual, *sorted(map(str, set(kinds) - {"full_attention", *WINDOWS}))]:
        raise ValueError(f"{name} has {unknown[0]}, for which there is no usual formula")
    if not agrees(model, shape[0]):
        raise ValueError(f"the attention of {name} has other widths than its configuration says")
    return [Cached(*shape, windows.get(kind)) for kind in kinds]


def layer_kinds(config: Any, has_encoder: bool) -> list[str]:
    """The kind of each layer that keeps keys and values of its own, as `layer_types` of transformers says."""
    if has_encoder:  # each layer looks back on its own tokens, and on those of the encoder
        layers = first(config, "num_decoder_layers", "decoder_layers") or config.num_hidden_layers
        return ["full_attention"] * 2 * layers
    usual = "sliding_attention" if first(config, "sliding_window") else "full_attention"
    kinds = list(first(config, "layer_types") or [usual] * config.num_hidden_layers)
    return kinds[: len(kinds) - (first(config, "num_kv_shared_layers") or 0)]  # the last use those of an earlier one


def attention_shape(config: Any) -> tuple[int, int]:
    """Return what one layer keeps of a token, in numbers, and its FLOPs for each token that it looks back on: a score
    and a sum of values in each of H heads."""
    heads, latent = config.num_attention_heads, first(config, "kv_lora_rank")  # H
    if latent:
        keys = config.qk_nope_head_dim + config.qk_rope_head_dim
        return latent + config.qk_rope_head_dim, 2 * heads * (keys + config.v_head_dim)
    width = first(config, "head_dim", "d_kv", "dim_head") or config.hidden_size // heads  # h
    groups = 1 if first(config, "multi_query") else first(config, "num_key_value_heads", "num_kv_heads") or heads
    return 2 * groups * width, 4 * heads * width


def agrees(model: nn.Module, numbers: int) -> bool:
    """Return whether all projections of keys and values, where there are some by their usual names, are as wide as
    that."""
    attentions = [part for part in model.modules() if isinstance(getattr(part, "layer_idx", None), int)]
    pairs = [(part.k_proj, part.v_proj) for part in attentions if hasattr(part, "k_proj") and hasattr(part, "v_proj")]
    return all(sum(getattr(one, "out_features", numbers / 2) for one in pair) == numbers for pair in pairs)


def first(config: Any, *names: str) -> Any:
    """The first of these fields that a configuration has, or None."""
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)
