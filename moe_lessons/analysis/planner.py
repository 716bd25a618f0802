"""Decoding with a model's experts on many devices, on paper: the memory of a device, and the seconds of a step."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from moe_lessons.analysis.counting import published_models
from moe_lessons.analysis.inference import union_law
from moe_lessons.analysis.roofline import CACHE_BYTES, WEIGHT_BYTES, machines, published_sizes
from moe_lessons.support.data import data_path
from moe_lessons.support.errors import check_choice, check_number, check_positive_int, check_whole

# Share of the bfloat16 peak that a large dense model reaches in training, all its own waiting included: the middle of
# the 38 to 43 % of Llama 3 405B on 8,192 and 16,384 H100 (arXiv:2407.21783, table 4)
UTILISATION = 0.40
NODE, COMBINE_BYTES = 8, 2  # devices of a node; of each number on its way back from the experts


def copies_sent(top_k: int, devices: int) -> tuple[float, float]:
    """Count how many of a token's K copies a layer sends one way: to devices of the same node, and to other nodes. The
    experts lie on all devices, all as likely."""
    node = min(NODE, devices)
    return top_k * (node - 1) / devices, top_k * (devices - node) / devices


@dataclass(frozen=True)
class Plan:
    """The bytes that one device holds while it decodes `tokens` texts, and the seconds of a step: of arithmetic, of
    reading weights and cache, which passes beside it, and of the exchange with other devices. overlap: the share of
    the exchange that passes beside both."""

    tokens: int
    weights: float
    cache: float
    arithmetic: float
    reading: float
    exchange: float
    overlap: float

    @property
    def memory(self) -> float:
        return self.weights + self.cache

    @property
    def seconds(self) -> float:
        compute = max(self.arithmetic, self.reading)
        return compute + self.exchange - min(self.overlap * self.exchange, compute)


def plan(
    model: str, *, machine="NVIDIA H100 SXM", devices=64, inside="NVLink 4 (H100)",
    between="InfiniBand NDR (400 Gb/s)", tokens_per_device=64, context=4096, weights="bfloat16", dispatch_bytes=2,
    overlap=0.0,
) -> Plan:  # fmt: skip
    """Plan a decoding step of a model of `published_models` on devices of `machines`, which share its experts.

    inside, between: links in a node of 8 and between nodes, of data/interconnects.csv. tokens_per_device: texts of
    which each gets a token. context: their length. weights: of `WEIGHT_BYTES`. dispatch_bytes: of a number on its way
    to an expert. overlap: see `Plan`.

    >>> round(plan("DeepSeek-V3", devices=144, weights="fp8").memory / 1e9)
    31
    """
    sizes = published_sizes()[check_choice("model", model, published_sizes())]
    most = min(group.num_experts for group in sizes.groups)
    N = check_whole("devices", devices, 1, most, f"between 1 and the number of experts ({most})")
    T = check_positive_int("tokens_per_device", tokens_per_device)
    check_choice("weights", weights, WEIGHT_BYTES)
    row = machines().loc[check_choice("machine", machine, machines().index)]

    # A device holds its part of the experts and all else, and reads what the tokens of all N devices meet
    routed = sum(g.layers * g.size for g in sizes.groups)
    experts = sum(g.layers * g.expert * -(-g.num_experts // N) for g in sizes.groups)
    met = sum(g.layers * g.expert * union_law(g.num_experts, g.top_k, T * N) / N for g in sizes.groups)
    dense, cache = sizes.total - routed, T * CACHE_BYTES[weights] * sizes.cache(context)
    read = WEIGHT_BYTES[weights] * (dense - sizes.looked_up + met) + cache

    return Plan(
        tokens=T,
        weights=WEIGHT_BYTES[weights] * (experts + dense),
        cache=cache,
        arithmetic=float(T * sizes.flops(context) / (UTILISATION * row.bf16_flops_per_second)),
        reading=float(read / row.bytes_per_second),
        exchange=exchange_seconds(model, N, T, (inside, between), dispatch_bytes),
        overlap=check_number("overlap", overlap, most=1),
    )


def exchange_seconds(model: str, devices: int, tokens: int, links: tuple[str, str], dispatch_bytes: int) -> float:
    """Say how long all layers send `tokens` of each device to their experts and back, inside nodes and between them at
    the same time."""
    table = pd.read_csv(data_path("interconnects.csv"), index_col="name").fillna({"latency": 0.0})
    rows = table.loc[[check_choice(*link, table.index) for link in zip(("inside", "between"), links)]]
    groups = published_sizes()[model].groups
    copies = sum(group.layers * np.array(copies_sent(group.top_k, devices)) for group in groups)  # (2,)
    d_model = published_models().set_index("name").d_model[model]
    sent = tokens * d_model * (dispatch_bytes + COMBINE_BYTES) * copies  # bytes
    messages = 2 * sum(group.layers for group in groups) * (sent > 0)
    return float(max(rows.latency.to_numpy() * messages + sent / rows.bytes_per_second.to_numpy()))
