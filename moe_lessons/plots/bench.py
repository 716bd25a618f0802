"""Pictures of what the benchmark measures: ratios of times, with their quartiles."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_lessons.analysis.timing import Ratio
from moe_lessons.plots.sweeps import banded
from moe_lessons.plots.theme import PALETTE, axes_for, log_axis, name_over

COLORS = tuple(color for color in PALETTE if color != "#F0E442")  # seven: yellow is hard to see as a thin bar
MARKERS = "osD^vPX*"  # eight, so that no two of 56 ways look alike


def time_ratios(
    rows: Mapping[str, Mapping[str, Ratio]],
    ways: Sequence[str] = (),
    title: str = "Time over that of the dense FFN",
    ax: Axes | None = None,
    theme: str = "light",
) -> Axes:
    """A point for the median and a bar from quartile to quartile, for each way in each row; logarithmic.

    rows: for the name of each row the ratios, by way. ways: the order of colours, for pictures side by side.
    """
    ways = list(ways) or list(dict.fromkeys(way for ratios in rows.values() for way in ratios))
    ax, ink = axes_for(ax, theme, 9, 1 + 0.18 * len(rows) * len(ways), title, "times the dense FFN")
    offsets = np.linspace(-0.36, 0.36, len(ways)) if len(ways) > 1 else [0]  # within the band of a row
    for i, (way, offset) in enumerate(zip(ways, offsets)):
        places = [row + offset for row, ratios in enumerate(rows.values()) if way in ratios]
        ratios, color = [ratios[way] for ratios in rows.values() if way in ratios], COLORS[i % len(COLORS)]
        if ratios:
            ax.hlines(places, [r.low for r in ratios], [r.high for r in ratios], color=color, lw=2)
            ax.plot([r.median for r in ratios], places, MARKERS[i % len(MARKERS)], color=color, ms=5, label=way)
    ax.axvline(1, ls="--", lw=1, color=ink.muted, zorder=0.5)
    for row in range(1, len(rows)):
        ax.axhline(row - 0.5, lw=0.5, color=ink.grid, zorder=0.4)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    log_axis(ax, "x", say="{:g}".format)
    ax.grid(axis="x", color=ink.grid, lw=0.5)
    name_over(ax, ink)
    return ax


def cost_by_experts(num_experts: Sequence[int], lines: Mapping[str, Sequence[Ratio]], ax=None, theme="light") -> Axes:
    """What more experts cost where each token still has K of them: a line for each pass, quartiles as a band.

    lines: for each pass the ratio to the time with the fewest experts, one for each of `num_experts`.
    """
    title = f"More experts, K unchanged: time over that of E = {num_experts[0]}"
    ax, ink = axes_for(ax, theme, 6.4, 3.6, title, "number of experts E", f"times E = {num_experts[0]}")
    for i, (name, ratios) in enumerate(lines.items()):
        curve = pd.DataFrame({"mean": [r.median for r in ratios], "low": [r.low for r in ratios]}, num_experts)
        banded(ax, curve.assign(high=[r.high for r in ratios]), (ink.lines[(0, 3)[i % 2]], "-", "os"[i % 2]), name)
    ax.set_ylim(0, None)
    log_axis(ax, "x", list(num_experts), "{:g}".format)
    name_over(ax, ink)
    return ax
