"""How fast language models write, and what limits them: the weights that are read, or the arithmetic.

Decoding: each step takes one token of each of B sequences through the model, with the keys and values of the earlier
ones in a cache. A step reads every weight that it needs once, however many tokens share it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

import pandas as pd
import torch
from torch import Tensor, nn

from moe_lessons.analysis.cost import flops_per_token
from moe_lessons.analysis.timing import WARM_UP, Ratio, milliseconds
from moe_lessons.errors import check_choice, check_number, check_positive_int, check_seed, check_top_k
from moe_lessons.nn import LanguageModel, evaluating, is_moe, torch_threads

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)

# --- tokens per second -----------------------------------------------------------------------------------


def decode_speed(
    models: Mapping[str, LanguageModel],
    batch_sizes: Sequence[int] = (1, 4, 16),
    *,
    baseline: str | None = None,
    prompt_length: int = 8,
    num_tokens: int = 5,
    repeats: int = 5,
    threads: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """Tokens per second of each model in decoding: a row for each batch size and model.

    batch: how many sequences are written at once, B. tokens_per_second: of all B together, the median over `repeats`.
    speedup: how many times as many as `baseline` (None: the last model) has; `low` and `high` are its quartiles.

    For each batch size the models take turns, `repeats` times after a warm-up, and the speed-up is the median of the
    ratios within a round. In a turn a model reads num_tokens bytes in each sequence, one step after the other, behind a
    prompt, and the median step counts: the first may find the weights of another model in the processor's cache. The
    bytes are drawn from `seed`, the same for all models. Meanwhile torch uses `threads`. For seconds, see `stopwatch`.

    Raises ValueError for no models, an unknown baseline, a model that cannot decode with a cache, sizes below 1, and
    where prompt and tokens are more than a model's max_positions.

    >>> from moe_lessons.nn import TransformerConfig
    >>> decode_speed({"tiny": LanguageModel(TransformerConfig())}, (1, 4)).speedup.tolist()
    [1.0, 1.0]
    """
    if not isinstance(models, Mapping) or not all(isinstance(model, LanguageModel) for model in models.values()):
        got = models.values() if isinstance(models, Mapping) else [models]
        kinds = ", ".join(type(model).__name__ for model in got)
        raise ValueError(f"models must be a dict of names and LanguageModels, got {kinds}")
    names = list(models)
    if not names:
        raise ValueError("models must hold at least one model, got none")
    baseline = names[-1] if baseline is None else check_choice("baseline", baseline, names)
    for name, value in {"prompt_length": prompt_length, "num_tokens": num_tokens, "repeats": repeats}.items():
        check_positive_int(name, value)
    check_batch_sizes(batch_sizes)
    length = prompt_length + num_tokens
    for name, model in models.items():
        if not model.causal:
            raise ValueError(f"models must decode with a cache, got {name!r}, whose router looks at later tokens")
        if length > model.config.max_positions:
            room = f"max_positions ({model.config.max_positions}) of {name!r}"
            raise ValueError(f"prompt_length + num_tokens must be at most {room}, got {length}")
    rows = []
    vocab_size = min(model.config.vocab_size for model in models.values())
    generator = torch.Generator().manual_seed(check_seed(seed))
    with torch_threads(threads), _measuring(*models.values()):
        for batch in batch_sizes:
            ids = torch.randint(vocab_size, (batch, length), generator=generator)
            turns = [_turn(model, ids, prompt_length, threads) for model in models.values()]
            rounds = [[turn() for turn in turns] for _ in range(WARM_UP + repeats)][WARM_UP:]
            times = dict(zip(names, zip(*rounds), strict=True))
            for name in names:
                ratio = Ratio.of(times[baseline], times[name])
                speed = batch * 1000 / median(times[name])
                rows.append((batch, name, speed, ratio.median, ratio.low, ratio.high))
    return pd.DataFrame(rows, columns=["batch", "model", "tokens_per_second", "speedup", "low", "high"])


@contextmanager
def _measuring(*models: nn.Module) -> Iterator[None]:
    """Within it the models are in eval mode, and nothing has a gradient; afterwards they are as before."""
    with evaluating(*models), torch.inference_mode():
        yield


def stopwatch(threads: int, device: torch.device) -> Callable[[Callable[[], object]], float]:
    """A function that takes a function, calls it, and returns how many milliseconds that took.

    Where one thread of a CPU computes, they are those that it was at work: the ones in which other programs had the
    processor do not count. A long step is interrupted more often than a short one, so they would falsify a ratio.
    """
    if threads > 1 or device.type != "cpu" or time.get_clock_info("thread_time").resolution > 1e-6:
        return milliseconds  # a clock on the wall

    def at_work(function: Callable[[], object]) -> float:
        start = time.thread_time()
        function()
        return 1000 * (time.thread_time() - start)

    return at_work


def _turn(model: LanguageModel, ids: Tensor, prompt_length: int, threads: int) -> Callable[[], float]:
    """A function that decodes ids (B, T) behind their prompt and returns the median milliseconds of a step."""
    device = model.embed.weight.device
    ids, measure = ids.to(device), stopwatch(threads, device)
    cache = model.new_cache(*ids.shape)
    model(ids[:, :prompt_length], cache)
    steps = [partial(model, ids[:, place : place + 1], cache) for place in range(prompt_length, ids.shape[1])]

    def turn() -> float:
        cache.length = prompt_length  # forget what the last turn added
        return median(measure(step) for step in steps)

    return turn


# --- distinct experts ------------------------------------------------------------------------------------


def union_law(num_experts: int, top_k: int, batch_size: int) -> float:
    """How many different experts B tokens touch in a layer, on average: E·(1 - (1 - K/E)^B).

    A token leaves an expert alone with probability 1 - K/E, and all B do with (1 - K/E)^B. This assumes that every
    expert is equally likely, and that the tokens choose independently of each other. Tokens that are alike agree more
    often, and a router with favourites repeats them: both touch fewer experts than the law says.

    >>> [round(union_law(8, 2, batch), 1) for batch in (1, 2, 4, 8, 16)]
    [2.0, 3.5, 5.5, 7.2, 7.9]
    """
    check_top_k(top_k, check_positive_int("num_experts", num_experts))
    return num_experts * (1 - (1 - top_k / num_experts) ** check_positive_int("batch_size", batch_size))


def distinct_experts(
    model: LanguageModel, ids: Tensor, batch_sizes: Sequence[int] = BATCH_SIZES, *, draws: int = 200, seed: int = 0
) -> pd.DataFrame:
    """How many different experts a decoding step touches: a row for each batch size and MoE layer.

    ids: sequences (N, T), N at least the largest batch size. A step of B takes B of them at one position; `distinct`
    is the mean over `draws` such steps, drawn from `seed`. `union_law`: what independent, uniform choices would make.

    Raises ValueError for a model without a mixture of experts or one that cannot decode with a cache (who serves a
    token of it depends on all tokens of the step), and for batch sizes below 1 or above N.

    >>> from moe_lessons.nn import TransformerConfig
    >>> model = LanguageModel(TransformerConfig(num_layers=1, num_experts=8, top_k=2))
    >>> distinct_experts(model, torch.randint(256, (4, 16)), (1, 4)).batch.tolist()
    [1, 4]
    """
    mixtures = [module for module in model.modules() if is_moe(module)]
    if not mixtures:
        raise ValueError("model must contain a mixture of experts, got one without")
    if not getattr(model, "causal", True):
        raise ValueError("model must decode with a cache, got one whose routing of a token depends on other tokens")
    check_positive_int("draws", draws)
    with _measuring(model):
        _, routings = model(ids)
    num_sequences, length = ids.shape
    check_batch_sizes(batch_sizes, num_sequences)
    rows = []
    generator = torch.Generator().manual_seed(seed)
    for batch in batch_sizes:
        chosen = torch.stack([torch.randperm(num_sequences, generator=generator)[:batch] for _ in range(draws)])
        place = torch.randint(length, (draws, 1), generator=generator)
        tokens = chosen * length + place  # (draws, B), as the routings count them
        for layer, (moe, routing) in enumerate(zip(mixtures, routings, strict=True)):
            used = torch.zeros(routing.num_tokens, routing.num_experts, dtype=torch.bool)
            used[routing.token_idx.cpu(), routing.expert_idx.cpu()] = True
            distinct = used[tokens].any(dim=1).sum(dim=1).double().mean().item()  # (draws, B, E) -> (draws, E)
            rows.append((batch, layer, distinct, union_law(moe.num_experts, moe.top_k, batch)))
    return pd.DataFrame(rows, columns=["batch", "layer", "distinct", "union_law"])


def check_batch_sizes(batch_sizes: Sequence[int], largest: int | None = None) -> None:
    """Raise ValueError unless there are batch sizes, whole numbers from 1 to `largest`."""
    if not isinstance(batch_sizes, Iterable):
        raise ValueError(f"batch_sizes must be several whole numbers, as (1, 4), got {batch_sizes!r}")
    if not len(batch_sizes):
        raise ValueError("batch_sizes must hold at least one number, got none")
    for batch in batch_sizes:
        if check_positive_int("batch_sizes", batch) > (largest or batch):
            raise ValueError(f"batch_sizes must be at most the number of sequences ({largest}), got {batch}")


# --- the roofline ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What a machine can do at best. bytes_per_second: read from memory; flops_per_second: arithmetic.

    The roofline model (Williams, Waterman and Patterson, CACM 52(4), 2009): a program that does I FLOPs for each byte
    that it reads, its arithmetic intensity, can reach min(flops_per_second, I · bytes_per_second) and no more.

    >>> machine = Machine(bytes_per_second=10e9, flops_per_second=80e9)
    >>> machine.ridge, machine.attainable(0.5), machine.attainable(100)
    (8.0, 5000000000.0, 80000000000.0)
    """

    bytes_per_second: float
    flops_per_second: float

    def __post_init__(self):
        check_number("bytes_per_second", self.bytes_per_second, above=True)
        check_number("flops_per_second", self.flops_per_second, above=True)

    @property
    def ridge(self) -> float:
        """The intensity, in FLOPs per byte, from which on arithmetic is the limit and not memory."""
        return self.flops_per_second / self.bytes_per_second

    def attainable(self, intensity: float) -> float:
        """The most FLOP/s at this intensity."""
        return min(self.flops_per_second, intensity * self.bytes_per_second)

    def seconds(self, num_bytes: float, flops: float) -> float:
        """The least time for reading this many bytes and doing this many FLOPs, both at once."""
        return max(num_bytes / self.bytes_per_second, flops / self.flops_per_second)


def measure_machine(megabytes: int = 256, width: int = 1024, repeats: int = 8, threads: int = 1) -> Machine:
    """What this machine reaches with `threads` threads, the best of `repeats`: the CPU, in float32.

    Reading: the sum of `megabytes` of numbers, many more than its caches hold. Arithmetic: the product of two matrices
    of width × width, 2·width³ FLOPs.
    """
    check_positive_int("repeats", repeats)
    numbers = torch.ones(check_positive_int("megabytes", megabytes) * 2**18)  # not zeros: those may take no memory
    matrix = torch.ones(check_positive_int("width", width), width)
    with torch_threads(threads):
        measure = stopwatch(threads, matrix.device)
        reading = min(measure(numbers.sum) for _ in range(repeats)) / 1000
        arithmetic = min(measure(partial(torch.mm, matrix, matrix)) for _ in range(repeats)) / 1000
    return Machine(numbers.nbytes / reading, 2 * width**3 / arithmetic)


def product_bandwidth(megabytes: float, threads: int = 1) -> float:
    """Bytes per second of a matrix-vector product, one matrix of `megabytes` again and again: the median.

    It is repeated until half a gigabyte was read, and at least 5 times.

    A product of B = 1 uses each weight once, as decoding does. A matrix that fits into the processor's cache stays
    there from one product to the next.
    """
    width = 1024
    matrix = torch.ones(max(1, round(check_number("megabytes", megabytes, above=True) * 2**18 / width)), width)
    vector = torch.ones(width)
    with torch_threads(threads):
        torch.mv(matrix, vector)  # brings it into the cache, where it fits
        measure, repeats = stopwatch(threads, matrix.device), max(5, 2**29 // matrix.nbytes)
        return 1000 * matrix.nbytes / median(measure(partial(torch.mv, matrix, vector)) for _ in range(repeats))


def bytes_per_step(model: nn.Module, batch_size: int = 1) -> float:
    """Bytes of weights that a decoding step of B = batch_size tokens reads: each weight once.

    Of a mixture's experts, as many as the `union_law` expects. An embedding is a look-up of B rows and not counted,
    unless the head uses the same weights. Not counted either: the KV cache, the same for a model and its dense twins.

    >>> from moe_lessons.nn import MoE
    >>> [bytes_per_step(MoE(d_model=4, d_ff=16, num_experts=8, top_k=2), batch) for batch in (1, 2)]
    [1664.0, 2816.0]
    """
    check_positive_int("batch_size", batch_size)
    parts = [part for part in model.modules() if not isinstance(part, nn.Embedding)]
    size = {id(weight): weight.nbytes for part in parts for weight in part.parameters(recurse=False)}
    idle = 0.0
    for moe in filter(is_moe, model.modules()):
        share = union_law(moe.num_experts, moe.top_k, batch_size) / moe.num_experts
        idle += (1 - share) * sum(weight.nbytes for weight in moe.experts.parameters())
    return sum(size.values()) - idle


def arithmetic_intensity(model: nn.Module, batch_size: int = 1) -> float:
    """FLOPs for each byte of weights in a decoding step of B tokens (`flops_per_token`, `bytes_per_step`).

    For a dense model in float32 about B/2: two FLOPs for each weight of 4 bytes and each token.
    """
    return batch_size * flops_per_token(model) / bytes_per_step(model, batch_size)


def roofline_points(models: Mapping[str, nn.Module], speeds: pd.DataFrame) -> pd.DataFrame:
    """Where models lie under the roof: columns name, batch, intensity (FLOPs/byte), flops_per_second (attained).

    speeds: what `decode_speed` returned for these models. Raises ValueError for one that is not among `models`.
    """
    rows = []
    for row in speeds.itertuples():
        model = models[check_choice("model", row.model, models)]
        attained = row.tokens_per_second * flops_per_token(model)
        rows.append((row.model, row.batch, arithmetic_intensity(model, row.batch), attained))
    return pd.DataFrame(rows, columns=["name", "batch", "intensity", "flops_per_second"])
