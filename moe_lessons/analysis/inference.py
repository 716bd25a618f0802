"""The decoding speed of language models (batch size B, one thread), and its limits: bandwidth or arithmetic."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_lessons.analysis.busy import watching_others
from moe_lessons.analysis.counting import used_size
from moe_lessons.analysis.timing import Ratio, take_turns
from moe_lessons.nn import KVCache, LanguageModel, evaluating, torch_threads
from moe_lessons.support.errors import check_device, check_number, check_positive_int, check_seed, check_top_k, is_whole
from moe_lessons.training import bar

PROMPT, IN_A_ROW = 8, 4  # tokens of each text before a measured step; steps of one model in a row, as in decoding
DRAWS = 200  # decoding steps over which different experts are counted
# D of the products that measure a machine: on a CPU that of the models of lesson 04, on a GPU what keeps it busy
CPU_WIDTH, GPU_WIDTH = 512, 8192
MACHINE_ROUNDS = 12
MEGABYTES = 256  # of the large matrix at least
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")  # where Linux describes them


def decode_speed(
    models: Mapping[str, LanguageModel], batch_sizes: Sequence[int] = (1, 4, 16), *, prompt_length=8, num_tokens=5,
    repeats=5, seed=0,
) -> pd.DataFrame:  # fmt: skip
    """Measure the tokens per second of each model in decoding: a row for each batch size and model.

    batch: how many sequences are written at once, B. tokens_per_second: of all B together, the median over `repeats`.
    speedup: over the last model, the median of the ratios within a round. In a round each model reads num_tokens bytes,
    drawn from `seed`, behind a prompt; the median step counts. All models are on one device.

    >>> from moe_lessons.nn import TransformerConfig
    >>> decode_speed({"tiny": LanguageModel(TransformerConfig())}, (1, 4)).speedup.tolist()
    [1.0, 1.0]
    """
    check_models(models, batch_sizes)
    values, place = models.values(), device_of(models)
    length = check_positive_int("prompt_length", prompt_length) + check_positive_int("num_tokens", num_tokens)
    rows = []
    vocab_size = min(model.config.vocab_size for model in values)
    generator = torch.Generator().manual_seed(check_seed(seed))
    with torch_threads(1), evaluating(*values), watching_others(), torch.inference_mode():
        for batch in bar(batch_sizes, "batch sizes"):
            ids = torch.randint(vocab_size, (batch, length), generator=generator)
            steps = [step for model in values for step in decoding_steps(model, ids, prompt_length)]
            times = np.reshape(take_turns(steps, repeats, place), (len(models), num_tokens, repeats))
            times = np.median(times, axis=1)  # (models, repeats)
            for name, ms in zip(models, times, strict=True):
                rows.append((batch, name, batch * 1000 / median(ms), Ratio.of(times[-1], ms).median))
    return pd.DataFrame(rows, columns=["batch", "model", "tokens_per_second", "speedup"])


def decode_token(model: LanguageModel, ids: Tensor, cache: KVCache, place: int) -> None:
    """Decode the token at `place` of ids (B, T), behind the tokens before it in the cache."""
    cache.length = place  # forget what an earlier round added
    model(ids[:, place : place + 1], cache)


def decoding_steps(model: LanguageModel, ids: Tensor, prompt: int = PROMPT) -> list[Callable[[], None]]:
    """Prepare the steps that decode each token of ids (B, T) behind the prompt, which fills the cache."""
    ids = ids.to(model.embed.weight.device)
    cache = model.new_cache(*ids.shape)
    model(ids[:, :prompt], cache)
    return [partial(decode_token, model, ids, cache, place) for place in range(prompt, ids.shape[1])]


@torch.inference_mode()
def decoded(model: LanguageModel, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Decode x (B, T) with a cache, a token of each text at a time, whatever the model would have chosen. Return the
    mean loss of the next tokens y, and how many experts run for a token in a layer."""
    cache, losses, ran = model.new_cache(*x.shape), [], []
    with evaluating(model):
        for place in range(x.shape[1]):
            logits, routings = model(x[:, place : place + 1], cache)  # (B, 1, V)
            losses.append(F.cross_entropy(logits[:, 0], y[:, place]).item())
            ran += [len(routing.token_idx) / len(x) for routing in routings]
    return mean(losses), mean(ran)


def device_of(models: Mapping[str, LanguageModel]) -> torch.device:
    """Return the device on which all models are. ValueError where there are several."""
    places = {model.embed.weight.device for model in models.values()}
    if len(places) > 1:
        raise ValueError(f"models must be on one device, got {', '.join(map(str, places))}")
    return places.pop()


def check_models(models: Mapping[str, LanguageModel], batch_sizes: Sequence[int]) -> None:
    if not isinstance(models, Mapping) or not models:
        raise ValueError(f"models must be a dict of names and LanguageModels, got {models!r}")
    for model in models.values():
        check_decodes(model, batch_sizes)


def check_decodes(model: LanguageModel, batch_sizes: Sequence[int], num_sequences: int = 2**31) -> None:
    """Raise ValueError where a token's logits depend on tokens that a decoding step lacks, or for bad batch sizes."""
    if not isinstance(model, LanguageModel):
        raise ValueError(f"a model must be a LanguageModel, got {type(model).__name__}")
    if not model.causal:
        raise ValueError("a model must decode with a cache, got one whose routing of a token depends on other tokens")
    if not batch_sizes or not all(is_whole(batch, 1, num_sequences) for batch in batch_sizes):
        raise ValueError(f"batch_sizes must be whole numbers from 1 to the number of sequences, got {batch_sizes!r}")


def union_law(num_experts: int, top_k: int, batch_size: Any) -> Any:
    """Say how many different experts B tokens touch in a layer, on average, if all are as likely and the tokens choose
    independently: E·(1 - (1 - K/E)^B). batch_size: B, or an array of such sizes.

    >>> [round(union_law(8, 2, batch), 1) for batch in (1, 2, 4, 8, 16)]
    [2.0, 3.5, 5.5, 7.2, 7.9]
    """
    check_top_k(top_k, check_positive_int("num_experts", num_experts))
    if not isinstance(batch_size, np.ndarray):
        check_positive_int("batch_size", batch_size)
    return num_experts * (1 - (1 - top_k / num_experts) ** batch_size)


@torch.inference_mode()
def distinct_experts(model: LanguageModel, ids: Tensor, batch_sizes=(1, 2, 4, 8, 16, 32, 64), seed=0) -> pd.DataFrame:
    """Count how many different experts a decoding step touches: a row for each batch size and MoE layer. A step takes B
    of the sequences ids (N, T) at one position; `distinct` is the mean over 200 such steps, drawn from `seed`."""
    num_sequences, length = ids.shape
    check_decodes(model, batch_sizes, num_sequences)
    with evaluating(model):
        _, routings = model(ids.to(model.embed.weight.device))
    if not routings:
        raise ValueError("model must contain a mixture of experts, got one without")
    rows = []
    generator = torch.Generator().manual_seed(seed)
    for batch in batch_sizes:
        chosen = torch.stack([torch.randperm(num_sequences, generator=generator)[:batch] for _ in range(DRAWS)])
        place = torch.randint(length, (DRAWS, 1), generator=generator)
        tokens = chosen * length + place  # (DRAWS, B), as the routings count them
        for layer, routing in enumerate(routings):
            used = torch.zeros(routing.num_tokens, routing.num_experts, dtype=torch.bool)
            used[routing.token_idx.cpu(), routing.expert_idx.cpu()] = True
            distinct = used[tokens].any(dim=1).sum(dim=1).double().mean().item()  # (DRAWS, B, E) -> (DRAWS, E)
            rows.append((batch, layer, distinct, union_law(routing.num_experts, model.config.top_k, batch)))
    return pd.DataFrame(rows, columns=["batch", "layer", "distinct", "union_law"])


@dataclass(frozen=True)
class Machine:
    """The bandwidth and the arithmetic of a machine at best. A program that does I FLOPs for each byte that it
    reads can reach min(flops_per_second, I · bytes_per_second) (the roofline model: Williams, CACM 52(4), 2009)."""

    bytes_per_second: float
    flops_per_second: float

    def __post_init__(self):
        for name, value in vars(self).items():
            check_number(name, value, above=True)

    @property
    def ridge(self) -> float:
        """Give the intensity, in FLOPs per byte, from which on arithmetic is the limit."""
        return self.flops_per_second / self.bytes_per_second


_machines: dict[torch.device, Machine] = {}  # what was measured in this session


def measure_machine(device="cpu") -> Machine:
    """Measure what one thread of the CPU, or a GPU, reaches in float32, at its best of several rounds: in products of
    a large matrix, or the three of a dense FFN, with a vector, as in decoding at B = 1, whichever reads faster; and in
    the product of two square matrices.

    It is measured once a session, so that all that is compared with it is compared with the same."""
    place = check_device(device)
    if place not in _machines:
        _machines[place] = _measure_machine(place)
    return _machines[place]


def _measure_machine(place: torch.device) -> Machine:
    width = CPU_WIDTH if place.type == "cpu" else GPU_WIDTH
    weights = torch.ones(_megabytes() * 2**18, device=place)  # zeros would take no memory
    square, x = torch.ones(width, width, device=place), torch.ones(width, device=place)
    tasks = [
        partial(torch.mv, weights.view(-1, width), x),
        partial(multiply_as_ffn, weights, x),
        partial(torch.mm, square, square),
    ]
    with torch_threads(1):
        *reading, arithmetic = take_turns(tasks, MACHINE_ROUNDS, place)
    return Machine(1000 * weights.nbytes / min(map(min, reading)), 1000 * 2 * len(square) ** 3 / min(arithmetic))


def multiply_as_ffn(weights: Tensor, x: Tensor) -> Tensor:
    """Multiply x (D,) with weights (N,) that are split up as in a dense FFN: gate and up have rows of D, down has D
    rows, which are long and on some processors read faster."""
    D, F = len(x), len(weights) // (3 * len(x))
    hidden = torch.mv(weights[: 2 * F * D].view(2 * F, D), x)[:F]
    return torch.mv(weights[2 * F * D : 3 * F * D].view(D, F), hidden)


def _megabytes() -> int:
    """Say how large a matrix must be so that a cache holds little of it."""
    return max(MEGABYTES, 2 * (last_level_cache_bytes() or 0) // 2**20)


def last_level_cache_bytes() -> int | None:
    """Read how many bytes the last-level cache of the first processor holds; None where the system does not say."""
    sizes = {}
    for folder in CACHES.glob("index*"):
        try:
            level, size = ((folder / name).read_text().strip() for name in ("level", "size"))
            sizes[int(level)] = int(size.removesuffix("K")) * 1024  # 1 is split in two; the last one is not
        except (OSError, ValueError):
            continue
    return sizes[max(sizes)] if sizes else None


def cache_sentence(models: Mapping[str, nn.Module]) -> str:
    """Say which models' active weights, at B = 1, fit into the last-level cache, and what follows."""
    if not (size := last_level_cache_bytes()):
        return "How much the last-level cache of this processor holds is unknown."
    cache = f"The last-level cache of this processor holds {size / 1e6:.0f} MB"
    if not (names := [name for name, model in models.items() if bytes_per_step(model) <= size]):
        return f"{cache}, less than any of these models loads per token."
    return (
        f"{cache}, so the active weights of {', '.join(names)} fit into it. Those that the next token uses again "
        "(of an MoE: experts that it chooses again) come from there, so that a step can take less time than its bytes "
        "promise."
    )


def bytes_per_step(model: nn.Module, batch_size: int = 1) -> float:
    """Count the bytes of weights that a decoding step of B = batch_size tokens reads: each weight once, and of the
    experts as many as the `union_law` expects. Not counted: the KV cache, and an embedding that only looks up."""
    parts = [part for part in model.modules() if not isinstance(part, nn.Embedding)]
    sizes = {id(weight): weight.nbytes for part in parts for weight in part.parameters(recurse=False)}
    return used_size(model, sizes, lambda moe: union_law(moe.num_experts, moe.top_k, batch_size))
