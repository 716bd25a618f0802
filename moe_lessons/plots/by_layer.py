"""Numbers that each layer has, side by side with their controls."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_lessons.plots.theme import LIGHT, annotate, axes_for, name_over

INKS = [LIGHT.lines[i] for i in (0, 3, 5, 4)]  # of what is asked about, and of what it is compared with


def bars_by_layer(tables: Mapping[str, pd.DataFrame], ylabel: str, title: str) -> Axes:
    """Draw a group of bars for each layer, a bar for each column, next to each other for each of the tables.

    tables: name -> a row for each layer, all with the same columns. The first column is what is asked about, the others
    are what it is compared with.
    """
    starts = np.cumsum([0, *(len(table) + 0.6 for table in tables.values())])
    ax = axes_for(max(6.4, 1.6 + 0.95 * starts[-1]), 2.9, title, ylabel=ylabel)
    places = np.concatenate([start + np.arange(len(table)) for start, table in zip(starts, tables.values())])
    rows = pd.concat(tables.values())
    grouped_bars(ax, places, rows)
    ax.set_xticks(places, [f"layer {layer}" for layer in rows.index])
    look = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "top", "weight": "bold"}
    for name, start, end in zip(tables, starts, starts[1:]):
        annotate(ax, name, ((start + end - 1.6) / 2, 0), (0, -20), **look)
    return name_over(ax)


def grouped_bars(ax: Axes, places: Sequence[float], columns: Mapping[str, Sequence], colors=INKS) -> None:
    """Draw at each place a bar for each column, side by side."""
    names = list(columns)
    width = 0.8 / len(names)
    for i, (name, color) in enumerate(zip(names, colors)):
        ax.bar(np.add(places, (i + 0.5) * width - 0.4), columns[name], width, color=color, label=name)
    ax.axhline(0, lw=0.8, color=LIGHT.grid)
