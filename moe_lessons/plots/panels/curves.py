"""The tiles of the balancing laboratory: over the steps, and balance against quality; coloured by their outcome."""

import numpy as np

from moe_lessons.plots.marks import Axis, Band, Line, Panel, Spots, roomy
from moe_lessons.plots.panels._history import history

CURVES = {  # name -> title, the most there can be with E experts, what of a reading
    "dead experts": ("Dead experts", lambda num_experts: num_experts, "dead"),
    "max over mean": ("Busiest expert over the mean", lambda num_experts: num_experts, "max_over_mean"),
    "accuracy": ("Accuracy", lambda num_experts: 1, "accuracy"),
}
OUTCOMES = {4: "no dead expert", 1: "fewer dead than {}", 5: "as many dead or more"}  # by ink: green, orange, grey
WITH_NOISE = 2  # an ink whose line is dotted


def outcomes(view) -> tuple[list[int], list[tuple[int, str]]]:
    """Choose the ink of each tile, by its last reading beside that of 'nothing', else of the worst; and for the legend
    name each outcome with its tiles. Before the first step all are grey."""
    if not any(tile.step for tile in view.tiles.values()):
        return [5] * len(view.tiles), [(5, "all start alike")]
    dead = {name: float(np.mean(tile.readings[-1].dead)) for name, tile in view.tiles.items()}
    plain, called = dead.get("nothing", max(dead.values())), "nothing" if "nothing" in dead else "the worst"
    inks = [4 if mean == 0 else 1 if mean < plain else 5 for mean in dead.values()]
    names = {ink: ", ".join(name for name, own in zip(dead, inks) if own == ink) for ink in OUTCOMES if ink in inks}
    return inks, [(ink, f"{OUTCOMES[ink].format(called)}: {own}") for ink, own in names.items()]


def curves(view) -> Panel:
    """Show a line for each tile, the mean of its seeds; of the selected one also the band of its seeds and, dotted, the
    same in training, with noise."""
    title, most, quantity = CURVES[view.curve]
    (inks, legend), marks = outcomes(view), []
    for name in sorted(view.tiles, key=lambda name: name == view.selected):  # the selected one on top
        tile, model, is_own = view.tiles[name], list(view.tiles).index(name), name == view.selected
        steps = np.array([reading.step for reading in tile.readings], "f4")
        values = np.array([getattr(reading, quantity) for reading in tile.readings], "f4")  # (N, S)
        if is_own:
            marks.append(Band(steps, values.min(axis=1), values.max(axis=1), inks[model]))
        marks.append(Line(steps, values.mean(axis=1), "", inks[model], model, is_own))
        if is_own and quantity == "dead" and tile.is_noisy and tile.step > 0:
            past = history(tile.band)
            marks.append(Line(*map(past.column, ("steps", "dead")), f"{name}, with noise", WITH_NOISE, strong=False))
    title += f" without noise (mean of {view.seeds})" if view.seeds > 1 else " without noise"
    x = Axis(0, roomy(max(tile.step for tile in view.tiles.values())), "step", link="step")
    y = Axis(0, float(most(view.num_experts)))
    return Panel(title, marks, x, y, width=6, legend=legend)


def balance(view) -> Panel:
    """Show how evenly the load lies (across) against how often the model is right (up), with a cross from the lowest to
    the highest seed."""
    last, names, (inks, legend) = [tile.readings[-1] for tile in view.tiles.values()], list(view.tiles), outcomes(view)
    x, y = np.array([r.max_over_mean for r in last], "f4"), np.array([r.accuracy for r in last], "f4")  # (tiles, S)
    ends = x.min(axis=1), x.max(axis=1), y.min(axis=1), y.max(axis=1)
    selected = names.index(view.selected)
    spots = Spots(x.mean(axis=1), y.mean(axis=1), *ends, np.array(inks, "u1"), names, selected)
    right = next((stop for stop in (1.5, 2, 3, 4, 6, 8) if stop >= x.max()), 1.05 * float(x.max()))
    bottom = next(stop for stop in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2, 0) if stop <= y.min())
    axes = Axis(0.5, right, "busiest expert over the mean (1: even)"), Axis(bottom, 1, "accuracy")
    title = "Balance and quality: up and to the left is better"
    return Panel(title, [spots], *axes, width=6, legend=legend)
