"""How busy the experts of each layer are."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from moe_lessons.nn import Routing, is_moe
from moe_lessons.plots.marks import Axis, Cells, Panel, Points, experts_axis
from moe_lessons.plots.panels._history import RECENT, num_experts
from moe_lessons.plots.still import plot
from moe_lessons.training import DEAD_SHARE

HOTTEST = 3.0  # multiples of the even share: from here on all look alike


def layers_panel(loads, dead, selected: int | None = None) -> Panel:
    """A row for each MoE layer, a column for each expert: loads (layers, E), drawn in multiples of the even share; a
    red cross where dead (layers, E). Rows are read one by one: two layers that have collapsed onto different experts
    are not even together."""
    rows, experts = np.shape(loads)
    cells = Cells(np.asarray(loads, "f4") * experts, even=1.0, most=HOTTEST, rows="layer", selected=selected)
    layer, expert = (place.astype("u1") for place in np.nonzero(dead))
    y = Axis(rows - 0.5, -0.5, "layer", [(row, str(row)) for row in range(rows)])
    crosses = Points(expert, layer, np.full(len(layer), 2, "u1"), expert)
    return Panel("Load of each layer, × dead", [cells, crosses], experts_axis(experts), y)


def layers(view) -> Panel:
    """The loads of the last steps; a frame around the layer that the other panels show."""
    run, blank = view.main_run, np.full((len(view.main_run.num_experts), num_experts(view)), np.nan)
    selected = view.layer if len(blank) > 1 else None
    if not run.records:
        return layers_panel(blank, blank > 0, selected)
    loads = np.mean([record.load for record in run.records[-RECENT:]], axis=0)  # (layers, E)
    top_k = np.array([[module.top_k] for module in run.model.modules() if is_moe(module)])  # (layers, 1)
    return layers_panel(loads, loads * top_k < DEAD_SHARE, selected)


def layer_loads(routings: Sequence[Routing], ax: Axes | None = None, theme: str = "light") -> Axes:
    """Draw the load of each expert in each layer: `routings` has one `Routing` for each. See `layers_panel`."""
    if not routings:
        raise ValueError("routings must have at least one Routing, got none")
    if len({routing.num_experts for routing in routings}) > 1:
        raise ValueError(f"routings must have one number of experts, got {[r.num_experts for r in routings]}")
    demand = np.array([routing.demand_per_expert.tolist() for routing in routings])  # (layers, E)
    dead = demand < DEAD_SHARE * np.array([[routing.num_tokens] for routing in routings])
    loads = demand / demand.sum(axis=1, keepdims=True).clip(min=1)
    return plot(layers_panel(loads, dead), ax, theme, 5.6, 1.2 + 0.3 * len(routings))
