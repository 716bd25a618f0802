"""Whole models: a Mixtral or Llama as our `LanguageModel`, and ours as one of them. Two tables serve both ways."""

import csv
import json
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from moe_lessons.hub.blocks import copied, filled
from moe_lessons.nn.baselines import is_moe
from moe_lessons.nn.routing import NoisyTopKRouter, TopKRouter
from moe_lessons.nn.transformer import LanguageModel, TransformerConfig

# Of `TransformerConfig`, and of a model (those of a layer without its number): ours -> theirs.
FIELDS, WEIGHT_NAMES = {}, {}
with open(Path(__file__).with_name("models.csv"), encoding="utf-8", newline="") as rows:
    for row in csv.DictReader(rows):  # of several of theirs ours has the rows one after the other
        (FIELDS if row["what"] == "field" else WEIGHT_NAMES)[row["ours"]] = row["theirs"]


def convert_model(hf_model: nn.Module) -> LanguageModel:
    """Our `LanguageModel` with the weights of a Hugging Face MixtralForCausalLM or LlamaForCausalLM: equal logits.

    The weights are copied, as by `convert_block`; dropout is left out. Raises ValueError for another class and for what
    ours lacks: biases, a sliding window, scaled rotary positions, another activation, a head_dim that is not D/H."""
    name = type(hf_model).__name__
    if name not in ("MixtralForCausalLM", "LlamaForCausalLM") or "transformers." not in type(hf_model).__module__:
        raise ValueError(f"hf_model must be a MixtralForCausalLM or LlamaForCausalLM from transformers, got {name}")
    theirs = hf_model.config.to_dict() | hf_model.config.rope_parameters
    wanted = {"head_dim": theirs["hidden_size"] // theirs["num_attention_heads"], "sliding_window": None}
    wanted |= {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "rope_type": "default"}
    for field, value in wanted.items():
        if theirs.get(field) not in (value, None):
            raise ValueError(f"{field} of hf_model must be {value!r}, got {theirs[field]!r}")
    fields = {ours: theirs[name] for ours, name in FIELDS.items() if name in theirs}
    if name == "LlamaForCausalLM":
        fields |= {"num_experts": 1, "top_k": 1, "moe_layers": ()}
    with torch.device("meta"):
        model = LanguageModel(TransformerConfig(**fields))
    for moe in filter(is_moe, model.modules()):
        moe.router.norm_topk_prob, moe.router.jitter_noise = True, theirs["router_jitter_noise"]
    given = hf_model.state_dict(keep_vars=True)
    weights = {name: copied([given[part] for part in parts]) for name, parts in names(model).items()}
    if model.config.tied_embedding:
        weights["head.weight"] = weights["embed.weight"]
    return filled(model, weights).train(hf_model.training)


def export_model(ours: LanguageModel, folder: str | Path | None = None) -> nn.Module:
    """The inverse of `convert_model`: ours as a MixtralForCausalLM, or as a LlamaForCausalLM where it has no experts.

    The weights are copied, as by `convert_block`. Logits differ by rounding: in float64 too by some 1e-7, since theirs
    has angles and routers in float32; in bfloat16 a near-tie may fall the other way. A router's noise is left out.

    folder: a new or empty one, where the model is saved too, whole or not at all; `from_pretrained(folder)` reads it. A
        model of bytes comes with its `byte_tokenizer`. No token is special, so `generate` ends after max_new_tokens.

    Raises ValueError for what is neither of the two, saying what does not fit, and for weights of several types;
    OSError where the folder holds something or cannot be written."""
    import transformers

    if not isinstance(ours, LanguageModel):
        raise ValueError(f"ours must be a LanguageModel, got {type(ours).__name__}")
    dtypes = {parameter.dtype for parameter in ours.parameters()}
    if len(dtypes) > 1:
        raise ValueError(f"ours must have weights of one type, got {', '.join(sorted(map(str, dtypes)))}")
    ffn, (dtype,) = ours.layers[0].ffn, dtypes  # a baseline has another d_ff than its configuration says
    fields = {theirs: getattr(ffn, name, getattr(ours.config, name)) for name, theirs in FIELDS.items()}
    fields |= dict.fromkeys(["bos_token_id", "eos_token_id", "pad_token_id"]) | {"dtype": dtype}
    fields["tie_word_embeddings"] = ours.head.weight is ours.embed.weight
    fields["rope_parameters"] = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    if is_moe(ffn):
        fields["router_jitter_noise"] = getattr(ffn.router, "jitter_noise", 0.0)
        config, model_class = transformers.MixtralConfig(**fields), transformers.MixtralForCausalLM
    else:
        fields = {name: value for name, value in fields.items() if "expert" not in name}
        config, model_class = transformers.LlamaConfig(**fields), transformers.LlamaForCausalLM
    with torch.device("meta"):
        model = model_class(config)
    check_fit(ours, convert_model(model))
    weights, given = {}, ours.state_dict(keep_vars=True)
    for name, parts in names(ours).items():
        pieces = given[name].detach().split([len(model.get_parameter(part)) for part in parts])
        weights |= {part: nn.Parameter(own.clone(), given[name].requires_grad) for part, own in zip(parts, pieces)}
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(ours.embed.weight.device)  # meta has no angles
    if dtype == torch.float64 or (ffn.d_model * dtype.itemsize) % 16 or (ffn.d_ff * dtype.itemsize) % 16:
        model.set_experts_implementation("eager")  # the others know neither this type nor rows of other lengths
    filled(model, weights).train(ours.training)
    if folder is not None:
        save_model(model, Path(folder))
    return model


def names(ours: LanguageModel) -> dict[str, list[str]]:
    """The name of each weight of ours, and those of theirs."""
    found = {}
    for name in ours.state_dict():
        layer, own = re.fullmatch(r"(layers\.\d+\.)?(.*)", name).groups()
        found[name] = [f"model.{layer}{part}" if layer else part for part in WEIGHT_NAMES[own].split()]
    return found


def check_fit(ours: LanguageModel, back: LanguageModel) -> None:
    """Raise ValueError unless ours is, but for its weights, what is read back from theirs."""
    got, wanted = described(ours), described(back)
    for name in got | wanted:
        if (found := got.get(name, "missing")) != (needed := wanted.get(name, "missing")):
            raise ValueError(
                "ours must be like Mixtral (in each layer an MoE with SwiGLU experts and a TopKRouter that has "
                "norm_topk_prob; no biases, shared expert or capacity) or like Llama (in each a SwiGLU FeedForward), "
                f"got a model whose {name} is {found}, not {needed}"
            )


def described(model: LanguageModel) -> dict[str, Any]:
    """Return what counts of a model beside its weights: the class of each module, its settings, and the shapes."""
    found, whatever = {}, ("training", "noise", "noise_std", "dispatch", "capacity_priority")  # no say in the logits
    for name, module in model.named_modules():
        kind = TopKRouter if type(module) is NoisyTopKRouter else type(module)  # it has noise in training only
        found[name] = f"{kind.__module__}.{kind.__qualname__}"
        for key, value in vars(module).items():
            if isinstance(value, int | float | str | None) and key[0] != "_" and key not in whatever:
                found[f"{name}.{key}"] = value
    return found | {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def byte_tokenizer():
    """A tokenizer of transformers whose token i is byte i of the text in UTF-8, without special tokens.

    >>> byte_tokenizer()("aα").input_ids
    [97, 206, 177]
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    signs = {sign: byte for byte, sign in bytes_to_unicode().items()}  # each byte is written as one sign
    tokenizer = Tokenizer(models.BPE(signs, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def save_model(model: nn.Module, folder: Path) -> None:
    """Write a model of Hugging Face beside `folder`, and give it that name when all is there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"folder must be a new or empty one, got {folder}, where there is something")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as beside:
        new = Path(beside, "model")
        model.save_pretrained(new)
        if model.config._experts_implementation == "eager":  # which that does not write
            config = json.loads((new / "config.json").read_text()) | {"experts_implementation": "eager"}
            (new / "config.json").write_text(json.dumps(config, indent=2))
        if model.config.vocab_size == 256:
            byte_tokenizer().save_pretrained(new)
        os.replace(new, folder)
