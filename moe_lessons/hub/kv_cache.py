"""What a model of transformers keeps of each token that it has read, by a run of its shapes on the meta device."""

import inspect
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from moe_lessons.analysis.roofline import Cached
from moe_lessons.support.errors import first_line

aten = torch.ops.aten
LENGTH = 11  # tokens of the run
CACHES = ("cache", "past_key_values", "cache_params", "state", "mems")  # names in a model's output


class Shapes(TorchDispatchMode):
    """Answers what depends on numbers, of which there are none: a value is 1, or true, and one of many is not zero."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            return True if args[0].dtype is torch.bool else 1
        if func is aten.nonzero.default:
            return args[0].new_empty(1, args[0].ndim, dtype=torch.int64)
        if func is aten._to_copy.default and str(kwargs.get("device")) == "cpu":
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype"), device="cpu")
        if func is aten.split_with_sizes.default and args[2:] in ((), (0,)):  # of rows, to experts
            args = args[0], [len(args[0]), *[0] * (len(args[1]) - 1)]
        return func(*args, **kwargs)


def cached_layers(model: nn.Module) -> list[Cached]:
    """What each layer of a model on the meta device keeps of a token. ValueError, with the reason, where it is unknown.

    What transformers keeps is counted: of latent attention (MLA) the latent, as engines do; of a state of fixed size 0.
    """
    config, name = model.config.get_text_config(decoder=True), type(model).__name__
    if any("compressor" in part for part, _ in model.named_modules()):
        raise ValueError(f"{name} compresses several tokens into one")
    try:
        cache = run(model)
    except Exception as error:  # whatever a class raises that wants more than token ids, or their values
        raise ValueError(f"{name} cannot be run on shapes alone ({first_line(error)[:150]})") from error
    if cache is None and writes_text(model):
        raise ValueError(f"{name} of transformers keeps none")
    flops, layers, found = defaultdict(list), {}, []
    for part in model.modules():  # the attentions by the number of their layer: to itself, and to an encoder
        if isinstance(getattr(part, "layer_idx", None), int) and score_flops(part):
            flops[part.layer_idx].append(score_flops(part))
    for place, layer, name, tensor in tensors(cache):
        is_rows = name in ("keys", "values") and tensor.ndim > 1  # a layer that has not run has an empty one
        length = tensor.shape[-2] if is_rows else LENGTH
        own = tensor.numel() // length if length in tensor.shape else 0  # a state of fixed size
        layers.setdefault(id(layer), [place, layer, 0])[2] += own
    for place, layer, numbers in layers.values():
        if numbers:
            score = flops[place].pop(0) if flops[place] else 4 * config.hidden_size
            found.append(Cached(numbers, score, getattr(layer, "sliding_window", None)))
    return found


def writes_text(model: nn.Module) -> bool:
    """Whether it writes text, token by token: BERT does not, unless its configuration makes it a decoder."""
    config = model.config.get_text_config(decoder=True)
    return model.can_generate() and (config.is_encoder_decoder or getattr(config, "is_decoder", True))


def run(model: nn.Module) -> Any:
    """The cache that a model returns after `LENGTH` tokens, or None."""
    ids = torch.zeros(1, LENGTH, dtype=torch.int64, device="meta")
    known = inspect.signature(model.forward).parameters
    given = {"input_ids": ids, "decoder_input_ids": ids, "use_cache": True}
    with suppress(ValueError):
        model.set_experts_implementation("batched_mm")  # which asks for no number
    for part in model.modules():
        if isinstance(part, nn.ModuleList | nn.ModuleDict) and type(part).forward is not nn.Module.forward:
            part.forward = lambda x, *_, **__: x  # experts, which are called by their numbers
    with Shapes(), torch.device("meta"), torch.no_grad():
        output = model.eval().to("meta")(**{name: value for name, value in given.items() if name in known})
    return next((output[name] for name in CACHES if output.get(name) is not None), None)


def tensors(part: Any, name: str = "", place: int | None = None, layer: Any = None) -> Iterator[tuple]:
    """All tensors of numbers in a cache: the number of the layer, what the cache has of it, the tensor's name there."""
    if isinstance(part, Tensor) and part.is_floating_point():
        yield place, layer, name, part
    elif isinstance(part, list | tuple):
        for number, value in enumerate(part):
            yield from tensors(value, name, *((number, value) if place is None else (place, layer)))
    elif isinstance(part, dict) or type(part).__module__.startswith("transformers."):  # a cache or a layer of one
        for key, value in (part if isinstance(part, dict) else vars(part)).items():
            yield from tensors(value, key, place, layer)


def score_flops(part: nn.Module) -> int:
    """FLOPs for each token that one attention looks back on: a score and a sum of values, in each of its heads."""
    width = {name: getattr(child, "out_features", 0) for name, child in part.named_children()}
    outputs = [getattr(part, name) for name in ("o_proj", "out_proj", "o", "dense") if name in width]
    values = sum(getattr(output, "in_features", 0) for output in outputs)
    keys = width.get("q_b_proj") or width.get("q_proj", 0) if "kv_a_proj_with_mqa" in width else values
    return 2 * (keys + values)
