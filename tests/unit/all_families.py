"""``python tests/unit/all_families.py [FAMILY …]``: count every causal language model family of transformers by `cost`.
A family is made in small, so that it can be run: what its cache gains with each token is the truth for the count."""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hf_families
import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from moe_lessons.hub.published import PublishedCount, count_config, read_config

SENTENCE = "exact for {exact} of the {made} families of causal language models"
README = Path(__file__).parents[2] / "README.md"
NAMES = {kind: name if isinstance(name, str) else name[0] for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}
SHORT, LONG = 6, 12  # tokens: less than the windows of the small models
LARGEST = 100_000_000  # parameters of a small model
UNLIKE = {"doge": 2 / 16, "switch_transformers": 1 / 8, "zaya": 1 / 8, "vitpose_backbone": 1 / 2}  # else 2 of 8 work
ROUTED = {"doge": r"_embed\.", "jetmoe": r"\.(in|out)put_linear\."}  # names of the experts' weights


def made(kind: str) -> tuple[nn.Module, PublishedCount]:
    """A small model of a family, with finite numbers in it, and what `cost` counts of its configuration."""
    config, model_class = hf_families.small(kind, NAMES[kind])
    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(config.to_json_string())
        counted = count_config(read_config(folder) | {"architectures": [NAMES[kind]]})
    if counted.sizes.total > LARGEST:
        raise ValueError(f"its small model has {counted.sizes.total:,} parameters")
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.isfinite().all():  # some parts start at what was in memory
                parameter.normal_(std=0.02)
    return model, counted


def active(kind: str, model: nn.Module) -> int:
    """Parameters that a token uses, by their names: all but those of the experts that it does not visit."""
    named = dict(model.named_parameters())
    pattern = ROUTED.get(kind, r"(?<!shared_)experts\.")
    routed = {n: p for n, p in named.items() if re.search(pattern, n) and not re.search(r"\.router\.|norm", n)}
    idle = sum(p.numel() for p in routed.values()) * (1 - UNLIKE.get(kind, 2 / 8))
    if kind == "longcat_flash":  # of 8 + 256 rows, the last 256 are of experts that do nothing
        idle = sum(p.numel() * (1 - 2 / p.shape[0]) for p in routed.values())
    return sum(p.numel() for p in named.values()) - round(idle)


def numbers_in(part: Any) -> Iterator[int]:
    """Of each tensor that can be reached from a cache, how many numbers it has."""
    if isinstance(part, Tensor):
        yield part.numel() if part.is_floating_point() else 0
    elif isinstance(part, list | tuple | dict) or type(part).__module__.startswith("transformers."):
        inner = part if isinstance(part, list | tuple) else (part if isinstance(part, dict) else vars(part)).values()
        for value in inner:
            yield from numbers_in(value)


def kept(model: nn.Module, length: int) -> int | None:
    """Numbers that a model keeps of `length` tokens; None where it returns no cache."""
    with torch.no_grad():
        output = model(input_ids=torch.randint(3, 100, (1, length)), use_cache=True)
    names = ("cache", "past_key_values", "cache_params", "state", "mems")
    return next((sum(numbers_in(output[name])) for name in names if output.get(name) is not None), None)


def verdict(kind: str) -> str:
    """'exact' or 'unknown: …', or else what is wrong."""
    try:
        model, counted = made(kind)
    except Exception as error:
        return f"not made: {type(error).__name__} {error!s:.150}".replace("\n", " ")
    sizes = counted.sizes
    if sizes.total != sum(p.numel() for p in model.parameters()):
        return f"WRONG total {sizes.total}"
    if sizes.active != active(kind, model):
        return f"WRONG active {sizes.active}, not {active(kind, model)}"
    if sizes.cached is None:
        return f"unknown: {' '.join(counted.notes)}"
    try:
        short, long = kept(model, SHORT), kept(model, LONG)
    except Exception as error:
        return f"NOT RUN {type(error).__name__} {error!s:.150}".replace("\n", " ")
    grown = 0 if short is None else (long - short) / (LONG - SHORT)
    if short is None and counted.writes:
        return "WRONG: no cache"
    return "exact" if grown == sizes.cache(1) else f"WRONG cache {sizes.cache(1)}, not {grown}"


def main(kinds: list[str]) -> int:
    """Print what is found of each; 1 where a figure is wrong, or the README has another number."""
    found = {}
    for kind in kinds or NAMES:
        found[kind] = verdict(kind)
        print(f"{kind:24} {found[kind]}", flush=True)
    counts = Counter(said.split(":")[0] for said in found.values())
    sentence = SENTENCE.format(exact=counts["exact"], made=len(found) - counts["not made"])
    print(sentence)
    is_said = bool(kinds) or sentence in README.read_text(encoding="utf-8")
    return int(not is_said or set(counts) > {"exact", "unknown", "not made"})


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    sys.exit(main(sys.argv[1:]))
