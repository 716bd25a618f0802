"""The balance of the load over the experts, in numbers and in words."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from moe_lessons.nn import Routing, load_balancing_loss
from moe_lessons.support.errors import check_number, check_top_k, check_whole, shown
from moe_lessons.training.record import DEAD_SHARE, dead_experts, is_dead

WORDS: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))  # of `describe_load`
EVEN = 1.05  # busiest over mean: below it the load is about uniform


@dataclass(frozen=True)
class LoadStatistics:
    """The distribution of the assignments of one MoE layer over its E experts."""

    max_over_mean: float  # the load of the busiest expert over the mean load; 1 is even, E is all on one
    dead: int  # experts that fewer than 1 % of the tokens want (`DEAD_SHARE`)


def load_statistics(load: Tensor | Sequence[float] | Routing, top_k: int = 1) -> LoadStatistics:
    """Take the statistics of a load: E counts or shares of the assignments, or a `Routing`, drops included. Each token
    makes `top_k` assignments; a `Routing` knows that by itself. No tokens at all count as even.

    >>> load_statistics([10, 10, 20, 0])
    LoadStatistics(max_over_mean=2.0, dead=1)
    """
    if isinstance(load, Routing):
        shares, dead = _shares(load.demand_per_expert), dead_experts(load)
    else:
        shares = _shares(load)
        dead = int(is_dead(shares * check_top_k(top_k, len(shares))).sum())
    return LoadStatistics(shares.max().item() / (1 / len(shares)), dead)


def replicate(rows: Tensor, slots: int) -> Tensor:
    """Say how many replicas each expert gets, (E,), so that the busiest of `slots` has as few rows as it can, when the
    replicas of an expert share its rows (E,) evenly. Each spare slot goes to the expert with the most rows for each of
    its replicas, as in EPLB (https://github.com/deepseek-ai/EPLB).

    >>> replicate(torch.tensor([10.0, 40.0, 10.0]), 6)
    tensor([1, 4, 1])
    """
    check_whole("slots", slots, len(rows), 2**20, f"at least the number of experts ({len(rows)})")
    replicas = torch.ones(len(rows), dtype=torch.long)
    for _ in range(slots - len(rows)):
        replicas[(rows / replicas).argmax()] += 1
    return replicas


def balance_by_layer(routings: Sequence[Routing]) -> pd.DataFrame:
    """Make a row for each MoE layer, in order: its `LoadStatistics`, load-balancing loss, and share of drops."""
    table = pd.DataFrame([asdict(load_statistics(routing)) for routing in routings])
    table["load_balancing_loss"] = [load_balancing_loss(routing).item() for routing in routings]
    table["dropped_share"] = [routing.dropped_share for routing in routings]
    return table.set_axis([f"layer {i}" for i in range(len(table))])


def describe_load(load: Tensor | Sequence[float], top_k: int = 1, dropped_share: float = 0.0) -> tuple[str, str]:
    """Say what a load (of the assignments that were wanted) shows: the verdict, and the rest of one to three plain
    sentences."""
    dropped = 100 * check_number("dropped_share", dropped_share)
    statistics, shares = load_statistics(load, top_k), _shares(load)
    num_experts, dead = len(shares), statistics.dead
    if top_k == num_experts:
        kind = "dense" if num_experts > 1 else "one expert"
    elif dead:
        kind = "one dead" if dead == 1 else "dead"
    else:
        kind = "even" if statistics.max_over_mean < EVEN else "uneven"
    asks = WORDS["asks for" if dropped else "goes to"]
    said = {"experts": num_experts, "dead": dead, "goes_to": asks, "limit": f"{100 * DEAD_SHARE:.0f}"}
    said |= {"busiest": int(shares.argmax()), "times": f"{statistics.max_over_mean:.1f}"}
    verdict, rest = (text.format(**said) for text in WORDS[kind])
    return verdict, rest + (f" {WORDS['dropped'].format(dropped=f'{dropped:.1f}')}" if dropped else "")


def _shares(load: Tensor | Sequence[float]) -> Tensor:
    """Give the shares (E,) in float64; even where there is nothing to share."""
    load = load.detach().cpu() if isinstance(load, Tensor) else load
    counts = torch.as_tensor(load, dtype=torch.float64)
    if counts.ndim != 1 or len(counts) == 0 or not (torch.isfinite(counts) & (counts >= 0)).all():
        raise ValueError(f"load must be one finite number of at least 0 for each expert, got {shown(counts.tolist())}")
    return counts / counts.sum() if counts.any() else torch.full_like(counts, 1 / len(counts))
