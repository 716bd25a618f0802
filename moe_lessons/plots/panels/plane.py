"""The plane, divided among the experts, and which token goes to which of them."""

from matplotlib.axes import Axes

from moe_lessons.plots.marks import Axis, Cells, Field, Panel, Points, experts_axis
from moe_lessons.plots.panels._history import as_array
from moe_lessons.plots.still import plot

PLANE = Axis(-1, 1, ticks=[(-1, "−1"), (0, "0"), (1, "1")])


def territory(view) -> Panel:
    """Show each place in the colour of the expert that the router likes best there. Tokens are light where the model
    names the right class, a dark cross where it does not; a ring marks the selected one."""
    plane = view.plane
    x, y = as_array(plane.points, "f4").T
    look, first = (~as_array(plane.correct)).astype("u1"), as_array(plane.routing.router_probs.argmax(dim=-1), "u1")
    tokens = Points(x, y, look, first, True, view.selected, ("correct", "wrong"))
    return Panel("Territory: first choices", [Field(as_array(plane.scores, "f2")), tokens], PLANE, PLANE)


def heatmap_panel(routing, selected: int | None = None) -> Panel:
    """Show a row for each token, a column for each expert, by the router's probability; a dot says who serves."""
    tokens, experts = routing.router_probs.shape
    token, expert = as_array(routing.token_idx, "i4"), as_array(routing.expert_idx, "u1")
    marks = Cells(as_array(routing.router_probs, "f2"), selected=selected), Points(expert, token, expert=expert)
    y = Axis(tokens - 0.5, -0.5, "token", [(row, str(row)) for row in range(0, tokens, max(1, tokens // 8))])
    return Panel("Router probabilities, ○ served", marks, experts_axis(experts), y)


def heatmap(view) -> Panel:
    """Show the tokens of the view."""
    return heatmap_panel(view.plane.routing, view.selected)


def token_expert_heatmap(routing, ax: Axes | None = None) -> Axes:
    """Draw the router probabilities (T, E) of a `Routing` and mark the experts that serve."""
    return plot(heatmap_panel(routing), ax)
