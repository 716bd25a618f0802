"""Pictures of a collapse: who gets a gradient, who is pushed where, who was dead from the start, and what it costs."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from moe_lessons.plots.by_layer import grouped_bars
from moe_lessons.plots.marks import Axis, Band, Line, Panel
from moe_lessons.plots.still import plot
from moe_lessons.plots.theme import LIGHT, annotate, axes_for, expert_color, expert_hatch, model_inks, name_over


def share_scatter(x, y, labels: tuple[str, str], title: str, ax: Axes | None = None) -> Axes:
    """Draw two shares of each expert against each other: x, y (N, E) from N steps or runs. Dashed: the even share.

    Dotted: where both are equal.
    """
    ax = axes_for(4.2, 3.8, title, *labels, ax)
    x, y = np.asarray(x), np.asarray(y)
    for expert, points in enumerate(zip(x.T, y.T)):
        look = {"color": expert_color(expert), "ec": LIGHT.background, "lw": 0.4, "hatch": expert_hatch(expert)}
        ax.scatter(*points, s=26, label=f"E{expert}", clip_on=False, zorder=3, **look)
    even, look = 1 / x.shape[1], {"lw": 0.8, "color": LIGHT.muted}
    for slope, ls in ((0, "--"), (np.inf, "--"), (1, ":")):
        ax.axline((even, even), slope=slope, ls=ls, **look)
    top = 1.08 * max(x.max(), y.max())
    ax.set(xlim=(0, top), ylim=(0, top))
    return name_over(ax)


def push_bars(own, others, title: str) -> Axes:
    """Draw two bars for each expert: the push on its score by its own tokens (full) and by all others (pale).

    own, others (E,): see `analysis.collapse.score_pushes`; up is up.
    """
    ax = axes_for(6.4, 3.2, title, ylabel="push (nats per unit of score)")
    places = np.arange(len(own))
    look = {"color": [expert_color(e) for e in places], "hatch": [expert_hatch(e) for e in places]}
    kinds = (own, -0.2, "by its own tokens", 1), (others, 0.2, "by the tokens of the others", 0.4)
    for heights, side, name, alpha in kinds:
        ax.bar(places + side, heights, 0.4, edgecolor=LIGHT.background, lw=0.5, alpha=alpha, **look)
        ax.bar([0], [0], color=LIGHT.muted, alpha=alpha, label=name)
    ax.axhline(0, lw=1, color=LIGHT.foreground)
    ax.set_xticks(places, [f"E{e}" for e in places])
    return name_over(ax)


def dead_curves(dead: Mapping[str, Sequence]) -> Axes:
    """Draw the dead experts over N steps: for each name (S, N), the mean over S seeds and the range of them all."""
    marks = []
    for (name, values), ink in zip(dead.items(), model_inks(dead)):
        steps = np.arange(1, len(values[0]) + 1)
        marks += [Band(steps, np.min(values, 0), np.max(values, 0), ink), Line(steps, np.mean(values, 0), name, ink)]
    axes = Axis(0, float(steps[-1]), "step"), Axis(-0.1, 8, "dead experts of 8")
    return plot(Panel("Dead experts: mean of the seeds, and their range", marks, *axes), width=7.6, height=3.4)


def dead_histogram(dead: Mapping[str, Sequence[int]]) -> Axes:
    """Draw in how many of the routers there are 0, 1, 2, … dead experts of 8: for each name, a count of each router."""
    ax = axes_for(6.4, 3.2, "Dead experts before the first step", "dead experts of 8", "routers")
    heights = {name: np.bincount(counts, minlength=8)[:8] for name, counts in dead.items()}
    grouped_bars(ax, range(8), heights, [LIGHT.lines[i] for i in model_inks(dead)])
    ax.set_xticks(range(8))
    return name_over(ax)


def accuracy_dots(accuracies: Mapping[str, Sequence[float]], title: str, ax: Axes | None = None) -> Axes:
    """Draw the accuracy of several settings: a dot for each seed, a line and a number for their mean."""
    ax = axes_for(4.4, 3.2, title, ylabel="accuracy on held-out points", ax=ax)
    for place, (values, color) in enumerate(zip(accuracies.values(), model_inks(accuracies))):
        at, mean = place + np.linspace(-0.2, 0.2, len(values)), np.mean(values)
        ax.plot(at, values, "o", ms=5, color=LIGHT.lines[color], alpha=0.7, mew=0)
        ax.hlines(mean, place - 0.3, place + 0.3, color=LIGHT.foreground, lw=1.6)
        annotate(ax, f"{mean:.1%}", (place + 0.33, mean))
    ax.set_xticks(range(len(accuracies)), list(accuracies))
    ax.set(xlim=(-0.5, len(accuracies) - 0.25), ylim=(0.6, 1))
    ax.grid(axis="y")
    return ax
