"""What a `hub.Lens` has seen of several models, side by side."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_lessons.nn import Routing
from moe_lessons.plots.by_layer import grouped_bars
from moe_lessons.plots.panels.shares import layer_loads
from moe_lessons.plots.theme import LIGHT, PALETTE, TEXT_SIZE, LessonFigure, axes_for, dress, ink_on, name_over


def changes(table: pd.DataFrame, title: str) -> Axes:
    """Draw a table: a row for each model, a column for each thing that they may do differently. What is not as in the
    first row is in colour."""
    cells = [["", *table], *([name, *row] for name, row in zip(table.index, table.astype(str).to_numpy()))]
    widths = [max(len(row[column]) for row in cells) + 3 for column in range(len(cells[0]))]  # letters
    ax = axes_for(0.5 + 0.075 * sum(widths), 0.6 + 0.3 * len(cells), title)
    ax.set_axis_off()
    drawn = ax.table(cells, cellLoc="center", colWidths=widths, bbox=(0, 0, 1, 1))
    drawn.auto_set_font_size(False)
    for (row, column), cell in drawn.get_celld().items():
        differs = row > 1 and column and cells[row][column] != cells[1][column]
        color = LIGHT.muted if row and column else LIGHT.foreground
        cell.set(fc=PALETTE[1] if differs else "none", ec=LIGHT.background, lw=4)
        cell.set_text_props(size=TEXT_SIZE, color=ink_on(PALETTE[1]) if differs else color)
    return ax


def loads_of_models(rows: Mapping[str, Mapping[str, Sequence[Routing]]]) -> Figure:
    """Draw the load of each expert in each layer, `layer_loads`, of several models: a column for each model, a row for
    each moment or setting. rows: its name -> the name of a model -> a `Routing` for each layer."""
    names = list(dict.fromkeys(name for models in rows.values() for name in models))
    figure = LessonFigure(11, 0.4 + 1.35 * len(rows))
    for own, (moment, models) in zip(figure.subplots(len(rows), len(names), squeeze=False), rows.items()):
        for ax, name in zip(own, names):
            if name in models:
                layer_loads(models[name], ax)
                dress(ax, LIGHT, f"{name}, {moment}", "", "layer" if name == names[0] else "")
            else:
                ax.set_axis_off()
    return figure


def bars_by_model(tables: Mapping[str, pd.DataFrame], ylabel: str) -> Figure:
    """Draw a picture for each table, side by side on one scale: a group of bars for each row, a model; a bar for each
    column. The first column is what is asked about, the others are what it is compared with."""
    figure = LessonFigure(11, 3)
    axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for ax, (title, table) in zip(axes, tables.items()):
        dress(ax, LIGHT, title, "", ylabel if ax is axes[0] else "")
        grouped_bars(ax, range(len(table)), table)
        ax.set_xticks(range(len(table)), list(table.index))
        name_over(ax)
    return figure
