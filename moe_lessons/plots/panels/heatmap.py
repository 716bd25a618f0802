"""Which token goes to which expert."""

from matplotlib.axes import Axes

from moe_lessons.plots.marks import Axis, Cells, Panel, Points, experts_axis
from moe_lessons.plots.panels._history import as_array
from moe_lessons.plots.still import plot


def heatmap_panel(routing, selected: int | None = None) -> Panel:
    """A row for each token, a column for each expert: the stronger the colour, the higher the router's probability. A
    dot says who serves."""
    tokens, experts = routing.router_probs.shape
    token, expert = as_array(routing.token_idx, "i4"), as_array(routing.expert_idx, "u1")
    marks = Cells(as_array(routing.router_probs, "f2"), selected=selected), Points(expert, token, expert=expert)
    y = Axis(tokens - 0.5, -0.5, "token", [(row, str(row)) for row in range(0, tokens, max(1, tokens // 8))])
    return Panel("Router probabilities, ○ served", marks, experts_axis(experts), y)


def heatmap(view) -> Panel:
    """The tokens that the view shows."""
    return heatmap_panel(view.plane.routing, view.selected)


def token_expert_heatmap(routing, ax: Axes | None = None, theme: str = "light") -> Axes:
    """Draw the router probabilities (T, E) of a `Routing` and mark the experts that serve. See `heatmap_panel`."""
    return plot(heatmap_panel(routing), ax, theme, 4.8, min(1.2 + 0.28 * len(routing.router_probs), 6))
