"""Pictures of what a model costs: where its parameters are, how many are active, what a step takes."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_lessons.analysis.cost import ParameterCount, TransformerShape
from moe_lessons.plots.marks import Axis, Panel, Parts
from moe_lessons.plots.still import plot
from moe_lessons.plots.theme import (
    PALETTE,
    axes_for,
    label_points,
    log_axis,
    model_inks,
    name_over,
    short_number,
    write,
)

BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, GREY = PALETTE
PART_COLORS = {"experts": BLUE, "FFN": BLUE, "shared experts": SKY, "attention": ORANGE, "attention scores": YELLOW}
PART_COLORS |= {"embedding": GREEN, "head": PINK, "router": RED, "norms": GREY}


def published_models_scatter(frame: pd.DataFrame, ax: Axes | None = None, theme: str = "light") -> Axes:
    """Active against total parameters, one point for each model of `published_models()`; both axes are logarithmic.

    Dashed lines: all parameters active (a dense model), one half, one tenth, one in thirty.
    """
    title = "Published mixtures: active against total parameters"
    labels = "total parameters: what memory must hold", "active parameters: what one token uses"
    ax, ink = axes_for(ax, theme, 9, 6, title, *labels)
    x, y = frame.total_params / 1e9, frame.active_params / 1e9
    ax.set(xlim=(0.56 * x.min(), 3.6 * x.max()), ylim=(0.56 * y.min(), 2 * y.max()))
    for name in "xy":
        log_axis(ax, name, say="{:g} B".format)
    has_shared = frame.shared_experts > 0
    for of_kind, marker, color, name in ((~has_shared, "o", BLUE, "routed experts only"),
                                         (has_shared, "D", RED, "with shared experts")):  # fmt: skip
        look = {"marker": marker, "color": color, "ec": ink.background, "lw": 0.8, "label": name, "zorder": 3}
        ax.scatter(x[of_kind], y[of_kind], 44, **look)
    name_over(ax, ink)
    ax.figure.canvas.draw()  # settles the layout, and with it where a point lies in pixels
    for name, share in (("all active (dense)", 1), ("one half", 1 / 2), ("one tenth", 1 / 10), ("one in 30", 1 / 30)):
        ends = np.array([ax.get_xlim()[0], min(ax.get_xlim()[1], ax.get_ylim()[1] / share)])
        ax.plot(ends, ends * share, color=ink.grid, lw=1.2, ls="--", zorder=1)
        (x0, y0), (x1, y1) = ax.transData.transform(np.column_stack([ends, ends * share]))
        look = {"rotation": np.degrees(np.arctan2(y1 - y0, x1 - x0)), "rotation_mode": "anchor", "ha": "right"}
        write(ax, name, (0.88 * ends[1], 0.88 * ends[1] * share), ink, halo=True, color=ink.muted, zorder=2, **look)
    label_points(ax, x, y, frame.name, ink)
    return ax


def parameter_bars(parts: Mapping[str, ParameterCount], ax: Axes | None = None, theme: str = "light") -> Axes:
    """Where the parameters of a `TransformerShape` are: a stacked bar for the total, one for the active."""
    parts = {name: count for name, count in parts.items() if count.total > 0}
    values = np.array([[getattr(count, kind) for count in parts.values()] for kind in ("total", "active")], float)
    texts, colors = [*map(short_number, values.sum(axis=1))], [PART_COLORS[name] for name in parts]
    bars = Parts(("total", "active"), tuple(parts), values, colors, texts)
    panel = Panel("Where the parameters are", [bars], Axis(0, 1.12 * float(values[0].sum()), "parameters"))
    return plot(panel, ax, theme, 9, 2.6)


def share_bars(rows: Mapping[str, Mapping[str, int]], ax: Axes | None = None, theme: str = "light") -> Axes:
    """A bar for each row, cut into the shares of its parts; a share is written into its part where it fits.

    rows: what a row counts, and how much of it each part of a model has.
    """
    names = list(dict.fromkeys(name for parts in rows.values() for name, size in parts.items() if size > 0))
    values = [[parts.get(name, 0) / sum(parts.values()) for name in names] for parts in rows.values()]
    bars = Parts(tuple(rows), names, values, [PART_COLORS[name] for name in names])
    x = Axis(0, 1, ticks=[(part / 5, f"{part / 5:.0%}") for part in range(6)])
    return plot(Panel("What each part costs, as a share of the whole", [bars], x), ax, theme, 9, 1.1 + 0.45 * len(rows))


def shape_costs(shapes: Mapping[str, TransformerShape], context_length: int = 0) -> dict[str, dict[str, str]]:
    """What each shape costs, as text for `cost_table`: a column for each shape, a row for each quantity."""
    rows = {
        "total parameters": lambda shape: short_number(shape.count.total),
        "active parameters": lambda shape: short_number(shape.count.active),
        "active / total": lambda shape: f"{shape.count.active / shape.count.total:.1%}",
        "FLOPs for a token": lambda shape: short_number(shape.flops_per_token(context_length)),
        "memory in bfloat16": lambda shape: f"{shape.memory_gb():,.3g} GB",
    }
    return {row: {name: say(shape) for name, shape in shapes.items()} for row, say in rows.items()}


def parameter_growth(counts: Mapping[int, ParameterCount], ax: Axes | None = None, theme: str = "light") -> Axes:
    """Total and active parameters against the number of experts; both axes logarithmic."""
    ax, ink = axes_for(ax, theme, 9, 4, "More experts, K unchanged: what grows", "number of experts E", "parameters")
    for name, color, style in (("total", ink.lines[0], "-o"), ("active", ink.lines[3], "-s")):
        values = [getattr(count, name) for count in counts.values()]
        ax.plot(list(counts), values, style, color=color, lw=2, ms=6)
        said = f"{name} {short_number(values[-1])}"
        write(ax, said, (max(counts), values[-1]), ink, (8, 0), color=color, weight="bold")
    ax.set_xlim(0.85 * min(counts), 2 * max(counts))
    log_axis(ax, "x", list(counts))
    log_axis(ax, "y")
    return ax


def step_time_bars(milliseconds: Mapping[str, Sequence[float]], ax: Axes | None = None, theme: str = "light") -> Axes:
    """The median time of a training step of each model; a line spans the middle half of the times."""
    label = "milliseconds for a training step on this machine"
    ax, ink = axes_for(ax, theme, 9, 2.6, "One training step: forward and backward", label)
    low, median, high = (np.array([np.quantile(own, q) for own in milliseconds.values()]) for q in (0.25, 0.5, 0.75))
    places = np.arange(len(median))
    ax.barh(places, median, height=0.6, color=[ink.lines[i] for i in model_inks(milliseconds)])
    ax.hlines(places, low, high, color=ink.background, lw=4)
    ax.hlines(places, low, high, color=ink.muted, lw=2)
    for place, value, end in zip(places, median, np.maximum(median, high) + 0.015 * high.max()):
        write(ax, f"{value:.1f} ms", (end, place), ink)
    ax.set_yticks(places, milliseconds)
    ax.set(xlim=(0, 1.15 * high.max()), ylim=(len(places) - 0.5, -0.5))
    return ax
