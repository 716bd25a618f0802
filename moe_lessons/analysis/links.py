"""Links between devices: published figures, and those of a link that was measured."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moe_lessons.support.data import data_path
from moe_lessons.support.errors import check_choice


@dataclass(frozen=True)
class Link:
    """Says what one device sends: seconds = latency of a message + bytes / bytes_per_second.

    >>> Link(50e9, 1e-5).seconds(5e6)
    0.00011
    """

    bytes_per_second: float
    latency: float = 0.0

    def seconds(self, sent: float, messages: float = 1) -> float:
        """Say how long so many bytes take in so many messages; nothing takes no time."""
        return self.latency * messages + sent / self.bytes_per_second if sent else 0.0


def fit_link(sent: Sequence[float], seconds: Sequence[float]) -> Link:
    """Find the link that explains measured exchanges of `sent` bytes each: least squares; no latency is below 0.

    >>> fit_link([1e6, 2e6, 4e6], [0.003, 0.004, 0.006])
    Link(bytes_per_second=1000000000.0, latency=0.002)
    """
    x, y = np.asarray(sent, dtype=float), np.asarray(seconds, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or len(set(x)) < 2 or not (np.isfinite(x * y) & (x >= 0) & (y > 0)).all():
        raise ValueError("sent and seconds must be as many numbers, of two sizes at least, with seconds above 0")
    slope, latency = np.polyfit(x, y, 1)
    slope, latency = (x @ y / (x @ x), 0.0) if latency < 0 else (slope, latency)
    if slope <= 0:
        raise ValueError("seconds must grow with the bytes sent: measure larger exchanges, or an idle machine")
    return Link(float(f"{1 / slope:.6g}"), float(f"{latency:.6g}"))


@functools.cache
def interconnects() -> pd.DataFrame:
    """Read published figures of links between devices, by name; data/README.md has the columns."""
    return pd.read_csv(data_path("interconnects.csv"), index_col="name").fillna({"latency": 0.0})


def link_of(name: str | Link, group: int = 2) -> Link:
    """Find a link of `interconnects` as an all-to-all among `group` devices has it. In a torus of d dimensions each
    byte takes d · side / 4 hops on average, and every hop uses the links (GShard, arXiv:2006.16668, section 5.3)."""
    if isinstance(name, Link):
        return name
    row = interconnects().loc[check_choice("link", name, interconnects().index)]
    hops = max(1.0, row.torus * group ** (1 / row.torus) / 4) if row.torus else 1.0
    return Link(row.bytes_per_second / hops, row.latency)
