"""How evenly the work lies on the experts: in numbers, and in words."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd
import torch
from torch import Tensor

from moe_lessons.errors import check_number, check_top_k
from moe_lessons.nn import Routing, load_balancing_loss
from moe_lessons.training import DEAD_SHARE, dead_experts

ROUNDING = 1e-6  # shares come in float32: an expert that misses a limit by less than this part of it is at it


@dataclass(frozen=True)
class LoadStatistics:
    """How the assignments of one MoE layer lie on its E experts.

    max_over_mean: the load of the busiest expert over the mean load; 1 is even, E is all on one.
    entropy: of the load shares, over that of an even load; 1 is even, 0 is all on one. With K > 1 it stays at or
        above log K / log E, since the experts of a token differ. One expert alone is even: 1.
    coefficient_of_variation: standard deviation over mean; 0 is even, √(E - 1) is all on one.
    dead: how many experts fewer than `dead_share` of the tokens want.
    """

    max_over_mean: float
    entropy: float
    coefficient_of_variation: float
    dead: int


def load_statistics(
    load: Tensor | Sequence[float] | Routing, top_k: int = 1, dead_share: float = DEAD_SHARE
) -> LoadStatistics:
    """The statistics of a load: E counts or shares of the assignments, or a `Routing`, drops included.

    An expert is dead by its share of the tokens. A token makes `top_k` assignments, so that share is top_k times
    the share of the assignments. A `Routing` knows its tokens: `top_k` is not used then.

    No tokens at all count as even. Raises ValueError for a load that is empty, negative or not finite, and for
    a top_k over the number of experts.

    >>> load_statistics([10, 10, 20, 0])
    LoadStatistics(max_over_mean=2.0, entropy=0.75, coefficient_of_variation=0.7071067811865476, dead=1)
    """
    check_number("dead_share", dead_share)
    if isinstance(load, Routing):
        shares, dead = _shares(load.demand_per_expert), dead_experts(load, dead_share)
    else:
        shares = _shares(load)
        dead = int((shares * check_top_k(top_k, len(shares)) < dead_share * (1 - ROUNDING)).sum())
    even = torch.full_like(shares, 1 / len(shares))
    entropy = torch.special.entr(shares).sum() / torch.special.entr(even).sum()  # entr(p) = -p·log p
    return LoadStatistics(
        max_over_mean=(shares.max() / even[0]).item(),
        entropy=entropy.item() if len(shares) > 1 else 1.0,  # for one expert it would be 0 / 0
        coefficient_of_variation=(shares.std(correction=0) / even[0]).item(),
        dead=dead,
    )


def balance_by_layer(routings: Sequence[Routing]) -> pd.DataFrame:
    """The balance meter: a row for each MoE layer, in order, with its `LoadStatistics`, its load-balancing loss, and
    the share of its assignments that was dropped.

    Layers are never pooled. Where every layer has collapsed, each onto another expert, the sum of their loads is even,
    and so is Hugging Face's auxiliary loss, which averages over all layers' tokens before it multiplies.

    >>> from moe_lessons.nn import TopKRouter, seeded
    >>> with seeded(0):
    ...     routings = [TopKRouter(d_model=4, num_experts=8, top_k=2)(torch.randn(64, 4)) for _ in range(3)]
    >>> balance_by_layer(routings).index.tolist()
    ['layer 0', 'layer 1', 'layer 2']
    """
    if isinstance(routings, Routing):
        raise ValueError("routings must be a list with one Routing for each MoE layer, got a Routing")
    rows = [
        asdict(load_statistics(routing))
        | {"load_balancing_loss": load_balancing_loss(routing).item(), "dropped_share": routing.dropped_share}
        for routing in routings
    ]
    return pd.DataFrame(rows, index=[f"layer {i}" for i in range(len(rows))])


def describe_load(load: Tensor | Sequence[float], top_k: int = 1, dropped_share: float = 0.0) -> str:
    """What a load shows, in one to three plain sentences.

    load: E counts or shares of the assignments that the router wanted, as `Record.load` has for each layer.
    dropped_share: the share of them that was dropped, 0 to 1.

    >>> describe_load([0.2, 0.2, 0.4, 0.2])
    'All 4 experts work; the busiest, E2, has 1.6 times the even share.'
    """
    check_number("dropped_share", dropped_share)
    sentences = _who_works(load, top_k, verb="asks for" if dropped_share else "goes to")
    if dropped_share:
        percent = f"{min(100 * dropped_share, 99):.0f}" if dropped_share >= 0.01 else "Under 1"
        full = "the expert is" if len(load) == 1 else "their experts are"
        sentences += f" {percent} % of the assignments are dropped: {full} full."
    return sentences


def _who_works(load: Tensor | Sequence[float], top_k: int, verb: str) -> str:
    statistics, shares = load_statistics(load, top_k), _shares(load)
    num_experts, dead = len(shares), statistics.dead
    if num_experts == 1:
        return f"One expert: every token {verb} it."
    every, superlative = ("both", "busier") if num_experts == 2 else (f"all {num_experts}", "busiest")
    if top_k == num_experts:
        return f"Every token {verb} {every} experts: this mixture is dense."
    busiest = f"{superlative}, E{int(shares.argmax())}, has {statistics.max_over_mean:.1f} times the even share."
    if dead > 0:
        is_, it_receives = ("is", "it receives") if dead == 1 else ("are", "they receive")
        under = f"under {100 * DEAD_SHARE:.0f} % of the tokens"
        return f"{dead} of {num_experts} experts {is_} dead: {it_receives} {under}. The {busiest}"
    shared = "each has about the even share." if statistics.max_over_mean < 1.05 else f"the {busiest}"
    return f"{every.capitalize()} experts work; {shared}"


def _shares(load: Tensor | Sequence[float]) -> Tensor:
    """(E,) in float64, summing to 1; even where there is nothing to share."""
    load = load.detach().cpu() if isinstance(load, Tensor) else load
    counts = torch.as_tensor(load, dtype=torch.float64)
    if counts.ndim != 1 or len(counts) == 0 or not (torch.isfinite(counts) & (counts >= 0)).all():
        raise ValueError(f"load must be one finite number of at least 0 for each expert, got {counts.tolist()}")
    return counts / counts.sum() if counts.any() else torch.full_like(counts, 1 / len(counts))
