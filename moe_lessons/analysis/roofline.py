"""The cost of a whole model on a machine: its memory, and the bytes, FLOPs and least time of a decoding step."""

import functools
import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from moe_lessons.analysis.counting import ParameterCount, TransformerShape
from moe_lessons.analysis.inference import Machine, union_law
from moe_lessons.support.data import data_path
from moe_lessons.support.errors import check_positive_int, check_top_k

WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "fp8": 1.0, "4-bit": 0.5}  # the numbers alone, without scales
CACHE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "fp8": 1.0, "4-bit": 2.0}  # beside weights of this type
MOST_BATCH = 2**24
ATTENTION, ROUTER, FFN, EXPERTS, CACHE = "attention, head", "router", "FFN", "experts", "KV cache"  # parts of a step


@dataclass(frozen=True)
class ExpertGroup:
    """The parameters of the routed experts of a layer, of which there are `layers` alike."""

    num_experts: int
    top_k: int
    size: int  # of all experts of one layer
    expert: int  # of one expert
    matrix: int  # of one expert without its biases
    is_met: bool = True  # whether a token of text meets them
    layers: int = 1

    def idle(self, touched: float) -> float:
        """Count the parameters of the experts that are not among the `touched`, in all layers."""
        return self.layers * (self.size - touched * self.expert)


@dataclass(frozen=True)
class Cached:
    """The cost of a layer's attention for each token of the context; `layers` are alike."""

    numbers: int  # that it keeps
    flops: int  # of a new token
    window: int | None = None  # the most tokens that it keeps, or None for all
    layers: int = 1

    def tokens(self, context: int) -> int:
        """Count the tokens that it keeps of a text of `context` tokens, of all layers together."""
        return self.layers * (context if self.window is None else min(context, self.window))


@dataclass(frozen=True)
class ModelSizes:
    """The counts from which all costs of a model follow; numbers, not bytes."""

    total: int
    groups: tuple[ExpertGroup, ...]  # layers with experts
    matrices: int  # active weights in matrix products: two FLOPs for each token
    looked_up: int  # of an embedding that no product uses
    router: int = 0  # of all layers
    shared: int = 0  # of all layers
    outside: int = 0  # parts that a token of text does not meet, such as an image encoder
    cached: tuple[Cached, ...] | None = ()  # layers with a cache; None where unknown

    @property
    def active(self) -> int:
        """Count all but the routed experts that a token does not visit."""
        return round(self.total - sum(group.idle(group.top_k) for group in self.groups))

    def parameters(self) -> dict[str, ParameterCount]:
        """Count by part the parameters, and those that a token uses."""
        routed = sum(group.layers * group.size for group in self.groups)
        counts = {"embedding": self.looked_up, "router": self.router, "shared experts": self.shared}
        counts["attention, head, dense FFNs"] = self.total - routed - sum(counts.values())
        experts = ParameterCount(routed, routed - self.total + self.active)
        return {"experts": experts} | {name: ParameterCount(count, count) for name, count in counts.items()}

    @property
    def ffn(self) -> int:
        """Count the parameters of the experts, routed and shared, that work for a token."""
        return self.shared + sum(group.layers * group.top_k * group.expert for group in self.groups)

    def flops(self, context: int = 0) -> int:
        """Count the FLOPs of one token's forward pass; its attention looks back on `context` tokens."""
        return 2 * self.matrices + sum(layer.flops * layer.tokens(context) for layer in self.cached or ())

    def cache(self, context: int) -> int:
        """Count the numbers in the KV cache of one text of `context` tokens."""
        return sum(layer.numbers * layer.tokens(context) for layer in self.cached or ())

    def parts(self, batch: Any = 1) -> dict[str, tuple[Any, Any]]:
        """Count by part the weights that a step of decoding reads for B = `batch` texts (or an array of batch sizes),
        and its FLOPs: of all experts by the `union_law`, of what every token uses each weight once, for 2·B FLOPs."""
        met = [group for group in self.groups if group.is_met]
        experts = sum(g.layers * g.expert * union_law(g.num_experts, g.top_k, batch) for g in met)
        used = sum(g.layers * g.top_k * g.matrix for g in met)
        routed = sum(g.layers * g.size for g in self.groups)
        left = self.total - self.looked_up - self.outside - routed - self.router - self.shared
        return {
            ATTENTION: (left, 2 * batch * (self.matrices - used - self.router - self.shared)),
            ROUTER: (self.router, 2 * batch * self.router),
            FFN: (self.shared, 2 * batch * self.shared),
            EXPERTS: (experts, 2 * batch * used),
        }

    def read(self, batch: int = 1) -> float:
        """Count the weights that a step of decoding reads for `batch` texts."""
        return sum(weights for weights, _ in self.parts(batch).values())

    def with_experts(self, num_experts: int, top_k: int) -> "ModelSizes":
        """Make the same model with another number of experts of the same size, in all layers that have some."""
        check_top_k(top_k, check_positive_int("num_experts", num_experts))
        router = round(self.router * num_experts / self.groups[0].num_experts)
        sizes = {"num_experts": num_experts, "top_k": top_k}
        groups = tuple(replace(group, **sizes, size=num_experts * group.expert) for group in self.groups)
        more, used = router - self.router, router - self.router
        for old, new in zip(self.groups, groups):
            more += old.layers * (new.size - old.size)
            used += old.layers * (top_k - old.top_k) * old.matrix
        total, matrices = self.total + more, self.matrices + used
        return replace(self, total=total, matrices=matrices, groups=groups, router=router)

    def dense(self, width: float = 1.0) -> "ModelSizes":
        """Put a dense FFN in the place of each mixture, `width` times as wide as its active part."""
        more = round((width - 1) * self.ffn)
        total, matrices = self.active - self.router + more, self.matrices - self.router + more
        return replace(self, total=total, matrices=matrices, groups=(), router=0, shared=self.ffn + more)

    @property
    def total_width(self) -> float:
        """Say how many times as wide as the active part all experts together are."""
        return (self.shared + sum(group.layers * group.size for group in self.groups)) / self.ffn if self.ffn else 1.0


def sizes_of(shape: TransformerShape) -> ModelSizes:
    parts, layers = {name: count.total for name, count in shape.parameters().items()}, shape.num_layers
    expert = parts["experts"] // layers // shape.num_experts
    size = shape.num_experts * expert
    groups = (ExpertGroup(shape.num_experts, shape.top_k, size, expert, expert, True, layers),)
    is_mixture = shape.num_experts > 1
    numbers, scores = 2 * shape.num_kv_heads * shape.head_dim, 4 * shape.num_heads * shape.head_dim
    return ModelSizes(
        total=shape.count.total,
        groups=groups if is_mixture else (),
        matrices=shape.flops_per_token() // 2,
        looked_up=0 if shape.tied_embedding else parts["embedding"],
        router=parts["router"],
        shared=parts["shared experts"] + (0 if is_mixture else parts["experts"]),
        cached=(Cached(numbers, scores, None, layers),),
    )


def sizes_from(stored: dict[str, Any]) -> ModelSizes:
    parts = {"groups": ExpertGroup, "cached": Cached}
    made = {field.name: stored[field.name] for field in fields(ModelSizes)}
    return ModelSizes(**made | {name: tuple(part(**values) for values in made[name]) for name, part in parts.items()})


@functools.cache
def published_sizes() -> dict[str, ModelSizes]:
    """Read the sizes of published mixtures, by name, as data/make_published_models.py counted them."""
    stored = json.loads(data_path("published_sizes.json").read_text(encoding="utf-8"))
    return {name: sizes_from(sizes) for name, sizes in stored.items()}


@functools.cache
def machines() -> pd.DataFrame:
    """Read published figures of machines, by name; data/README.md has the columns."""
    return pd.read_csv(data_path("machines.csv"), index_col="name")


@functools.cache
def published_speeds() -> pd.DataFrame:
    """Read what others measured of mixtures beside dense models; data/README.md has the columns."""
    return pd.read_csv(data_path("published_speeds.csv"))


def machine_for(row: pd.Series, dtype: str) -> Machine:
    """Find the roof of a machine for weights of this type: in fp8 where its arithmetic has it, else in bfloat16."""
    fast = dtype == "fp8" and row.fp8_flops_per_second > 0
    return Machine(row.bytes_per_second, row.fp8_flops_per_second if fast else row.bf16_flops_per_second)


def part_costs(sizes: ModelSizes, dtype: str, batch: Any = 1, context: int = 0) -> dict[str, tuple[Any, Any]]:
    """Count the bytes and the FLOPs of each part of a step that writes one token of each of `batch` texts (or of an
    array of batch sizes): weights as `ModelSizes.parts`, and of each text the keys and values of `context` tokens."""
    costs = {name: (WEIGHT_BYTES[dtype] * weights, flops) for name, (weights, flops) in sizes.parts(batch).items()}
    scores = sizes.flops(context) - sizes.flops(0)
    return costs | {CACHE: (CACHE_BYTES[dtype] * sizes.cache(context) * batch, scores * batch)}


def part_seconds(costs: Mapping[str, tuple[Any, Any]], machine: Machine) -> dict[str, Any]:
    """Say the least time of each part: max(bytes / bandwidth, FLOPs / peak), the roofline. A part is memory-bound where
    the first is larger, else compute-bound."""
    bandwidth, peak = machine.bytes_per_second, machine.flops_per_second
    return {name: np.maximum(read / bandwidth, flops / peak) for name, (read, flops) in costs.items()}


def step_seconds(sizes: ModelSizes, machine: Machine, dtype: str, batch: Any = 1, context: int = 0) -> Any:
    """Say the least time of a step that writes one token of each of `batch` texts: the sum over its parts."""
    return sum(part_seconds(part_costs(sizes, dtype, batch, context), machine).values())


def on_machine(sizes: ModelSizes, row: pd.Series, dtype: str, context: int = 0, batch: int = 1) -> dict[str, Any]:
    """Say what a row of `machines` does with a model in weights of this type, and `batch` texts of `context` tokens:
    fits: whether weights and caches are no larger than its memory. texts: how many texts fit at most, with their caches
    beside the weights; None where that is not known. arithmetic_batch: the least at which arithmetic takes as long as
    reading, of short texts, without their caches; None where there is none."""
    machine = machine_for(row, dtype)

    def is_enough(batch: int) -> bool:
        return WEIGHT_BYTES[dtype] * sizes.read(batch) * machine.ridge <= batch * sizes.flops()

    least = bisect_left(range(MOST_BATCH), True, lo=1, key=is_enough)  # once it is enough, it stays so
    left, each = row.memory_bytes - WEIGHT_BYTES[dtype] * sizes.total, CACHE_BYTES[dtype] * sizes.cache(context)
    return {
        "fits": bool(batch * each <= left),
        "texts": max(int(left // each), 0) if each and left == left else None,  # NaN: a memory that is not known
        "tokens_per_second": batch / step_seconds(sizes, machine, dtype, batch, context),
        "arithmetic_batch": least if least < MOST_BATCH else None,
    }
