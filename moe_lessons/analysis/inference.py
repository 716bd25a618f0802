"""The decoding speed of language models (batch size B, one thread), and its limits: bandwidth or arithmetic."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from moe_lessons.analysis.busy import watching_others
from moe_lessons.analysis.counting import used_size
from moe_lessons.analysis.timing import Ratio, moved, take_turns
from moe_lessons.nn import KVCache, LanguageModel, evaluating, torch_threads
from moe_lessons.support.errors import check_device, check_number, check_positive_int, check_seed, check_top_k, is_whole
from moe_lessons.training import bar

PROMPT, IN_A_ROW = 8, 4  # tokens of each text before a measured step; steps of one model in a row, as in decoding
DRAWS = 200  # decoding steps over which different experts are counted
CPU_WIDTH, GPU_WIDTH = 512, 8192  # of the matrices that measure a machine
MEGABYTES = 256  # of the large one: many more than its caches hold


def decode_speed(
    models: Mapping[str, LanguageModel], batch_sizes: Sequence[int] = (1, 4, 16), *, prompt_length=8, num_tokens=5,
    repeats=5, seed=0, device=None,
) -> pd.DataFrame:  # fmt: skip
    """Measure the tokens per second of each model in decoding: a row for each batch size and model.

    batch: how many sequences are written at once, B. tokens_per_second: of all B together, the median over `repeats`.
    speedup: over the last model, the median of the ratios within a round. In a round each model reads num_tokens bytes,
    drawn from `seed`, behind a prompt; the median step counts. device: where copies of the models work, such as 'cuda'
    or 'auto'; None: where they are, all on one device.

    >>> from moe_lessons.nn import TransformerConfig
    >>> decode_speed({"tiny": LanguageModel(TransformerConfig())}, (1, 4)).speedup.tolist()
    [1.0, 1.0]
    """
    check_models(models, batch_sizes)
    models = moved(models, device)
    values, place = models.values(), device_of(models)
    length = check_positive_int("prompt_length", prompt_length) + check_positive_int("num_tokens", num_tokens)
    rows, vocab_size = [], min(model.config.vocab_size for model in values)
    generator = torch.Generator().manual_seed(check_seed(seed))
    with torch_threads(1), evaluating(*values), watching_others(), torch.inference_mode():
        for batch in bar(batch_sizes, "batch sizes"):
            ids = torch.randint(vocab_size, (batch, length), generator=generator)
            steps = [step for model in values for step in decoding_steps(model, ids, prompt_length)]
            times = np.reshape(take_turns(steps, repeats, place), (len(models), num_tokens, repeats))
            times = np.median(times, axis=1)  # (models, repeats)
            for name, own in zip(models, times, strict=True):
                rows.append((batch, name, batch * 1000 / median(own), Ratio.of(times[-1], own).median))
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


def device_of(models: Mapping[str, LanguageModel]) -> torch.device:
    """Return the device on which all models are. ValueError where there are several."""
    places = {model.embed.weight.device for model in models.values()}
    if len(places) > 1:
        raise ValueError(f"models must be on one device, or device be given, got {', '.join(map(str, places))}")
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
    rows, generator = [], torch.Generator().manual_seed(seed)
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


def measure_machine(repeats: int = 8, device="cpu") -> Machine:
    """Measure what one thread of the CPU, or a GPU, reaches in float32, the best of `repeats`: in the product of a
    large matrix and a vector, as in decoding at B = 1, and in that of two square matrices. Both have rows of 512
    numbers, on a GPU of 8192: smaller products leave most of it idle."""
    place = check_device(device)
    with torch_threads(1):
        return machine_of(tasks := machine_tasks(place), take_turns(tasks, repeats, place))


def machine_tasks(device: torch.device) -> list[partial]:
    """Make what `measure_machine` measures, to be measured in turns with models."""
    plain = plain_product(device)
    matrix = torch.ones(plain.args[0].shape[1], plain.args[0].shape[1], device=device)
    return [plain, partial(torch.mm, matrix, matrix)]


def machine_of(tasks: Sequence[partial], times: Sequence[Sequence[float]]) -> Machine:
    """Compute the machine at its best from the milliseconds of each round of its two tasks."""
    (large, square), (reading, arithmetic) = (task.args[0] for task in tasks), map(min, times)
    return Machine(1000 * large.nbytes / reading, 1000 * 2 * len(square) ** 3 / arithmetic)


def plain_product(device: torch.device) -> partial:
    """Make the product of a large matrix, its first argument, and a vector: to read it is nearly all that it does."""
    width = CPU_WIDTH if device.type == "cpu" else GPU_WIDTH
    matrix = torch.ones(MEGABYTES * 2**18 // width, width, device=device)  # zeros would take no memory
    return partial(torch.mv, matrix, torch.ones(width, device=device))


def bytes_per_step(model: nn.Module, batch_size: int = 1) -> float:
    """Count the bytes of weights that a decoding step of B = batch_size tokens reads: each weight once, and of the
    experts as many as the `union_law` expects. Not counted: the KV cache, and an embedding that only looks up."""
    parts = [part for part in model.modules() if not isinstance(part, nn.Embedding)]
    sizes = {id(weight): weight.nbytes for part in parts for weight in part.parameters(recurse=False)}
    return used_size(model, sizes, lambda moe: union_law(moe.num_experts, moe.top_k, batch_size))
