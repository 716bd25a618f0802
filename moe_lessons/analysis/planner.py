"""A mixture on thousands of devices, on paper: memory, bytes, the time of a step; and beside it what was published.

What a dense model costs too (pipeline bubbles, summing the gradients, small kernels) is in one figure, `UTILISATION`,
the same for every system. On top comes what only a mixture has: the exchange of tokens, and the busiest device."""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from moe_lessons.analysis import roofline
from moe_lessons.analysis.counting import TransformerShape, published_models
from moe_lessons.analysis.inference import union_law
from moe_lessons.analysis.roofline import ModelSizes, machines, published_sizes, sizes_from, sizes_of
from moe_lessons.support.data import data_path
from moe_lessons.support.errors import check_choice, check_number, check_positive_int, check_whole, is_number

# Share of the bfloat16 peak that a large dense model reaches in training, all its own waiting included: the middle of
# the 38 to 43 % of Llama 3 405B on 8,192 and 16,384 H100 (arXiv:2407.21783, table 4). Set before the comparison.
UTILISATION = 0.40
# Bytes of a weight in training, mixed precision with Adam: the weight in bfloat16, its gradient in float32; a float32
# copy and two moments, which the replicas of the weight share (ZeRO stage 1: arXiv:1910.02054, sections 3 and 5)
TRAINED_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 2, 4, 12


@dataclass(frozen=True)
class Link:
    """Says what one device sends: seconds = latency of a message + bytes / bytes_per_second."""

    bytes_per_second: float
    latency: float = 0.0

    def seconds(self, sent: float, messages: float = 1) -> float:
        return self.latency * messages + sent / self.bytes_per_second if sent else 0.0


def fit_link(sent: Sequence[float], seconds: Sequence[float]) -> Link:
    """Find the link that explains measured exchanges of `sent` bytes each: least squares; no latency is below 0."""
    x, y = np.asarray(sent, dtype=float), np.asarray(seconds, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or len(set(x)) < 2 or not (np.isfinite(x * y) & (x >= 0) & (y > 0)).all():
        raise ValueError("sent and seconds must be as many numbers, of two sizes at least, with seconds above 0")
    slope, latency = np.polyfit(x, y, 1)
    slope, latency = (x @ y / (x @ x), 0.0) if latency < 0 else (slope, latency)
    if slope <= 0:
        raise ValueError("seconds must grow with the bytes sent: measure larger exchanges, or an idle machine")
    return Link(float(f"{1 / slope:.6g}"), float(f"{latency:.6g}"))


@functools.cache
def link_of(name: str | Link, group: int) -> Link:
    """Find a link of data/interconnects.csv as an all-to-all among `group` devices has it: in a torus of d dimensions
    each byte takes d · side / 4 hops on average (GShard, arXiv:2006.16668, section 5.3)."""
    if isinstance(name, Link):
        return name
    published = pd.read_csv(data_path("interconnects.csv"), index_col="name").fillna({"latency": 0.0})
    row = published.loc[check_choice("link", name, published.index)]
    hops = max(1.0, row.torus * group ** (1 / row.torus) / 4) if row.torus else 1.0
    return Link(row.bytes_per_second / hops, row.latency)


def copies_sent(top_k: int, group: int, node: int = 8, node_limit: int | None = None) -> tuple[float, float]:
    """Count how many times a layer sends a token one way: to devices of the same node, and to other nodes.

    The experts lie on `group` devices, all as likely. Each of the K copies goes by itself or, with a node_limit, once
    to each node it visits, at most so many (DeepSeek-V3, arXiv:2412.19437, section 3.2.2)."""
    node = min(node, group)
    if node_limit is None:
        return top_k * (node - 1) / group, top_k * (group - node) / group
    nodes = -(-group // node)
    visited = union_law(min(check_positive_int("node_limit", node_limit), nodes), 1, top_k)
    return top_k * (node - 1) / node, visited * (nodes - 1) / nodes


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Says how a model lies on its devices. ValueError for what does not fit together."""

    machine: str = "NVIDIA H100 SXM"  # of `machines`
    devices: int = 64
    expert_parallel: int = 8  # so many devices share the experts (N)
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    node: int = 8  # so many devices are joined by `inside`, all others by `between`
    inside: str | Link = "NVLink 4 (H100)"
    between: str | Link = "InfiniBand NDR (400 Gb/s)"
    tokens_per_device: int = 4096
    tokens_at_once: int | None = None  # of one exchange (a microbatch); None: all
    context: int = 4096
    phase: str = "training"  # or reading prompts, 'prefill', or 'decoding' a token in each of tokens_per_device texts
    weights: str = "bfloat16"  # of `WEIGHT_BYTES`, where nothing is trained
    dispatch_bytes: float = 2  # of each number on its way there
    combine_bytes: float = 2  # and back
    node_limit: int | None = None  # see `copies_sent`
    imbalance: float = 1.0  # rows of the busiest device over the mean; the others wait for it
    capacity_factor: float | None = None  # instead: every expert works for so many times its even share, empty or not
    overlap: float = 0.0  # share of the exchange that passes beside the arithmetic

    def __post_init__(self):
        for name in ("devices", "node", "tokens_per_device", "expert_parallel", "tensor_parallel", "pipeline_parallel"):
            check_positive_int(name, getattr(self, name))
        for name in ("expert_parallel", "tensor_parallel"):
            size = getattr(self, name) * self.pipeline_parallel
            if self.devices % size:
                raise ValueError(f"{name} × pipeline_parallel ({size}) must divide devices ({self.devices})")
        check_number("imbalance", self.imbalance, 1)
        if self.capacity_factor is not None:
            check_number("capacity_factor", self.capacity_factor, above=True)
        if not is_number(self.overlap, 0, 1):
            raise ValueError(f"overlap must be a share between 0 and 1, got {self.overlap!r}")
        check_choice("machine", self.machine, machines().index)
        check_choice("phase", self.phase, ("training", "prefill", "decoding"))
        check_choice("weights", self.weights, roofline.WEIGHT_BYTES)


@dataclass(frozen=True)
class Plan:
    """Says what one device holds (bytes), sends (bytes in a step) and takes (seconds of a step). inside, between: the
    exchange with its node and with others; hidden: its seconds beside arithmetic. pace: what `compute` waits for."""

    devices: int
    tokens: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    cache: float
    bytes_inside: float
    bytes_between: float
    compute: float
    inside: float
    between: float
    hidden: float
    flops: float
    pace: str

    @property
    def memory(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.cache

    @property
    def exchange(self) -> float:
        """Seconds of the exchange: both kinds of links work at the same time."""
        return max(self.inside, self.between)

    @property
    def seconds(self) -> float:
        return self.compute + self.exchange - self.hidden

    @property
    def tokens_per_second(self) -> float:
        return self.tokens * self.devices / self.seconds

    @property
    def limit(self) -> str:
        """Name what takes longest: 'arithmetic', 'memory', 'links inside nodes' or 'links between nodes'."""
        links = f"links {'between' if self.between > self.inside else 'inside'} nodes"
        return links if self.exchange > self.compute else self.pace


def plan(model: str | TransformerShape | tuple[ModelSizes, int], **layout: Any) -> Plan:
    """Plan a step of a model (of `published_sizes`, a shape, or sizes and D) on a `Layout`, given by its fields.

    >>> made = plan("DeepSeek-V3", devices=2048, expert_parallel=64, pipeline_parallel=16, node_limit=4)
    >>> made.limit, round(made.memory / 1e9)
    ('arithmetic', 150)
    """
    lay = Layout(**layout)
    if isinstance(model, TransformerShape):
        sizes, d_model = sizes_of(model), model.d_model
    elif isinstance(model, tuple):
        sizes, d_model = model
    else:
        sizes = published_sizes()[check_choice("model", model, published_sizes())]
        d_model = int(published_models().set_index("name").d_model[model])
    T, N, row = lay.tokens_per_device, lay.expert_parallel, machines().loc[lay.machine]
    most = min((group.num_experts for group in sizes.groups), default=1)
    check_whole("expert_parallel", N, 1, most, f"between 1 and the number of experts ({most})")
    at_once = T if lay.tokens_at_once is None else min(T, check_positive_int("tokens_at_once", lay.tokens_at_once))
    is_trained, is_decoded = lay.phase == "training", lay.phase == "decoding"
    busy = lay.imbalance if lay.capacity_factor is None else lay.capacity_factor
    each = TRAINED_BYTES if is_trained else roofline.WEIGHT_BYTES[lay.weights]

    # Weights: N devices share the experts, and what the pipeline leaves to a device it holds of all else
    routed = sum(group.layers * group.size for group in sizes.groups)
    held = sum(group.layers * group.expert * -(-group.num_experts // N) for group in sizes.groups)
    experts = held / lay.pipeline_parallel
    dense = (sizes.total - routed) / lay.tensor_parallel / lay.pipeline_parallel
    shared = (experts * N + dense * lay.tensor_parallel) * lay.pipeline_parallel / lay.devices  # its part of replicas

    # The exchange: in training 4·L·T·K·(N−1)/N·D·itemsize bytes a step, there and back, forward and backward
    layers, passes = sum(group.layers for group in sizes.groups), 2 if is_trained else 1
    copies = np.zeros(2)
    for group in sizes.groups:
        copies += group.layers * np.array(copies_sent(group.top_k, N, lay.node, lay.node_limit))
    sent = busy * passes * T * d_model * (lay.dispatch_bytes + lay.combine_bytes) * copies
    messages = 2 * passes * layers * -(-T // at_once)
    seconds = [link_of(link, N).seconds(some, messages) for link, some in zip((lay.inside, lay.between), sent)]

    # Arithmetic: 2 FLOPs for a weight and token, 6 in training; a token looks back on half of its text on average
    flops = (3 if is_trained else 1) * T * sizes.flops(lay.context if is_decoded else lay.context // 2)
    of_experts = (6 if is_trained else 2) * T * sum(g.layers * g.top_k * g.matrix for g in sizes.groups)
    paces = [((flops + (busy - 1) * of_experts) / (UTILISATION * row.bf16_flops_per_second), "arithmetic")]
    cache = T * roofline.CACHE_BYTES[lay.weights] * sizes.cache(lay.context) if is_decoded else 0.0
    if is_decoded:  # reads the weights that the tokens of all N devices meet, and the cache
        met = sum(g.layers * g.expert * union_law(g.num_experts, g.top_k, T * N) / N for g in sizes.groups)
        paces += [((each * (dense - sizes.looked_up + met) + cache) / row.bytes_per_second, "memory")]
    compute, pace = max(paces)

    # Activations: the backward needs what each product and norm of a token was given. In a layer: two norms and what
    # they give, 4 D; queries, keys, values and their sum, half of the FLOPs of a score and its value; of each expert
    # input, output, and within it as many as it has weights, over D. With a pipeline of P a device has 1/P of the
    # layers and P microbatches on their way (arXiv:2104.04473, section 2.2): as many again
    kept = sum(layer.layers * (4 * d_model + layer.flops) for layer in sizes.cached or ()) + sizes.shared / d_model
    kept += sum(group.layers * group.top_k * (2 * d_model + group.expert / d_model) for group in sizes.groups)
    return Plan(
        devices=lay.devices,
        tokens=T,
        weights=each * (experts + dense),
        gradients=is_trained * GRADIENT_BYTES * (experts + dense),
        optimizer=is_trained * OPTIMIZER_BYTES * shared,
        activations=is_trained * 2 * at_once * kept / lay.tensor_parallel,
        cache=cache,
        bytes_inside=float(sent[0]),
        bytes_between=float(sent[1]),
        compute=float(compute),
        inside=float(seconds[0]),
        between=float(seconds[1]),
        hidden=float(min(lay.overlap * max(seconds), compute)),
        flops=float(flops),
        pace=pace,
    )


@functools.cache
def planned_models() -> dict[str, tuple[ModelSizes, int]]:
    """Read the sizes and D of models that `published_models` lacks, as data/make_planned_models.py counted them."""
    stored = json.loads(data_path("planned_models.json").read_text(encoding="utf-8"))
    return {name: (sizes_from(made), made.pop("d_model")) for name, made in stored.items()}


QUANTITIES = {
    "device hours": lambda made, amount: amount / made.tokens_per_second * made.devices / 3600,  # amount: tokens
    "seconds of a step": lambda made, _: made.seconds,
    "seconds of an exchange": lambda made, amount: made.exchange / amount,  # amount: layers
    "tokens a second and device": lambda made, _: made.tokens_per_second / made.devices,
    "FLOP/s of a device": lambda made, _: made.flops / made.seconds,
    "bytes of weights and gradients": lambda made, _: made.weights + made.gradients,
    "bytes of optimizer state": lambda made, _: made.optimizer,
    "bytes of activations": lambda made, _: made.activations,
}


def check_published() -> pd.DataFrame:
    """Set the planner beside what was published of mixtures on many devices; data/README.md has the columns. Nothing is
    fitted: one `UTILISATION`, and the links' published rates, for all."""
    table, planned = pd.read_csv(data_path("published_systems.csv")).fillna({"reason": ""}).convert_dtypes(), []
    for _, row in table.iterrows():
        given = {f.name: row[f.name] for f in fields(Layout) if f.name in row and pd.notna(row[f.name])}
        planned.append(QUANTITIES[row.quantity](plan(planned_models().get(row.model, row.model), **given), row.amount))
    table = table[["system", "quantity", "published", "reason", "seen", "source"]]
    table.insert(3, "planned", planned)
    table.insert(4, "error_percent", 100 * (table.planned / table.published.astype(float) - 1))
    return table
