"""Numbers that each layer has, side by side with their controls."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_lessons.plots.theme import Panel, axes_for


def bars_by_layer(
    tables: Mapping[str, pd.DataFrame], ylabel: str = "", title: str = "", ax: Axes | None = None, theme: str = "light"
) -> Axes:
    """A group of bars for each layer, a bar for each column, next to each other for each of the tables.

    tables: name -> a row for each layer, all with the same columns. The first column is what is asked about, the others
    are what it is compared with.

    >>> table = pd.DataFrame({"trained": [2.0, 1.5], "shuffled": [0.0, 0.01]})
    >>> len(bars_by_layer({"byte": table, "domain": table / 2}, ylabel="bits").patches)
    8
    """
    frames = list(tables.values()) if isinstance(tables, Mapping) else []
    is_good = frames and all(isinstance(f, pd.DataFrame) and not f.empty for f in frames)
    if not is_good or any(list(f) != list(frames[0]) for f in frames):
        raise ValueError("tables must be one or more tables with a row for each layer and the same columns")
    columns = list(frames[0])
    starts = np.cumsum([0, *(len(f) + 0.6 for f in frames)])
    ax, colors = axes_for(ax, theme, width=max(6.4, 1.6 + 0.95 * starts[-1]), height=2.9)
    Panel(ax, colors)
    width = 0.8 / len(columns)
    looks = [colors.lines[2], colors.lines[1], colors.muted, colors.lines[3]]
    for i, column in enumerate(columns):
        places = np.concatenate([start + np.arange(len(f)) for start, f in zip(starts, frames)])
        heights = np.concatenate([f[column] for f in frames])
        ax.bar(places + (i - (len(columns) - 1) / 2) * width, heights, width, color=looks[i % 4], label=column)
    labels = [f"layer {layer}" for f in frames for layer in f.index]
    ax.set_xticks(places, labels)
    for (name, frame), start in zip(tables.items(), starts):
        middle = start + (len(frame) - 1) / 2
        look = {"ha": "center", "va": "top", "fontsize": 9, "color": colors.foreground, "weight": "bold"}
        ax.annotate(name, (middle, 0), (0, -20), xycoords=("data", "axes fraction"), textcoords="offset points", **look)
    ax.axhline(0, lw=0.8, color=colors.grid)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_ylabel(ylabel)
    ax.set_title(title, loc="left", fontsize=10, color=colors.foreground)
    ax.legend(
        frameon=False,
        fontsize=8,
        labelcolor=colors.foreground,
        ncols=len(columns),
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0,
    )
    return ax
