"""What the planner says: the time of a step, and how far its figures are from published ones."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_lessons.analysis.planner import Plan
from moe_lessons.plots.theme import PALETTE, annotate, axes_for, log_axis, name_over

ALLOWED = 30  # per cent


def plot_plan(plans: Mapping[str, Plan], xlabel: str = "devices", title: str = "", ax=None, theme="light") -> Axes:
    """The time of a step, a bar for each plan: the arithmetic, the exchange beside it, and the exchange after it.

    plans: name under the bar -> plan. What of the exchange is hidden lies in the bar of the arithmetic, hatched; the
    rest stands on it, in the colour of the links that it waits for.

    >>> from moe_lessons.analysis.planner import plan
    >>> plans = {f"{n}": plan("DeepSeek-V3", devices=n, expert_parallel=n) for n in (8, 64)}
    >>> [text.get_text() for text in plot_plan(plans).texts]
    ['2.8 s', '4.5 s']
    """
    if not plans or not all(isinstance(made, Plan) for made in plans.values()):
        raise ValueError("plans must be a dict of names and one Plan or more")
    width = max(4.8, 1.6 + 0.8 * len(plans))
    ax, ink = axes_for(ax, theme, width, 3.4, title or "Time of a step", xlabel, "seconds")
    x, made = np.arange(len(plans)), list(plans.values())
    computed, hidden = (np.array([getattr(one, name) for one in made]) for name in ("compute", "hidden"))
    ax.bar(x, computed, 0.7, color=PALETTE[0], label="compute")
    kinds = {"inside nodes": PALETTE[2], "between nodes": PALETTE[5]}
    for kind, color in kinds.items():
        own = np.array([(one.between > one.inside) == (kind == "between nodes") for one in made])
        over = np.where(own, [one.exchange - one.hidden for one in made], 0)
        if over.any():
            ax.bar(x, over, 0.7, bottom=computed, color=color, label=f"exchange, {kind}")
    if hidden.any():
        look = {"fc": PALETTE[0], "ec": ink.background, "hatch": "////", "lw": 0}
        ax.bar(x, hidden, 0.7, bottom=computed - hidden, label="exchange beside it", **look)
    for place, one in zip(x, made):
        annotate(ax, f"{one.seconds:.2g} s", (place, one.seconds), ink, (0, 4), ha="center", va="bottom")
    ax.set_xticks(x, list(plans))
    ax.set_ylim(0, 1.12 * max(one.seconds for one in made))
    return name_over(ax, ink)


def plot_published(checked: pd.DataFrame, ax: Axes | None = None, theme: str = "light") -> Axes:
    """Planned over published, a row for each figure of `check_published()`; the band is ±30 %.

    >>> from moe_lessons.analysis.systems import check_published
    >>> len(plot_published(check_published()).get_yticklabels())
    22
    """
    if (
        not isinstance(checked, pd.DataFrame)
        or checked.empty
        or not {"system", "quantity", "error_percent"} <= {*checked}
    ):
        raise ValueError("checked must be the table of check_published")
    ratio, y = 1 + checked.error_percent.to_numpy(dtype=float) / 100, np.arange(len(checked))
    title, height = "The planner against published systems", 1.1 + 0.24 * len(checked)
    ax, ink = axes_for(ax, theme, 8.8, height, title, "planned / published")
    ax.axvspan(1 - ALLOWED / 100, 1 + ALLOWED / 100, color=ink.grid, alpha=0.5, lw=0, label=f"±{ALLOWED} %")
    ax.axvline(1, color=ink.foreground, lw=1, ls="--")
    near = abs(ratio - 1) <= ALLOWED / 100
    for own, color, marker, name in ((near, ink.lines[2], "o", "within"), (~near, ink.lines[1], "D", "beyond")):
        ax.scatter(ratio[own], y[own], color=color, marker=marker, s=30, zorder=3, label=f"{own.sum()} {name}")
    for place, value in zip(y, ratio):
        annotate(ax, f"{100 * (value - 1):+.0f} %".replace("-", "−"), (value, place), ink, (9, 0), halo=True)
    ax.set_yticks(y, [f"{row.system}: {row.quantity}" for row in checked.itertuples()])
    ax.set(xlim=(0.38, 2.8), ylim=(len(checked) - 0.4, -0.6))
    log_axis(ax, "x", (0.5, 0.7, 1, 1.3, 2), "{:g}".format)
    return name_over(ax, ink)
