"""Facts known by heart: a wall of lamps for each model, and how many are lit over the training."""

import math

import numpy as np

from moe_lessons.plots.marks import Axis, Lamps, Line, Panel, roomy
from moe_lessons.plots.panels._history import X_AXES, as_array, spent
from moe_lessons.plots.theme import model_inks

WIDE = 1.25  # a wall is so much wider than high


def wall_panel(known, entries=None, name: str = "known", ink: int = 0) -> Panel:
    """A lamp for each entry, lit where it is known (N,). entries: their texts, all of one length."""
    known = as_array(known, "u1")
    columns = math.ceil(math.sqrt(WIDE * len(known)))
    letters = None if entries is None else np.array([list(entry.encode()) for entry in entries], "u1")
    axes = Axis(0, columns, ticks=()), Axis(-(-len(known) // columns), 0, ticks=())
    title = f"{name}: {known.sum():,} of {len(known):,}"
    return Panel(title, [Lamps(known, columns, ink, letters)], *axes)


def wall(view, name: str) -> Panel:
    """The lamps of one model of the view."""
    _, known = view.readings[-1]
    ink = model_inks(view.runs)[list(view.runs).index(name)]
    return wall_panel(known[name], view.main_run.task.entries, name, ink)


def facts_known(view) -> Panel:
    """How many entries each model of the view knows by heart."""
    steps, lines = [step for step, _ in view.readings], []
    for model, (name, run) in enumerate(view.runs.items()):
        counts = np.array([int(known[name].sum()) for _, known in view.readings], "f4")
        x = np.asarray(spent(run, view.x_axis, steps), "f4")
        lines.append(Line(x, counts, name, model_inks(view.runs)[model], model))
    first = {"steps": view.first_x, "FLOPs": 1e9, "seconds": 1}[view.x_axis]
    reach = roomy(max(float(line.x[-1]) for line in lines), first)
    x = Axis(0, reach, X_AXES[view.x_axis], link="step" if view.x_axis == "steps" else "")
    return Panel("Entries known by heart", lines, x, Axis(0, len(view.main_run.task.entries)))
