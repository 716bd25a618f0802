"""How busy each expert is now."""

from matplotlib.axes import Axes

from moe_lessons.plots.marks import Axis, Bars, Panel, Rule, experts_axis
from moe_lessons.plots.panels._history import as_array, num_experts, of_layer, recent_load
from moe_lessons.plots.still import plot

TITLE = "Load of each expert"


def load_panel(load, capacity=None, clean=None, title=TITLE, of="assignments", clean_name="without noise") -> Panel:
    """A bar for each expert: load (E,), its share of the assignments that the router wants. Dashed: the even share 1/E.

    capacity: of an expert, as a share of all assignments: a red line; the part of a bar above it is pale, it is
    dropped. clean (E,): another reading, such as that of the router without its noise: a tick on each bar.
    """
    load, clean, even = as_array(load, "f4"), None if clean is None else as_array(clean, "f4"), 1 / len(load)
    marks = [Bars(load, capacity, clean, clean_name), Rule(y=even, name="even share")]
    marks += [] if capacity is None else [Rule(y=capacity, kind="limit", name="capacity")]
    highest = float(max(*load, *(() if clean is None else clean), capacity or 0, even))
    top = next(top for top in (min(1.15, 4 * even), 0.5, 1.15, 1.1 * highest) if top >= highest)
    return Panel(title, marks, experts_axis(len(load)), Axis(0, top, f"share of {of}"))


def load(view) -> Panel:
    """The load of the layer that the view shows, over its last steps."""
    run, experts = view.main_run, num_experts(view)
    clean = view.clean_load if run.knobs.is_noisy or not run.records else None  # else training is as clean
    shares = recent_load(run, view.layer) if run.records else [0.0] * experts if clean is None else clean
    factor = run.knobs.capacity_factor
    return load_panel(shares, factor and factor / experts, clean if run.knobs.is_noisy else None, of_layer(TITLE, view))


def load_bars(load, capacity: float | None = None, clean=None, ax: Axes | None = None, theme: str = "light") -> Axes:
    """Draw the load (E,) of each expert as shares that sum to 1. See `load_panel`."""
    return plot(load_panel(load, capacity, clean), ax, theme)
