"""The plane, divided among the experts."""

import torch
from matplotlib.axes import Axes

from moe_lessons.nn import evaluating
from moe_lessons.plots.marks import Axis, Field, Panel, Points
from moe_lessons.plots.panels._history import as_array
from moe_lessons.plots.still import plot
from moe_lessons.tasks import grid

PLANE = Axis(-1, 1, ticks=[(-1, "−1"), (0, "0"), (1, "1")])


def territory_panel(scores, points, correct, expert=None, selected: int | None = None) -> Panel:
    """Each place in the colour of the expert that the router likes best there: scores (R, R, E) on a `tasks.grid`.

    points (T, 2) are tokens: light where the model names the right class (correct (T,)), a dark cross where it does
    not. expert (T,): their first choices. A ring marks the selected one."""
    x, y = as_array(points, "f4").T
    look, named = (~as_array(correct)).astype("u1"), ("correct", "wrong")
    tokens = Points(x, y, look, None if expert is None else as_array(expert, "u1"), True, selected, named)
    return Panel("Territory: first choices", [Field(as_array(scores, "f2")), tokens], PLANE, PLANE)


def territory(view) -> Panel:
    """The plane as the router of the view sees it."""
    plane, first = view.plane, view.plane.routing.router_probs.argmax(dim=-1)
    return territory_panel(plane.scores, plane.points, plane.correct, first, view.selected)


@torch.no_grad()
def territory_map(model, task, ax: Axes | None = None, theme="light", resolution: int = 96, num_points=64) -> Axes:
    """Draw which expert of a `PlaneClassifier` is the favourite where, and some points of the task."""
    device = next(model.parameters()).device
    x, y = task.batch(num_points, torch.Generator().manual_seed(1))
    with evaluating(model):
        _, (routing,) = model(grid(resolution).to(device))
        correct = model(x.to(device))[0].argmax(dim=-1).cpu() == y
    scores = routing.router_probs.clamp_min(1e-30).log().view(resolution, resolution, -1)
    return plot(territory_panel(scores, x, correct), ax, theme, 4.2, 4)
