"""How busy each expert has been: the film of a collapse."""

from dataclasses import replace

from matplotlib.axes import Axes

from moe_lessons.plots.marks import Axis, Panel, Rule, Stack, roomy
from moe_lessons.plots.panels._history import as_array, history, num_experts, of_layer
from moe_lessons.plots.still import plot

TITLE = "Load share over time"


def film_panel(steps, loads, marks=(), first_x=200, title=TITLE, of="assignments", clean=None) -> Panel:
    """The share of each expert at every step, stacked to 1: steps (N,), loads (N, E). Fine dashes: where even shares
    lie. marks: steps at which something was changed. clean (E,): another reading of now, a strip at the right edge."""
    steps, loads = as_array(steps, "f4"), as_array(loads, "f4")
    experts, last = loads.shape[1], float(steps[-1]) if len(steps) else 0.0
    rules = [Rule(y=expert / experts, kind="even") for expert in range(1, experts)]
    rules += [Rule(x=float(step), kind="mark") for step in marks]
    x, y = Axis(0, roomy(last, first_x), "step", link="step"), Axis(0, 1, f"share of {of}")
    return Panel(title, [Stack(steps, loads, clean), *rules], x, y)


def film(view) -> Panel:
    """The load of the layer that the view shows, at every step."""
    past, experts = history(view.main_run), num_experts(view)
    loads = past.loads(view.layer, experts)
    return film_panel(past.column("steps"), loads, view.marks, view.first_x, of_layer(TITLE, view))


def tile(view, name: str) -> Panel:
    """The film of one tile of the balancing laboratory, of its first seed, with its numbers under it. The strip at the
    right edge is the reading without noise, where there is any."""
    shown, past, model = view.tiles[name], history(view.tiles[name].band), list(view.tiles).index(name)
    clean = shown.clean[0] if shown.is_noisy and shown.clean is not None else None
    made = film_panel(past.column("steps"), past.loads(0, view.num_experts), shown.marks, title=name, clean=clean)
    axes = {"x": replace(made.x, label=""), "y": Axis(0, 1, ticks=()), "width": 3, "height": 150}
    return replace(made, **axes, caption=view.caption(shown), model=model, selected=name == view.selected)


def load_film(steps, loads, ax: Axes | None = None, theme: str = "light") -> Axes:
    """Draw the loads (N, E) of the experts at `steps` (N,), stacked. See `film_panel`."""
    panel = film_panel(steps, loads)
    return plot(replace(panel, x=replace(panel.x, high=float(steps[-1]))), ax, theme)
