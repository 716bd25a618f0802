"""Loss against steps, arithmetic and time."""

from moe_lessons.plots.marks import Axis, Line, Panel, Rule, roomy
from moe_lessons.plots.panels._history import X_AXES, as_array, loss_curve, spent
from moe_lessons.plots.theme import model_inks
from moe_lessons.support.errors import check_choice


def loss_panel(curves, ghost=None, x_axis: str = "steps", marks=(), first_x: float = 200) -> Panel:
    """The losses of several models: `curves` maps a name to (x, loss). ghost: x and loss of an earlier run, or None;
    marks: x of what was changed. The axis follows the curves; of a longer ghost it shows at most as much again."""
    first = {"steps": first_x, "FLOPs": 1e7, "seconds": 0.25}[check_choice("x_axis", x_axis, X_AXES)]
    lines = [Line(*map(as_array, curves[name]), name, ink) for name, ink in zip(curves, model_inks(curves))]
    reach = max((float(line.x[-1]) for line in lines if len(line.x)), default=0.0)
    if ghost is not None and len(ghost[0]):
        lines.insert(0, Line(*map(as_array, ghost), "previous run", -1))
        reach = max(reach, min(float(ghost[0][-1]), 2 * reach or float("inf")))
    highest = max((float(line.y.max()) for line in lines if len(line.y)), default=0.0)
    top = next((top for top in (0.5, 1, 1.5, 2, 2.5, 3, 4, 6, 7) if top >= highest), 10)
    rules = [Rule(x=float(x), kind="mark") for x in marks]
    x = Axis(0, roomy(reach, first), X_AXES[x_axis], link="step" if x_axis == "steps" else "")
    return Panel("Loss (cross entropy, nats)", [*rules, *lines], x, Axis(0, top))


def loss(view) -> Panel:
    """The loss of each model of the view."""
    curves = {name: loss_curve(run, view.x_axis) for name, run in view.runs.items()}
    ghost = loss_curve(view.ghost, view.x_axis) if view.ghost is not None else None
    return loss_panel(curves, ghost, view.x_axis, spent(view.main_run, view.x_axis, view.marks), view.first_x)
