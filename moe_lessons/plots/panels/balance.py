"""Balance against quality: a spot for each tile of the balancing laboratory."""

import numpy as np

from moe_lessons.plots.marks import Axis, Panel, Spots
from moe_lessons.plots.panels.curves import legend, outcomes


def balance(view) -> Panel:
    """How evenly the load lies (across) against how often the model is right (up), with a cross from the lowest to the
    highest seed. The axes reach from even to the widest variation, and from the lowest accuracy to 1, in large steps.
    """
    last, names, inks = [tile.readings[-1] for tile in view.tiles.values()], list(view.tiles), outcomes(view)
    x, y = np.array([r.variation for r in last], "f4"), np.array([r.accuracy for r in last], "f4")  # (tiles, S)
    ends = x.min(axis=1), x.max(axis=1), y.min(axis=1), y.max(axis=1)
    selected = names.index(view.selected)
    spots = Spots(x.mean(axis=1), y.mean(axis=1), *ends, np.array(inks, "u1"), names, selected)
    right = next((stop for stop in (0.5, 1, 1.5, 2, 2.7) if stop >= x.max()), 1.05 * float(x.max()))
    bottom = next(stop for stop in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2, 0) if stop <= y.min())
    axes = Axis(0, right, "variation of the load (0: even)"), Axis(bottom, 1, "accuracy")
    title = "Balance and quality: up and to the left is better"
    return Panel(title, [spots], *axes, width=6, legend=legend(view, inks))
