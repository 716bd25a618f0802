"""The tiles of the balancing laboratory over the steps, coloured by what became of them."""

import numpy as np

from moe_lessons.plots.marks import Axis, Band, Line, Panel, roomy
from moe_lessons.plots.panels._history import history

CURVES = {  # name -> title, the most there can be with E experts, what of a reading
    "dead experts": ("Dead experts", lambda num_experts: num_experts, "dead"),
    "variation of load": ("Variation of the load", lambda num_experts: max(num_experts - 1, 1) ** 0.5, "variation"),
    "accuracy": ("Accuracy", lambda num_experts: 1, "accuracy"),
}
OUTCOMES = {4: "no dead expert", 1: "fewer dead than {}", 5: "as many dead or more"}  # by ink: green, orange, grey
WITH_NOISE = 2  # an ink whose line is dotted


def outcomes(view) -> list[int]:
    """The ink of each tile, by its last reading: see `OUTCOMES`. It is compared with 'nothing' or, where there is no
    such tile, with the worst. Before the first step all are grey."""
    dead = {name: float(np.mean(tile.readings[-1].dead)) for name, tile in view.tiles.items()}
    plain = dead.get("nothing", max(dead.values()))
    has_begun = any(tile.step > 0 for tile in view.tiles.values())
    return [5 if not has_begun else 4 if mean == 0 else 1 if mean < plain else 5 for mean in dead.values()]


def legend(view, inks: list[int]) -> list[tuple[int, str]]:
    """Each outcome that occurs, with the names of its tiles."""
    if not any(tile.step for tile in view.tiles.values()):
        return [(5, "all start alike")]
    names = {ink: ", ".join(name for name, own in zip(view.tiles, inks) if own == ink) for ink in OUTCOMES}
    plain = "nothing" if "nothing" in view.tiles else "the worst"
    return [(ink, f"{OUTCOMES[ink].format(plain)}: {names[ink]}") for ink in OUTCOMES if names[ink]]


def curves(view) -> Panel:
    """A line for each tile, the mean of its seeds. That of the selected tile is strong, its band reaches from the
    lowest to the highest seed; dotted: the same in training, with noise."""
    title, most, quantity = CURVES[view.curve]
    inks, lines, own = outcomes(view), [], []
    for model, (name, tile) in enumerate(view.tiles.items()):
        steps = np.array([reading.step for reading in tile.readings], "f4")
        values, ink = np.array([getattr(reading, quantity) for reading in tile.readings], "f4"), inks[model]  # (N, S)
        line = Line(steps, values.mean(axis=1), "", ink, model, name == view.selected)
        if name != view.selected:
            lines.append(line)
            continue
        own = [Band(steps, values.min(axis=1), values.max(axis=1), ink), line]
        if quantity == "dead" and tile.is_noisy and tile.step > 0:
            past = history(tile.band)
            own.append(Line(past.column("steps"), past.column("dead"), f"{name}, with noise", WITH_NOISE, None, False))
    title += f" without noise (mean of {view.seeds})" if view.seeds > 1 else " without noise"
    x = Axis(0, roomy(max(tile.step for tile in view.tiles.values())), "step", link="step")
    y = Axis(0, float(most(view.num_experts)))
    return Panel(title, [*lines, *own], x, y, width=6, legend=legend(view, inks))
