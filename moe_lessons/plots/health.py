"""What a `hub.Lens` has seen of several models, side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from moe_lessons.nn import Routing
from moe_lessons.plots.by_layer import INKS, grouped_bars
from moe_lessons.plots.panels.shares import layer_loads
from moe_lessons.plots.theme import PALETTE, TEXT_SIZE, THEMES, LessonFigure, axes_for, dress, ink_on, name_over
from moe_lessons.support.errors import check_choice


def changes(table: pd.DataFrame, title: str = "", ax: Axes | None = None, theme: str = "light") -> Axes:
    """A table as a picture: a row for each model, a column for each thing that they may do differently. What is not as
    in the first row is in colour.

    >>> table = pd.DataFrame({"experts": [8, 64], "shared": [0, 0]}, index=["Mixtral", "OLMoE"])
    >>> len(changes(table).patches)  # OLMoE's 64
    1
    """
    if not isinstance(table, pd.DataFrame) or table.empty:
        raise ValueError(f"table must be a DataFrame with a row for each model, got {type(table).__name__}")
    rows, columns = table.shape
    widths = np.array([max(len(str(value)) for value in [name, *table[name]]) + 3 for name in table], float)
    ends = np.cumsum(widths)  # in letters
    ax, ink = axes_for(ax, theme, 1.5 + 0.075 * ends[-1], 0.6 + 0.3 * rows, title)
    for name, end, width in zip(table, ends, widths):
        for row, value in enumerate(table[name]):
            differs = value != table[name].iloc[0]
            if differs:
                ax.add_patch(Rectangle((end - width + 0.15, row - 0.44), width - 0.3, 0.88, color=PALETTE[1], lw=0))
            color = ink_on(PALETTE[1]) if differs else ink.muted
            ax.text(end - width / 2, row, str(value), ha="center", va="center", color=color, fontsize=TEXT_SIZE)
    ax.set_xticks(ends - widths / 2, [str(name) for name in table], color=ink.foreground)
    ax.set_yticks(range(rows), [str(name) for name in table.index], color=ink.foreground)
    ax.set(xlim=(0, ends[-1]), ylim=(rows - 0.5, -0.5))
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    return ax


def loads_of_models(
    rows: Mapping[str, Mapping[str, Sequence[Routing]]], width: float = 11.0, theme: str = "light"
) -> Figure:
    """The load of each expert in each layer, `layer_loads`, of several models: a column for each model, a row for each
    moment or setting. rows: its name -> the name of a model -> a `Routing` for each layer."""
    names = list(dict.fromkeys(name for models in rows.values() for name in models))
    if not names:
        raise ValueError("rows must have at least one model, got none")
    figure = LessonFigure(width, 0.4 + 1.35 * len(rows), THEMES[check_choice("theme", theme, THEMES)])
    axes = figure.subplots(len(rows), len(names), squeeze=False)
    for own, (moment, models) in zip(axes, rows.items()):
        for ax, name in zip(own, names):
            if name not in models:
                ax.set_axis_off()
                continue
            layer_loads(models[name], ax, theme)
            dress(ax, figure.theme, f"{name}, {moment}", "", "layer" if name == names[0] else "")
    return figure


def bars_by_model(
    tables: Mapping[str, pd.DataFrame], ylabel: str = "", width: float = 11.0, theme: str = "light"
) -> Figure:
    """A picture for each table, side by side on one scale: a group of bars for each row, a model; a bar for each
    column. The first column is what is asked about, the others are what it is compared with."""
    if not tables:
        raise ValueError("tables must have at least one table, got none")
    figure = LessonFigure(width, 3.0, THEMES[check_choice("theme", theme, THEMES)])
    axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for ax, (title, table) in zip(axes, tables.items()):
        dress(ax, figure.theme, title, "", ylabel if ax is axes[0] else "")
        grouped_bars(ax, range(len(table)), dict(table.items()), [figure.theme.lines[i] for i in INKS])
        ax.set_xticks(range(len(table)), list(table.index))
        ax.axhline(0, lw=0.8, color=figure.theme.grid)
        name_over(ax, figure.theme)
    return figure
