"""Pictures of what a model costs: where its parameters are, how many are active, what a step takes."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_lessons.analysis.cost import ParameterCount
from moe_lessons.analysis.roofline import CACHE_BYTES, WEIGHT_BYTES, ModelSizes, on_machine
from moe_lessons.plots import theme as style
from moe_lessons.plots.marks import Axis, Panel, Parts, Table
from moe_lessons.plots.still import plot

PARTS = ("experts", "attention", "embedding", "head", "shared experts", "router", "attention scores", "norms")
PART_COLORS = dict(zip(PARTS, style.PALETTE)) | {"FFN": style.PALETTE[0], "attention and other": style.PALETTE[1]}


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


def published_features(frame: pd.DataFrame, ax: Axes | None = None, theme: str = "light") -> Axes:
    """What published mixtures took, through time: the experts of a layer of each model of `published_models()`.

    Within a year they stand by their number of experts. Filled: experts narrower than a token (F < D); a diamond: with
    shared experts; green: sigmoid scores. Beside the name: K of E.
    """
    frame = frame.sort_values(["year", "num_experts"], ignore_index=True)
    place = frame.groupby("year").cumcount() / frame.groupby("year").name.transform("size")
    x, y = frame.year + 0.08 + 0.84 * place, frame.num_experts
    title, labels = "Experts in a layer of published mixtures", ("year", "routed experts, E")
    ax, ink = style.axes_for(ax, theme, 9.6, 5.2, title, *labels)
    ax.set(xlim=(frame.year.min() - 0.1, frame.year.max() + 1.3), ylim=(5, 400))
    style.log_axis(ax, "y", (8, 16, 32, 64, 128, 256), "{:g}".format)
    ax.set_xticks(sorted(frame.year.unique()))
    for shared, mark in ((False, "o"), (True, "D")):
        for scores, color in (("softmax", style.PALETTE[0]), ("sigmoid", style.PALETTE[2])):
            for fine in (False, True):
                own = (frame.shared_experts > 0).eq(shared) & frame.scores.eq(scores)
                own &= (frame.d_ff < frame.d_model).eq(fine)
                kind = f"{scores}, {'fine' if fine else 'wide'}{', shared' if shared else ''}"
                look = {"marker": mark, "ec": color, "fc": color if fine else ink.background, "s": 48, "lw": 1.6}
                ax.scatter(x[own], y[own], label=kind if own.any() else "_", zorder=3, **look)
    style.name_over(ax, ink)
    names = [f"{name} ({k} of {e})" for name, k, e in zip(frame.name, frame.top_k, frame.num_experts)]
    style.label_points(ax, x, y, names, ink)
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


def cost_table(models: Mapping[str, ModelSizes], context: int, dtype: str, machine: pd.Series) -> Table:
    """What each model costs in weights of this type on a row of `roofline.machines`: a column for each."""
    context_text, memory = f"{context:,} tokens", f"{machine.memory_bytes / 1e9:g} GB"
    rows = {
        "total parameters": lambda m, _: style.short_number(m.total),
        "active parameters": lambda m, _: style.short_number(m.active),
        "active / total": lambda m, _: f"{m.active / m.total:.1%}",
        "FLOPs for a token": lambda m, _: style.short_number(m.flops(context)),
        f"weights in {dtype}": lambda m, _: f"{WEIGHT_BYTES[dtype] * m.total / 1e9:,.3g} GB",
        f"KV cache of {context_text}": lambda m, _: _cache_text(m, dtype, context),
        f"fits into {memory}": lambda _, on: "yes" if on["fits"] else "no",
        "tokens/s of one text": lambda _, on: f"{on['tokens_per_second']:,.3g}",
        "arithmetic rules from batch": lambda _, on: _count_text(on["arithmetic_batch"]),
    }
    there = {name: on_machine(sizes, machine, dtype, context) for name, sizes in models.items()}
    cells = [[say(sizes, there[name]) for name, sizes in models.items()] for say in rows.values()]
    return Table(tuple(models), tuple(rows), cells, style.model_inks(models))


def _count_text(batch: int | None) -> str:
    return "never" if batch is None else f"{batch:,}"


def _cache_text(sizes: ModelSizes, dtype: str, context: int) -> str:
    known = sizes.cached is not None
    return f"{CACHE_BYTES[dtype] * sizes.cache(context) / 1e9:,.3g} GB" if known else "not counted"


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


def speed_bars(speeds: pd.DataFrame, ax: Axes | None = None, theme: str = "light") -> Axes:
    """How fast each model writes one text: a bar for each row of `decode_speed` at one batch size."""
    ax, ink = style.axes_for(ax, theme, 9, 2.6, "Writing one text: tokens per second")
    values = dict(zip(speeds["model"], speeds["tokens_per_second"]))
    bars = ax.barh(list(values), list(values.values()), 0.6, color=[ink.lines[i] for i in style.model_inks(values)])
    ax.bar_label(bars, fmt="%.0f", padding=4, color=ink.foreground, fontsize=style.TEXT_SIZE)
    ax.set(xlim=(0, 1.15 * max(values.values())), xlabel="tokens per second on this machine")
    ax.invert_yaxis()
    return ax
