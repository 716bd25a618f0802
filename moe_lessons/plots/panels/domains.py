"""Who serves which domain, or another group of tokens."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_lessons.analysis.traces import expert_shares
from moe_lessons.plots.marks import Axis, Cells, Panel, experts_axis
from moe_lessons.plots.panels._history import num_experts, of_layer
from moe_lessons.plots.still import plot
from moe_lessons.plots.theme import shortened

LONGEST_NAME = 22  # characters that a row has room for


def shares_panel(shares: pd.DataFrame, title: str = "") -> Panel:
    """A row for each group of tokens, a column for each expert: the share of the group's assignments that it gets, in
    percent. Coloured in two directions from 1/E, where all experts serve the group alike."""
    if not isinstance(shares, pd.DataFrame) or shares.empty:
        got = f"shape {shares.shape}" if isinstance(shares, pd.DataFrame) else type(shares).__name__
        raise ValueError(f"shares must be a DataFrame with a row for each group of tokens, got {got}")
    values, experts = shares.to_numpy(dtype=np.float32), shares.shape[1]
    sums = values.sum(axis=1)
    if (values < 0).any() or not np.allclose(sums[~np.isnan(sums)], 1, atol=1e-4):
        raise ValueError(f"shares must be at least 0 and sum to 1 in each row, got the sums {sums.round(3).tolist()}")
    names = [f"layer {name}" if shares.index.name == "layer" else str(name) for name in shares.index]
    cells = Cells(values, even=1 / experts, most=min(1, 4 / experts), numbers=True, rows="group")
    y = Axis(len(names) - 0.5, -0.5, ticks=[(row, shortened(name, LONGEST_NAME)) for row, name in enumerate(names)])
    return Panel(title or "Who serves what, % of each row", [cells], experts_axis(experts), y, width=6)


def shares_of(view, by: str, title: str) -> Panel:
    """The shares of each 'domain' or 'byte_class' in the text that the view has traced; NaN where one had no expert."""
    num_experts(view)  # refuses a model without experts
    groups = view.traced[by].cat.remove_unused_categories().cat.categories
    return shares_panel(expert_shares(view.traced, by, view.layer).reindex(groups), of_layer(title, view))


def domains(view) -> Panel:
    """A row for each domain of the held-out text."""
    return shares_of(view, "domain", "Domains, % of each row")


def expert_shares_heatmap(shares: pd.DataFrame, title: str = "", ax: Axes | None = None, theme: str = "light") -> Axes:
    """Draw the shares of `analysis.expert_shares`: a row for each group, a column for each expert: `shares_panel`."""
    panel = shares_panel(shares, title)
    return plot(panel, ax, theme, max(2.8 + 0.42 * shares.shape[1], 4.4), 1.1 + 0.3 * len(shares))
