"""What the planner says: the time of a step, and how far its figures are from published ones."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_lessons.analysis.planner import Plan
from moe_lessons.plots.theme import LIGHT, PALETTE, annotate, axes_for, log_axis, name_over

ALLOWED = 0.3


def plot_plan(plans: Mapping[str, Plan], xlabel: str) -> Axes:
    """Draw the time of a step, a bar for each plan: the arithmetic, the exchange beside it, and the exchange after it.

    plans: name under the bar -> plan. What of the exchange is hidden lies in the bar of the arithmetic, hatched; the
    rest stands on it, in the colour of the links that it waits for.

    >>> from moe_lessons.analysis.planner import plan
    >>> plans = {f"{n}": plan("DeepSeek-V3", devices=n, expert_parallel=n) for n in (8, 64)}
    >>> [text.get_text() for text in plot_plan(plans, "devices").texts]
    ['2.8 s', '4.5 s']
    """
    ax = axes_for(max(4.8, 1.6 + 0.8 * len(plans)), 3.4, "Time of a step", xlabel, "seconds")
    x, made = np.arange(len(plans)), list(plans.values())
    computed, hidden = (np.array([getattr(one, name) for one in made]) for name in ("compute", "hidden"))
    ax.bar(x, computed, 0.7, color=PALETTE[0], label="compute")
    after = np.array([one.exchange for one in made]) - hidden
    is_between = np.array([one.between > one.inside for one in made])
    for kind, own, color in (("inside", ~is_between, PALETTE[2]), ("between", is_between, PALETTE[5])):
        if (after * own).any():
            ax.bar(x, after * own, 0.7, bottom=computed, color=color, label=f"exchange, {kind} nodes")
    if hidden.any():
        look = {"fc": PALETTE[0], "ec": LIGHT.background, "hatch": "////", "lw": 0}
        ax.bar(x, hidden, 0.7, bottom=computed - hidden, label="exchange beside it", **look)
    for place, one in zip(x, made):
        annotate(ax, f"{one.seconds:.2g} s", (place, one.seconds), (0, 4), ha="center", va="bottom")
    ax.set_xticks(x, list(plans))
    ax.set_ylim(0, 1.12 * max(one.seconds for one in made))
    return name_over(ax)


def plot_published(checked: pd.DataFrame) -> Axes:
    """Draw planned over published, a row for each figure of `check_published()`; the band is ±30 %."""
    ratio, y = 1 + checked.error_percent.to_numpy(dtype=float) / 100, np.arange(len(checked))
    ax = axes_for(8.8, 1.1 + 0.24 * len(checked), "The planner against published systems", "planned / published")
    ax.axvspan(1 - ALLOWED, 1 + ALLOWED, color=LIGHT.grid, alpha=0.5, lw=0, label=f"±{100 * ALLOWED:g} %")
    ax.axvline(1, color=LIGHT.foreground, lw=1, ls="--")
    near = abs(ratio - 1) <= ALLOWED
    for own, ink, marker, name in ((near, 2, "o", "within"), (~near, 1, "D", "beyond")):
        look = {"color": LIGHT.lines[ink], "marker": marker, "label": f"{own.sum()} {name}"}
        ax.scatter(ratio[own], y[own], s=30, zorder=3, **look)
    for place, value in zip(y, ratio):
        annotate(ax, f"{100 * (value - 1):+.0f} %".replace("-", "−"), (value, place), (9, 0), halo=True)
    ax.set_yticks(y, checked.system + ": " + checked.quantity)
    ax.set(xlim=(0.38, 2.8), ylim=(len(checked) - 0.4, -0.6))
    log_axis(ax, "x", (0.5, 0.7, 1, 1.3, 2))
    return name_over(ax)
