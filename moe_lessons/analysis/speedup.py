"""The speedup of a mixture over dense models of any FFN width, at any batch size: by the roofline, and as measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import numpy as np
import pandas as pd
import torch

from moe_lessons.analysis.busy import watching_others
from moe_lessons.analysis.counting import TransformerShape
from moe_lessons.analysis.inference import (
    IN_A_ROW,
    PROMPT,
    Machine,
    check_models,
    decoding_steps,
    device_of,
    measure_machine,
)
from moe_lessons.analysis.roofline import (
    FFN,
    WEIGHT_BYTES,
    ModelSizes,
    part_costs,
    part_seconds,
    sizes_of,
    step_seconds,
)
from moe_lessons.analysis.timing import Ratio, take_turns
from moe_lessons.nn import FeedForward, LanguageModel, evaluating, is_moe, torch_threads
from moe_lessons.support.errors import check_number, check_positive_int, check_seed, check_top_k
from moe_lessons.training import bar


@dataclass(frozen=True)
class Speedups:
    """The least times of a step, in seconds, at each of B batch sizes: `moe` (B,) of the mixture; of the dense model
    whose FFN is as wide as the mixture's active part, `ffn` (B,) its FFN and `rest` (B,) all else."""

    moe: np.ndarray
    ffn: np.ndarray
    rest: np.ndarray

    def at(self, widths: np.ndarray) -> np.ndarray:
        """Say how many times as fast as dense models of these widths (W,) the mixture is, (B, W)."""
        return (self.rest[:, None] + np.multiply.outer(self.ffn, widths)) / self.moe[:, None]

    def widths(self, speedup: float) -> np.ndarray:
        """Find the width (B,) of the dense model over which the mixture has this speedup: a contour of the map."""
        return (speedup * self.moe - self.rest) / self.ffn


def speedups(sizes: ModelSizes, machine: Machine, dtype: str, batches: np.ndarray, context: int = 0) -> Speedups:
    """Compute the speedup of a mixture over dense models by the roofline, for `batches` (B,) of texts in decoding.

    A step takes Σ max(bytes / bandwidth, FLOPs / peak) over the parts of the model: each is read and computed at the
    same time, one after another. With w bytes for a weight, c for a number of the cache (`WEIGHT_BYTES`,
    `CACHE_BYTES`), B texts, context S, L layers, D, V, H heads, G key/value heads of h numbers, E experts of three
    matrices D·F, K of them for a token, bytes and FLOPs are

        attention, head      w·(2·L·D·h·(H + G) + V·D + (2·L + 1)·D)      2·B·(2·L·D·h·(H + G) + V·D)
        KV cache             c·B·2·L·G·h·S                                4·B·L·H·h·S
        router               w·L·D·E                                      2·B·L·D·E
        experts              w·3·L·D·F·E·(1 − (1 − K/E)^B)                2·B·3·L·D·F·K
        FFN                  w·3·L·D·F·K·x                                2·B·3·L·D·F·K·x

    Both models have the first two; the mixture router and experts; the dense model an FFN, x times as wide as the K
    active experts. (Shared experts are an FFN of the mixture and count as active.) The speedup is the time of the dense
    model over that of the mixture. Left out: the activations, the choice of experts, and what small products cost."""
    dense = part_seconds(part_costs(sizes.dense(), dtype, batches, context), machine)
    ffn = dense.pop(FFN)
    return Speedups(step_seconds(sizes, machine, dtype, batches, context), ffn, sum(dense.values()))


def edges(
    num_experts: int, top_k: int, width: float, ridge: float, weight_bytes: float = 2.0, shared_experts: float = 0.0
) -> tuple[float, float] | None:
    """Derive the two batch sizes between which an MoE decodes slower than a dense model: the lower and the upper edge.

    width: w, of the dense FFN, in multiples of the active width of the MoE: of its K and its shared experts. ridge: of
    the machine, in FLOPs per byte. Of experts and FFN alone: attention, KV cache and router are left out. Returns None
    where the MoE is slower at no batch size: where the dense FFN is compute-bound before the lower edge, and over the
    parameter-matched baseline (w = E/K).

    Lower edge: a step loads as many experts as the dense FFN is wide, E·(1 - (1 - K/E)^B) = w·K: about B = w where
    K is far below E. Upper edge: computing the dense FFN takes as long as loading all experts, w·K·B/B* = E, where
    B* = ridge · weight_bytes / 2 is the batch size from which on a dense FFN is compute-bound. (A share (1 - K/E)^B of
    the experts is not loaded there; the true edge is lower by this share.)

    >>> [round(batch, 1) for batch in edges(8, 2, 2, 206)]
    [2.4, 412.0]
    """
    check_top_k(top_k, check_positive_int("num_experts", num_experts))
    check_number("width", width, minimum=1)
    check_number("ridge", ridge, above=True)
    check_number("weight_bytes", weight_bytes, above=True)
    check_number("shared_experts", shared_experts, minimum=0)
    as_wide = width * (top_k + shared_experts)  # of how many experts
    loaded = (as_wide - shared_experts) / num_experts
    if loaded >= 1:
        return None
    lower = math.log1p(-loaded) / math.log1p(-top_k / num_experts)
    compute_bound = ridge * weight_bytes / 2  # B*
    upper = compute_bound * (num_experts + shared_experts) / as_wide
    return (lower, upper) if lower < compute_bound else None


def edges_of(sizes: ModelSizes, width: float, machine: Machine, dtype: str) -> tuple[float, float] | None:
    """Derive the `edges` of a model with weights of this type over a dense model of this width, on a machine."""
    group = sizes.groups[0]
    shared = sizes.shared / (group.layers * group.expert)
    return edges(group.num_experts, group.top_k, width, machine.ridge, WEIGHT_BYTES[dtype], shared)


def crossings(batches: Sequence[int], speedups: Sequence[float]) -> tuple[float, float]:
    """Find the two edges in measured speedups at rising batch sizes: where they first fall below 1, and from where on
    they stay above it. Between two batch sizes the speedup is joined by a straight line, both in logarithms; NaN: it
    does not cross 1 there.

    >>> [round(batch, 3) for batch in crossings([1, 4, 16, 64], [2, 0.5, 0.5, 2])]
    [2.0, 32.0]
    """
    log_batch, log_speedup = (np.log(np.asarray(values, float)) for values in (batches, speedups))
    slower = np.flatnonzero(log_speedup < 0)
    if not len(slower):
        return math.nan, math.nan

    def cross(i: int) -> float:
        """Find the crossing between the batch sizes number i and i + 1."""
        if not 0 <= i < len(log_batch) - 1:
            return math.nan
        part = log_speedup[i] / (log_speedup[i] - log_speedup[i + 1])
        return float(np.exp(log_batch[i] + part * (log_batch[i + 1] - log_batch[i])))

    return cross(slower[0] - 1), cross(slower[-1])


def measure_work(
    models: Mapping[str, LanguageModel], prompt: int = 512, batch=(4, 64), *, repeats=3, seed=0
) -> pd.DataFrame:
    """Measure what processes many tokens at once: the prefill of a prompt, and forward and backward of a training step
    on a `batch` of (sequences, tokens of each), in float32 on one thread; the models take turns.

    Returns a row for each model, with the median milliseconds of 'prefill' and 'training'."""
    check_models(models, [batch[0]])
    check_positive_int("prompt", prompt)
    place, generator = device_of(models), torch.Generator().manual_seed(check_seed(seed))
    vocab_size = min(model.config.vocab_size for model in models.values())
    read, learn = (torch.randint(vocab_size, size, generator=generator).to(place) for size in ((1, prompt), batch))
    with torch_threads(1), evaluating(*models.values()), watching_others():
        with torch.inference_mode():
            prefill = take_turns([partial(model, read) for model in models.values()], repeats, place)
        steps = [partial(_forward_and_backward, model, learn) for model in models.values()]
        training = take_turns(steps, repeats, place)
    for model in models.values():
        model.zero_grad()
    return pd.DataFrame({"prefill": map(median, prefill), "training": map(median, training)}, index=[*models])


def _forward_and_backward(model: LanguageModel, ids: torch.Tensor) -> None:
    logits, _ = model(ids)
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()


@dataclass(frozen=True)
class Measured:
    """What was measured of a mixture beside dense models, on the `machine` of this session.

    frame: a row for each batch size and width (in multiples of the active width; 0: the mixture): `ms` of a step, the
    median, `least_ms` by the roofline, and the `speedup` of the mixture, measured, and by the `roofline`.
    is_busy: whether other programs took much of the machine meanwhile."""

    machine: Machine
    frame: pd.DataFrame
    is_busy: bool

    @property
    def points(self) -> tuple[tuple[float, int, float], ...]:
        """Give (width, batch, speedup) of each dense model."""
        rows = self.frame[self.frame.width > 0]
        return tuple((float(w), int(b), round(float(s), 3)) for w, b, s in zip(rows.width, rows.batch, rows.speedup))


def measure_speedups(
    models: Mapping[str, LanguageModel], batches: Sequence[int] = (1, 4, 16, 64, 256), *, repeats=3, seed=0
) -> Measured:  # fmt: skip
    """Measure decoding steps of a mixture, the first of the models, and of dense ones that differ from it in their FFN
    alone, in float32 on one thread. In each round all take turns; at batch size 1 each decodes four tokens in a row."""
    check_models(models, batches)
    shapes = [shape_of(model) for model in models.values()]
    active = shapes[0].top_k * shapes[0].d_ff
    widths = [0 if shape.num_experts > 1 else shape.d_ff / active for shape in shapes]
    plain = {"num_experts": 1, "top_k": 1, "d_ff": 1}
    if widths[0] or not all(widths[1:]) or len({replace(shape, **plain) for shape in shapes}) > 1:
        raise ValueError("models must be a mixture in all layers and then dense models, alike in all but their FFN")
    place, rows = device_of(models), []
    generator = torch.Generator().manual_seed(check_seed(seed))
    with torch_threads(1), evaluating(*models.values()), watching_others() as others, torch.inference_mode():
        machine = measure_machine(place)
        for batch in bar(batches, "batch sizes"):
            tokens = max(1, IN_A_ROW // batch)
            ids = torch.randint(shapes[0].vocab_size, (batch, PROMPT + tokens), generator=generator)
            steps = [step for model in models.values() for step in decoding_steps(model, ids)]
            own = np.reshape(take_turns(steps, repeats, place), (len(models), tokens * repeats))
            rows += [(batch, w, median(t), Ratio.of(t, own[0]).median) for w, t in zip(widths, own, strict=True)]
    frame = pd.DataFrame(rows, columns=["batch", "width", "ms", "speedup"])
    sizes = sizes_of(shapes[0])
    of = {width: sizes.dense(width) if width else sizes for width in widths}
    least = [1000 * step_seconds(of[w], machine, "float32", int(b), PROMPT) for b, w in zip(frame.batch, frame.width)]
    frame["least_ms"] = np.array(least, float)
    frame["roofline"] = frame.least_ms / frame.least_ms.where(frame.width == 0).ffill()
    return Measured(machine, frame, others.are_busy)


def shape_of(model: LanguageModel) -> TransformerShape:
    """Count a `LanguageModel` as a `TransformerShape`. ValueError where only some of its layers have experts."""
    c, mixtures = model.config, sum(map(is_moe, model.modules()))
    if mixtures not in (0, c.num_layers):
        raise ValueError(f"a model must have experts in all {c.num_layers} layers or in none, got {mixtures}")
    experts = (c.num_experts, c.top_k) if mixtures else (1, 1)
    heads = c.num_heads, c.num_kv_heads or c.num_heads, c.head_dim
    ffns = (part.d_ff for part in model.modules() if isinstance(part, FeedForward))  # a baseline has another than c
    width = c.d_ff if mixtures else next(ffns, c.d_ff)
    return TransformerShape(c.vocab_size, c.d_model, c.num_layers, *heads, width, *experts, 0, c.tied_embedding)
