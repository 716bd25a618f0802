"""Every family of transformers with a mixture of experts, as a small configuration: 2 of 8 experts for a token."""

import functools
import importlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

TABLES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
# Sizes, of which each configuration takes those that it knows, what else a family needs, and what it must not have:
SIZES, OVERRIDES, OMITTED = (TABLES[name] for name in ("sizes", "overrides", "omitted"))
WHOLE = TABLES["whole"]  # the one class of a family: its others do not go with small sizes
TEXT = TABLES["text"]  # the part of a model for text, where the whole is large, or needs pictures
KINDS = ("ForCausalLM", "ForConditionalGeneration", "ForTokenClassification", "Backbone", "Model")
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
    changes = {key: value for key, value in changes.items() if key not in OMITTED.get(family, ())}
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
