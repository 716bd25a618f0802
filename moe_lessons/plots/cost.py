"""Pictures of what a model costs: where its parameters are, how many are active, what a step takes."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_lessons.analysis.cost import ParameterCount, TransformerShape
from moe_lessons.plots import theme as style
from moe_lessons.plots.marks import Axis, Panel, Parts
from moe_lessons.plots.still import plot

PARTS = ("experts", "attention", "embedding", "head", "shared experts", "router", "attention scores", "norms")
PART_COLORS = dict(zip(PARTS, style.PALETTE)) | {"FFN": style.PALETTE[0]}


def published_models_scatter(frame: pd.DataFrame, ax: Axes | None = None, theme: str = "light") -> Axes:
    """Active against total parameters, one point for each model of `published_models()`; both axes are logarithmic.

    Dashed lines: all parameters active (a dense model), one half, one tenth, one in thirty.
    """
    title = "Published mixtures: active against total parameters"
    labels = "total parameters: what memory must hold", "active parameters: what one token uses"
    ax, ink = style.axes_for(ax, theme, 9, 6, title, *labels)
    x, y = frame.total_params / 1e9, frame.active_params / 1e9
    right, top = 3.6 * x.max(), 2 * y.max()
    ax.set(xlim=(0.56 * x.min(), right), ylim=(0.56 * y.min(), top))
    for name in "xy":
        style.log_axis(ax, name, say="{:g} B".format)
    has_shared = frame.shared_experts > 0
    look = {"s": 44, "ec": ink.background, "lw": 0.8, "zorder": 3}
    ax.scatter(x[~has_shared], y[~has_shared], marker="o", color=style.PALETTE[0], label="routed experts only", **look)
    ax.scatter(x[has_shared], y[has_shared], marker="D", color=style.PALETTE[5], label="with shared experts", **look)
    for name, share in (("all active (dense)", 1), ("one half", 1 / 2), ("one tenth", 1 / 10), ("one in 30", 1 / 30)):
        ends = np.array([0.56 * x.min(), min(right, top / share)])
        ax.plot(ends, ends * share, color=ink.grid, lw=1.2, ls="--", zorder=1)
        look = {"color": ink.muted, "fontsize": style.TEXT_SIZE, "ha": "right", "va": "center", "zorder": 2}
        look |= {"rotation": np.degrees(np.arctan(share)), "transform_rotates_text": True, "rotation_mode": "anchor"}
        box = {"fc": ink.background, "lw": 0, "pad": 0.5}
        ax.text(0.88 * ends[1], 0.88 * ends[1] * share, name, bbox=box, **look)
    style.name_over(ax, ink)
    style.label_points(ax, x, y, frame.name, ink)
    return ax


def parameter_bars(parts: Mapping[str, ParameterCount], ax: Axes | None = None, theme: str = "light") -> Axes:
    """Where the parameters of a `TransformerShape` are: a stacked bar for the total, one for the active."""
    parts = {name: count for name, count in parts.items() if count.total > 0}
    values = np.array([[getattr(count, kind) for count in parts.values()] for kind in ("total", "active")], float)
    texts, colors = [*map(style.short_number, values.sum(axis=1))], [PART_COLORS[name] for name in parts]
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
    """What each shape costs, as texts: a row for each quantity, in it a column for each shape."""
    rows = {
        "total parameters": lambda shape: style.short_number(shape.count.total),
        "active parameters": lambda shape: style.short_number(shape.count.active),
        "active / total": lambda shape: f"{shape.count.active / shape.count.total:.1%}",
        "FLOPs for a token": lambda shape: style.short_number(shape.flops_per_token(context_length)),
        "weights in bfloat16": lambda shape: f"{shape.memory_gb():,.3g} GB",
        "KV cache of one text": lambda shape: f"{shape.kv_cache_gb(context_length):,.3g} GB",
    }
    return {row: {name: say(shape) for name, shape in shapes.items()} for row, say in rows.items()}


def parameter_growth(counts: Mapping[int, ParameterCount], ax: Axes | None = None, theme: str = "light") -> Axes:
    """Total and active parameters against the number of experts; both axes logarithmic."""
    title, labels = "More experts, K unchanged: what grows", ("number of experts E", "parameters")
    ax, ink = style.axes_for(ax, theme, 9, 4, title, *labels)
    for name, color, line in (("total", ink.lines[0], "-o"), ("active", ink.lines[3], "-s")):
        values = [getattr(count, name) for count in counts.values()]
        ax.plot(list(counts), values, line, color=color, lw=2, ms=6)
        said = f"{name} {style.short_number(values[-1])}"
        style.annotate(ax, said, (max(counts), values[-1]), ink, (8, 0), color=color, weight="bold")
    ax.set_xlim(0.85 * min(counts), 2 * max(counts))
    style.log_axis(ax, "x", list(counts))
    style.log_axis(ax, "y")
    return ax


def step_time_bars(milliseconds: Mapping[str, Sequence[float]], ax: Axes | None = None, theme: str = "light") -> Axes:
    """The median time of a training step of each model; a line spans the middle half of the times."""
    low, median, high = np.quantile([*milliseconds.values()], (0.25, 0.5, 0.75), axis=1)
    ax, ink = style.axes_for(ax, theme, 9, 2.6, "One training step: forward and backward")
    look = {"xerr": (median - low, high - median), "error_kw": {"ecolor": ink.muted, "elinewidth": 2}}
    label = "milliseconds for a training step on this machine"
    return _bars(ax, ink, dict(zip(milliseconds, median)), label, "%.1f ms", high.max(), **look)


def speed_bars(speeds: pd.DataFrame, ax: Axes | None = None, theme: str = "light") -> Axes:
    """How fast each model writes one text: a bar for each row of `decode_speed` at one batch size."""
    ax, ink = style.axes_for(ax, theme, 9, 2.6, "Writing one text: tokens per second")
    values = dict(zip(speeds["model"], speeds["tokens_per_second"]))
    return _bars(ax, ink, values, "tokens per second on this machine", "%.0f", max(values.values()))


def _bars(ax: Axes, ink: style.Theme, values: Mapping[str, float], label: str, fmt: str, most: float, **look) -> Axes:
    colors = [ink.lines[i] for i in style.model_inks(values)]
    bars = ax.barh(list(values), list(values.values()), 0.6, color=colors, **look)
    ax.bar_label(bars, fmt=fmt, padding=4, color=ink.foreground, fontsize=style.TEXT_SIZE)
    ax.set(xlim=(0, 1.15 * most), xlabel=label)
    ax.invert_yaxis()
    return ax
