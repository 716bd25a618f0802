"""Exact counts of published models: their configuration, built by the class of Hugging Face transformers.

A model is built on torch's meta device: all shapes, no weights, no download, no code but that of transformers. Experts
are found by structure: weights with a row for each expert, or a list of equal modules."""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from moe_lessons.analysis import roofline
from moe_lessons.analysis.roofline import Cached, ExpertGroup, ModelSizes
from moe_lessons.hub.kv_cache import SIZES, cached_layers
from moe_lessons.plots.theme import short_number
from moe_lessons.support.errors import check_top_k, check_whole, shown

TYPES = ("bfloat16", "fp8", "4-bit")  # of the weights, on the machines
LAYERS = re.compile(r"(^|_)(n|num)_.*layers$|^(en|de)coder_layers$")  # fields that say how many there are
MOST_LAYERS, MOST_EXPERTS = 1_000, 100_000  # and in all layers together: the largest, Kimi K3, has 92 × 896
LARGEST = 10**12  # of the sizes that the KV cache follows from
TOP_K = (
    "top_k", "topk", "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts", "moe_top_k",
    "moe_topk", "moe_k", "num_selected_experts",
)  # fmt: skip
AUTO = ("ModelForCausalLM", "ModelForImageTextToText", "ModelForSeq2SeqLM", "ModelForMultimodalLM")


@dataclass(frozen=True)
class PublishedCount:
    """The sizes of a configuration, the class that was built, and what else to know about the count."""

    class_name: str
    model_type: str
    sizes: ModelSizes
    notes: list[str]


def count_config(config: Mapping[str, Any]) -> PublishedCount:
    """The exact counts of a configuration, given as the object of a config.json.

    Raises ValueError where transformers knows neither its model_type nor its class, for numbers that cannot be, for
    what the class refuses, and for one that writes no text."""
    if not isinstance(config, Mapping):
        raise ValueError(f"config must be a dict, as config.json has it, got {type(config).__name__}")
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind, names = config.get("model_type"), config.get("architectures")
    named = getattr(transformers, str(names[0]), None) if isinstance(names, list) and names else None
    if not (isinstance(named, type) and issubclass(named, transformers.PreTrainedModel) and named.config_class):
        named = None
    is_known = isinstance(kind, str) and kind in CONFIG_MAPPING
    if not is_known and named is None:
        got = "a file that names none: no configuration of a model" if kind is None else repr(kind)
        raise ValueError(f"model_type must be one that transformers {transformers.__version__} has, got {got}")
    check_numbers(config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, notes = build(config, CONFIG_MAPPING[kind] if is_known else named.config_class, named)
    except Exception as error:  # whatever a class of transformers raises where a value does not suit it
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ValueError(f"transformers cannot build this configuration: {said}") from error
    if not is_known:
        notes.append(f"transformers lacks the model_type {kind!r}: counted is the class that the file names")
    if not model.can_generate():
        raise ValueError(f"config must be of a class that writes text, token by token, got {type(model).__name__}")
    try:
        cached = cached_layers(model)
    except ValueError as error:
        cached = None
        notes.append(f"its KV cache is unknown, and times and memory are without it: {error}")
    return PublishedCount(type(model).__name__, str(kind), count_model(model, cached), notes)


def entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All entries of a configuration and of those within it."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, Mapping):
            yield from entries(value)


def check_numbers(config: Mapping[str, Any]) -> None:
    """Raise ValueError for more layers or experts than can be built, and for sizes of the KV cache that are no numbers;
    the class refuses other sizes that cannot be."""
    numbers = [(key, value) for key, value in entries(config) if isinstance(value, int | float)]
    layers = max((value for key, value in numbers if LAYERS.search(key)), default=0)
    experts = max((value for key, value in numbers if key.endswith("experts")), default=0)
    if layers > MOST_LAYERS or layers * experts > MOST_EXPERTS:
        most = f"at most {MOST_LAYERS:,} layers, and {MOST_EXPERTS:,} experts in all of them"
        raise ValueError(f"config must have {most}, got {shown(layers)} layers of {shown(experts)} experts")
    for key, value in entries(config):
        if key in SIZES and not isinstance(value, list | None):  # a list: a number for each layer
            check_whole(key, value, 0, LARGEST)


def build(config: Mapping[str, Any], config_class: type, named: type | None) -> tuple[nn.Module, list[str]]:
    """The model of a configuration on the meta device, and what is to be said about it."""
    from transformers.initialization import no_init_weights

    given, notes = dict(config), []
    if quantised := given.pop("quantization_config", None):
        method = quantised.get("quant_method", "?")
        notes.append(f"the file is of a quantised model ({method}): counted are the numbers, without their scales")
    made = config_class.from_dict(given)
    made._attn_implementation = None  # one that is not installed has the same weights
    with torch.device("meta"), no_init_weights():
        model = find_class(made, named)(made)
    model.tie_weights()
    return model, notes


def find_class(config: Any, named: type | None) -> type:
    """The class that a configuration names, else the first in transformers that writes text and is made of it."""
    import transformers

    if named is not None and isinstance(config, named.config_class):
        return named
    for kind in AUTO:
        found = getattr(transformers, f"Auto{kind}")._model_mapping.get(type(config), None)
        found = found[0] if isinstance(found, tuple | list) else found
        if found is not None and isinstance(config, found.config_class):
            return found
    raise ValueError(f"architectures must name a class that transformers has for {config.model_type!r}, got {named}")


def count_model(model: nn.Module, cached: list[Cached] | None) -> ModelSizes:
    """The sizes of a model of transformers; 'active' is for one token of each kind: of encoder and decoder, or text
    and image. cached: see `cached_layers`; None where that is unknown."""
    sizes = {id(weight): weight.numel() for weight in model.parameters()}  # each tied weight once
    outside = {id(weight) for part in outside_parts(model) for weight in part.parameters()}
    blocks = list(find_blocks(model, outside))
    routed = {id(weight) for experts, *_ in blocks for weight in experts}
    groups = [group for *_, group in blocks]
    parts = [part for part in model.modules() if not isinstance(part, nn.Embedding)]
    products = {id(weight): weight.ndim for part in parts for weight in part.parameters(recurse=False)}
    matrices = {weight for weight, ndim in products.items() if ndim > 1} - routed - outside
    shared = [part for name, part in model.named_modules() if re.search(r"shared_(expert|mlp)s?$", name)]

    def numbers(ids: set[int]) -> int:
        return sum(sizes[weight] for weight in ids)

    return ModelSizes(
        total=sum(sizes.values()),
        groups=tuple(replace(group, layers=count) for group, count in Counter(groups).items()),
        matrices=numbers(matrices) + sum(group.top_k * group.matrix for group in groups if group.is_met),
        looked_up=numbers(sizes.keys() - products.keys() - routed - outside),
        router=sum(weight.numel() for _, router, _ in blocks for weight in router),
        shared=sum(weight.numel() for part in shared for weight in part.parameters()),
        outside=numbers(outside - routed),
        cached=None if cached is None else tuple(replace(c, layers=n) for c, n in Counter(cached).items()),
    )


def find_blocks(model: nn.Module, outside: set[int]) -> Iterator[tuple[list[Tensor], list[Tensor], ExpertGroup]]:
    """All blocks with routed experts, by structure: the weights of experts and router, and the sizes."""
    found: dict[str, list[tuple[Tensor, int]]] = {}
    known = "none"  # the experts that were found last: there are none within them, but up to thousands of modules
    for name, module in model.named_modules():
        if not name.startswith(known + ".") and (weights := routed_weights(name, module)):
            found.setdefault(name.rpartition(".")[0], []).extend(weights)
            known = name
    for name, weights in found.items():
        block = model.get_submodule(name)
        routers = [part for child, part in block.named_children() if re.fullmatch("gate|.*router.*", child)]
        num_experts = min(rows for _, rows in weights)  # LongCat also has rows for experts that do nothing
        top_k = check_top_k(find_top_k([*routers, block, model]), num_experts)
        deep = max(weight.ndim for weight, _ in weights)  # less deep are biases
        expert = round(sum(weight.numel() / rows for weight, rows in weights))  # a weight may be of one expert alone
        matrix = round(sum(weight.numel() / rows for weight, rows in weights if weight.ndim == deep))
        expert_weights = [weight for weight, _ in weights]
        is_met = id(weights[0][0]) not in outside and "vision" not in name
        experts = sum(weight.numel() for weight in expert_weights)
        group = ExpertGroup(num_experts, top_k, experts, expert, matrix, is_met)
        yield expert_weights, [weight for part in routers for weight in part.parameters()], group


def routed_weights(name: str, module: nn.Module) -> list[tuple[Tensor, int]]:
    """The weights of a module of experts, each with the number of experts in it; none for any other module."""
    said = f"{name.rpartition('.')[2]} {type(module).__name__}".lower()
    weights = list(module.parameters(recurse=False))
    number = getattr(module, "num_experts", None)
    tables = [part for part in module.children() if isinstance(part, nn.Embedding) and part.num_embeddings == number]
    if "router" not in said and tables:  # an expert is a row of each table, as in Doge
        return [(part.weight, number) for part in tables]
    if "expert" not in said or "shared" in said.split()[0]:
        return []
    if any(weight.ndim > 2 for weight in weights):  # stacked
        return [(weight, weight.shape[0]) for weight in weights]
    experts = [part for part in module.children() if any(True for _ in part.parameters())]
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return [(weight, len(experts)) for part in experts for weight in part.parameters()]
    number = number or getattr(experts[0] if len(experts) == 1 else None, "moe_num_experts", None)
    flat = all(weight.ndim < 3 for weight in module.parameters())
    return [(weight, number) for weight in module.parameters()] if number and flat else []  # DBRX: E·F rows


def find_top_k(places: list[nn.Module]) -> int:
    """Return how many experts a token visits: by an attribute of the router, the block or a configuration; else 1."""
    for place in [*places, *(part.config for part in places if hasattr(part, "config"))]:
        for name in TOP_K:
            value = getattr(place, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        if said := re.search(r"Top(\d+)Router", type(place).__name__):  # Switch and NLLB have it in the name alone
            return int(said[1])
    return 1


def outside_parts(model: nn.Module) -> list[nn.Module]:
    """The models inside a model that a token of text does not meet: encoders of images and sound, a talker."""
    from transformers import PreTrainedModel

    text = type(model.config.get_text_config(decoder=True))
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    of_text = [part for part in parts if isinstance(part.config, text)]
    if model.config.is_encoder_decoder or not of_text:
        return []
    return [part for part in parts if not any(inner is met for inner in part.modules() for met in of_text)]


def cost_report(counted: PublishedCount, context: int = 4096) -> dict[str, Any]:
    """All figures, under the keys of --json; bytes are bytes, and a FLOP is a multiply or an add."""
    sizes, notes = counted.sizes, list(counted.notes)
    kinds = Counter((g.num_experts, g.top_k) for g in sizes.groups for _ in range(g.layers))
    num_experts, top_k = kinds.most_common(1)[0][0] if kinds else (None, None)
    if unmet := sum(group.layers * group.top_k * group.expert for group in sizes.groups if not group.is_met):
        notes.append(f"active_params counts experts for other tokens than text too: {unmet:,} parameters")
    if sizes.outside:
        notes.append(f"{sizes.outside:,} parameters are of parts that a token of text does not meet (image, sound)")
    known = sizes.cached is not None
    caches = {t: roofline.CACHE_BYTES[t] for t in ("float32", "bfloat16", "fp8")}
    machines = {
        name: {t: roofline.on_machine(sizes, row, t, context) for t in TYPES}
        for name, row in roofline.machines().iterrows()
    }
    if any(on["4-bit"]["tokens_per_second"] < on["fp8"]["tokens_per_second"] for on in machines.values()):
        notes.append(
            "4-bit is slower than fp8 where it reads more: beside 4-bit weights the KV cache is in bfloat16, beside "
            f"fp8 weights in fp8, and with {context:,} tokens most of what a token reads is the cache"
        )
    return {
        "class": counted.class_name,
        "model_type": counted.model_type,
        "total_params": sizes.total,
        "active_params": sizes.active,
        "is_dense": not kinds,
        "num_experts": num_experts,
        "top_k": top_k,
        "moe_blocks": sum(kinds.values()),
        "experts": [{"num_experts": e, "top_k": k, "blocks": count} for (e, k), count in kinds.items()],
        "weight_bytes": {dtype: round(size * sizes.total) for dtype, size in roofline.WEIGHT_BYTES.items()},
        "kv_cache_bytes_per_token": {t: round(n * sizes.cache(1)) for t, n in caches.items()} if known else None,
        "context_length": context,
        "kv_cache_bytes": {t: round(n * sizes.cache(context)) for t, n in caches.items()} if known else None,
        "flops_per_token": sizes.flops(),
        "flops_per_token_with_context": sizes.flops(context) if known else None,
        "machines": machines,
        "notes": notes,
    }


def as_tables(report: dict[str, Any]) -> str:
    total, active = report["total_params"], report["active_params"]
    context = report["context_length"]
    kinds = [f"{k['top_k']} of {k['num_experts']} experts in {k['blocks']} blocks" for k in report["experts"]]
    lines = [f"{report['class']}: " + ("; ".join(kinds) or "dense: a token uses every parameter"), ""]
    lines += [f"total parameters    {total:>20,}  {short_number(total)}: what memory must hold"]
    share = f"{100 * active / total:.1f} %"
    lines += [f"active parameters   {active:>20,}  {short_number(active)}: what a token uses, {share}"]
    flops, longer = report["flops_per_token"], report["flops_per_token_with_context"]
    longer = "unknown" if longer is None else short_number(longer)
    lines += [f"FLOPs for a token   {flops:>20,}  {short_number(flops)}; with {context:,} tokens of context {longer}"]
    row = f"KV cache of {context:,} tokens, GB"
    cached = report["kv_cache_bytes"] or {}
    held = pd.DataFrame({"weights, GB": report["weight_bytes"], row: cached}).T / 1e9
    lines += ["", held.to_string(float_format="{:,.4g}".format, na_rep="" if cached else "unknown"), ""]
    rows = {}
    memory = roofline.machines().memory_bytes
    for name, on in report["machines"].items():
        rows[name] = {("memory", "GB"): f"{memory[name] / 1e9:.0f}"}
        rows[name] |= {("fits in", t): "yes" if row["fits"] else "no" for t, row in on.items()}
        speeds = {t: row["tokens_per_second"] for t, row in on.items()}
        rows[name] |= {("tokens/s, batch 1", t): f"{speed:,.0f}" for t, speed in speeds.items() if speed}
        batch = on["bfloat16"]["arithmetic_batch"]
        rows[name]["arithmetic rules", "from batch"] = f"{batch:,}" if batch else "never"
    lines += [pd.DataFrame(rows).T.to_string(), ""]
    lines += ["Speeds are those of the roofline: what one machine would do at best, if the model fitted into it."]
    lines += ["The last column is for bfloat16 and short texts: a long KV cache puts it off."]
    return "\n".join([*lines, *(f"Note: {note}." for note in report["notes"])])
