"""Numbers that each layer has, side by side with their controls."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_lessons.plots.theme import annotate, axes_for, name_over

INKS = (0, 3, 5, 4)  # of what is asked about, and of what it is compared with


def bars_by_layer(tables: Mapping[str, pd.DataFrame], ylabel="", title="", ax=None, theme="light") -> Axes:
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
    starts = np.cumsum([0, *(len(f) + 0.6 for f in frames)])
    ax, ink = axes_for(ax, theme, max(6.4, 1.6 + 0.95 * starts[-1]), 2.9, title, ylabel=ylabel)
    places = np.concatenate([start + np.arange(len(f)) for start, f in zip(starts, frames)])
    table = pd.concat(frames)
    grouped_bars(ax, places, dict(table.items()), [ink.lines[i] for i in INKS])
    ax.set_xticks(places, [f"layer {layer}" for layer in table.index])
    for name, start, frame in zip(tables, starts, frames):
        place = {"xycoords": ("data", "axes fraction"), "by": (0, -20), "ha": "center", "va": "top"}
        annotate(ax, name, (start + (len(frame) - 1) / 2, 0), ink, weight="bold", **place)
    ax.axhline(0, lw=0.8, color=ink.grid)
    return name_over(ax, ink)


def grouped_bars(ax: Axes, places: Sequence[float], columns: Mapping[str, Sequence], colors: Sequence[str]) -> None:
    """At each place a bar for each column, side by side."""
    width = 0.8 / len(columns)
    for i, ((name, heights), color) in enumerate(zip(columns.items(), colors)):
        ax.bar(np.add(places, (i - (len(columns) - 1) / 2) * width), heights, width, color=color, label=name)
