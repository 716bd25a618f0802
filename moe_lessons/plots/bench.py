"""Pictures of what the benchmark measures: ratios of times, with their quartiles."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from moe_lessons.analysis.timing import Ratio
from moe_lessons.plots.theme import PALETTE, Theme, axes_for

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
    ax, ink = axes_for(ax, theme, 9, 1 + 0.18 * len(rows) * len(ways))
    ax.set_title(title, loc="left", fontsize=11, color=ink.foreground)
    offsets = np.linspace(-0.36, 0.36, len(ways)) if len(ways) > 1 else [0]  # within the band of a row
    for i, (way, offset) in enumerate(zip(ways, offsets)):
        places = [row + offset for row, ratios in enumerate(rows.values()) if way in ratios]
        ratios = [ratios[way] for ratios in rows.values() if way in ratios]
        if ratios:
            color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
            ax.hlines(places, [r.low for r in ratios], [r.high for r in ratios], color=color, lw=2)
            ax.plot([r.median for r in ratios], places, marker, color=color, ms=5, label=way)
    ax.axvline(1, ls="--", lw=1, color=ink.muted, zorder=0.5)
    for row in range(len(rows) - 1):
        ax.axhline(row + 0.5, lw=0.5, color=ink.grid, zorder=0.4)
    ax.set_xscale("log")
    left, right = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if right < 200 * left else (1,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel="times the dense FFN")
    _dress(ax, ink)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=9, frameon=False, labelcolor=ink.foreground)
    return ax


def cost_by_experts(
    num_experts: Sequence[int], lines: Mapping[str, Sequence[Ratio]], ax: Axes | None = None, theme: str = "light"
) -> Axes:
    """What more experts cost where each token still has K of them: a line for each pass, quartiles as a band.

    lines: for each pass the ratio to the time with the fewest experts, one for each of `num_experts`.
    """
    ax, ink = axes_for(ax, theme)
    title = f"More experts, K unchanged: time over that of E = {num_experts[0]}"
    ax.set_title(title, loc="left", fontsize=11, color=ink.foreground)
    for i, (name, ratios) in enumerate(lines.items()):
        color = PALETTE[(0, 5)[i % 2]]
        ax.fill_between(num_experts, [r.low for r in ratios], [r.high for r in ratios], color=color, alpha=0.25, lw=0)
        ax.plot(num_experts, [r.median for r in ratios], "os"[i % 2] + "-", color=color, label=name)
    ax.set_xscale("log", base=2)
    ax.set_xticks(num_experts, [str(n) for n in num_experts])
    ax.set(ylim=(0, None), xlabel="number of experts E", ylabel=f"times E = {num_experts[0]}")
    _dress(ax, ink)
    ax.legend(loc="upper left", fontsize=9, frameon=False, labelcolor=ink.foreground)
    return ax


def _dress(ax: Axes, ink: Theme) -> None:
    ax.set_facecolor(ink.background)
    ax.grid(axis="x", color=ink.grid, lw=0.5)
    ax.tick_params(which="both", colors=ink.muted, labelcolor=ink.foreground, labelsize=9)
    ax.xaxis.label.set_color(ink.foreground)
    ax.yaxis.label.set_color(ink.foreground)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(ink.grid)
