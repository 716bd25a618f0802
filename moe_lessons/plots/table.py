"""Models beside each other, in numbers."""

from matplotlib.axes import Axes

from moe_lessons.plots.theme import LIGHT, Panel, Theme, axes_for


class CostTable(Panel):
    """A table: a column for each model, a row for each quantity. The first `steady` rows seldom change."""

    title = "What each model costs"

    def __init__(
        self,
        ax: Axes,
        theme: Theme = LIGHT,
        columns: tuple[str, ...] = (),
        rows: tuple[str, ...] = (),
        steady: int = 0,
    ):
        super().__init__(ax, theme)
        ax.set_axis_off()
        step = 0.86 / max(len(rows), 1)
        self.cells = []
        write = {"transform": ax.transAxes, "va": "center", "fontsize": 8.5}
        places = [1 - 0.27 * (len(columns) - 1 - i) for i in range(len(columns))]
        for place, name in zip(places, columns, strict=True):
            ax.text(place, 0.93, name.replace(", ", ",\n"), ha="right", color=theme.muted, **write | {"fontsize": 8})
        for i, row in enumerate(rows):
            y = 0.8 - i * step
            ax.text(0, y, row, color=theme.muted, **write)
            self.cells.append([ax.text(place, y, "", ha="right", color=theme.foreground, **write) for place in places])
        self.steady = steady
        self.slow = [cell for row in self.cells[steady:] for cell in row]

    def update(self, values: list[list[str]]) -> None:
        """values: the text of each row, column by column."""
        for i, (cells, texts) in enumerate(zip(self.cells, values, strict=True)):
            self.stale |= i < self.steady and texts != [cell.get_text() for cell in cells]
            for cell, text in zip(cells, texts, strict=True):
                cell.set_text(text)


def cost_table(table, ax: Axes | None = None, theme: str = "light") -> Axes:
    """Draw a table: `table` maps the name of a row to {name of a column: text}."""
    columns = tuple(next(iter(table.values())))
    ax, colors = axes_for(ax, theme, height=0.5 + 0.3 * len(table))
    CostTable(ax, colors, columns, tuple(table)).update([[row[c] for c in columns] for row in table.values()])
    return ax
