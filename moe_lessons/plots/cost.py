"""Pictures of what a model costs: where its parameters are, how many are active, what a step takes."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter

from moe_lessons.analysis.cost import ParameterCount, TransformerShape
from moe_lessons.plots.theme import PALETTE, Theme, axes_for

BLUE, ORANGE, GREEN, PINK, SKY, RED, _, GREY = PALETTE
PART_COLORS = {
    "experts": BLUE,
    "FFN": BLUE,  # a dense one
    "shared experts": SKY,
    "attention": ORANGE,
    "attention scores": PALETTE[6],
    "embedding": GREEN,
    "head": PINK,
    "router": RED,
    "norms": GREY,
}

# where a name may stand, seen from its point, best first: offset in points, alignment
LABEL_PLACES = (
    (8, 0, "left", "center"), (-8, 0, "right", "center"),
    (0, 8, "center", "bottom"), (0, -8, "center", "top"),
    (6, 6, "left", "bottom"), (6, -6, "left", "top"),
    (-6, 6, "right", "bottom"), (-6, -6, "right", "top"),
)  # fmt: skip


def short_number(n: float, digits: int = 3) -> str:
    """A large number with its unit, to three digits: 46,702,792,704 is '46.7 B', 1,568 is '1.57 K'.

    >>> short_number(46_702_792_704), short_number(999_999), short_number(12)
    ('46.7 B', '1 M', '12')
    """
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " K")):
        if n >= size * (1 - 0.5 * 10**-digits):
            return f"{n / size:.{digits}g}{unit}"
    return f"{n:.{digits}g}"


def published_models_scatter(frame: pd.DataFrame, ax: Axes | None = None, theme: str = "light") -> Axes:
    """Active against total parameters, one point for each model of `published_models()`.

    Both axes are logarithmic. Dashed lines: all parameters active (a dense model), one half, one tenth, one
    in thirty.
    """
    ax, ink = _axes(ax, theme, "Published mixtures: active against total parameters", 9, 6)
    x, y = frame.total_params / 1e9, frame.active_params / 1e9
    low, high = 10 ** (np.log10(x.min()) - 0.25), 10 ** (np.log10(x.max()) + 0.55)
    bottom, top = 10 ** (np.log10(y.min()) - 0.25), 10 ** (np.log10(y.max()) + 0.3)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, top))
    shares = {"all active (dense)": 1, "one half": 1 / 2, "one tenth": 1 / 10, "one in 30": 1 / 30}
    for share in shares.values():
        ax.plot([low, high], [low * share, high * share], color=ink.grid, lw=1.2, ls="--", zorder=1)
    has_shared = frame.shared_experts > 0
    kinds = (
        (~has_shared, "o", BLUE, "routed experts only"),
        (has_shared, "D", RED, "with shared experts"),
    )
    for of_kind, marker, color, name in kinds:
        ax.scatter(x[of_kind], y[of_kind], s=44, marker=marker, color=color, edgecolor=ink.background, lw=0.8,
                   label=name, zorder=3)  # fmt: skip
    gigas = FuncFormatter(lambda value, _: f"{value:g} B")
    ax.xaxis.set_major_formatter(gigas)
    ax.yaxis.set_major_formatter(gigas)
    ax.set_xlabel("total parameters: what memory must hold", color=ink.foreground, fontsize=11)
    ax.set_ylabel("active parameters: what one token uses", color=ink.foreground, fontsize=11)
    ax.legend(loc="upper left", frameon=False, labelcolor=ink.foreground, fontsize=10)
    ax.figure.canvas.draw()  # settles the layout, and with it where a point lies in pixels
    for name, share in shares.items():
        _label_line(ax, share, name, ink)
    label_points(ax, x, y, frame.name, ink)
    return ax


def parameter_bars(parts: Mapping[str, ParameterCount], ax: Axes | None = None, theme: str = "light") -> Axes:
    """Where the parameters of a `TransformerShape` are: a stacked bar for the total, one for the active."""
    ax, ink = _axes(ax, theme, "Where the parameters are", 9, 2.6)
    parts = {name: count for name, count in parts.items() if count.total > 0}
    rows = {"total": [c.total for c in parts.values()], "active": [c.active for c in parts.values()]}
    widest = sum(rows["total"])
    for height, (row, sizes) in zip((1, 0), rows.items()):
        left = 0
        for name, size in zip(parts, sizes):
            label = name if row == "total" else None  # one entry in the legend for both
            ax.barh(height, size, left=left, height=0.62, color=PART_COLORS[name], label=label)
            text = f"{name} {short_number(size)}"
            if size > 0.0115 * len(text) * widest:  # it fits
                ax.text(left + size / 2, height, text, ha="center", va="center", fontsize=10,
                        color="#ffffff" if name == "experts" else "#000000")  # fmt: skip
            left += size
        ax.text(left + 0.01 * widest, height, short_number(left), va="center", fontsize=11, weight="bold",
                color=ink.foreground)  # fmt: skip
    ax.set_yticks([1, 0], list(rows), fontsize=11)
    ax.set(xlim=(0, 1.12 * widest), ylim=(-0.5, 1.5))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    ax.set_xlabel("parameters", color=ink.foreground)
    tight = {"handlelength": 0.8, "handletextpad": 0.4, "columnspacing": 0.9, "borderaxespad": 0.1}
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(parts), frameon=False, fontsize=9,
              labelcolor=ink.foreground, **tight)  # fmt: skip
    return ax


def share_bars(rows: Mapping[str, Mapping[str, int]], ax: Axes | None = None, theme: str = "light") -> Axes:
    """A bar for each row, cut into the shares of its parts; a share of 5 % or more is written into it.

    rows: what a row counts, and how much of it each part of a model has.
    """
    title = "What each part costs, as a share of the whole"
    ax, ink = _axes(ax, theme, title, 9, 1.1 + 0.45 * len(rows))
    ax.set_title(title, loc="left", fontsize=11, color=ink.foreground, pad=24)  # the legend lies between
    names = dict.fromkeys(name for parts in rows.values() for name, size in parts.items() if size > 0)
    for place, parts in zip(range(len(rows))[::-1], rows.values()):
        left, whole = 0.0, sum(parts.values())
        for name in (name for name in names if parts.get(name)):
            share = parts[name] / whole
            ax.barh(place, share, left=left, height=0.66, color=PART_COLORS[name])
            if share >= 0.05:
                color = "#ffffff" if PART_COLORS[name] == BLUE else "#000000"
                ax.text(left + share / 2, place, f"{share:.0%}", ha="center", va="center", fontsize=10, color=color)
            left += share
    for name in names:
        ax.barh(0, 0, color=PART_COLORS[name], label=name)  # one entry in the legend for all rows
    ax.set_yticks(range(len(rows))[::-1], list(rows), fontsize=10)
    ax.set(xlim=(0, 1))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    tight = {"handlelength": 0.8, "handletextpad": 0.4, "columnspacing": 0.9, "borderaxespad": 0.1}
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=len(names), frameon=False, fontsize=9,
              labelcolor=ink.foreground, **tight)  # fmt: skip
    return ax


def shape_costs(shapes: Mapping[str, TransformerShape], context_length: int = 0) -> dict[str, dict[str, str]]:
    """What each shape costs, as text for `cost_table`: a column for each shape, a row for each quantity."""
    rows: dict[str, dict[str, str]] = {}
    for name, shape in shapes.items():
        count = shape.count
        cells = {
            "total parameters": short_number(count.total),
            "active parameters": short_number(count.active),
            "active / total": f"{count.active / count.total:.1%}",
            "FLOPs for a token": short_number(shape.flops_per_token(context_length)),
            "memory in bfloat16": f"{shape.memory_gb():,.3g} GB",
        }
        for row, cell in cells.items():
            rows.setdefault(row, {})[name] = cell
    return rows


def parameter_growth(counts: Mapping[int, ParameterCount], ax: Axes | None = None, theme: str = "light") -> Axes:
    """Total and active parameters against the number of experts; both axes logarithmic."""
    ax, ink = _axes(ax, theme, "More experts, K unchanged: what grows", 9, 4)
    experts = list(counts)
    for name, color, style in (("total", BLUE, "-o"), ("active", RED, "-s")):
        values = [getattr(count, name) for count in counts.values()]
        ax.plot(experts, values, style, color=color, lw=2, ms=6)
        ax.annotate(f"{name} {short_number(values[-1])}", (experts[-1], values[-1]), (8, 0), color=color,
                    textcoords="offset points", va="center", fontsize=11, weight="bold")  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlim(experts[0] * 0.85, experts[-1] * 2)
    ax.set_xticks(experts, [str(n) for n in experts])
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    ax.set_xlabel("number of experts E", color=ink.foreground)
    ax.set_ylabel("parameters", color=ink.foreground)
    return ax


def step_time_bars(milliseconds: Mapping[str, Sequence[float]], ax: Axes | None = None, theme: str = "light") -> Axes:
    """The median time of a training step of each model; a line spans the middle half of the times."""
    ax, ink = _axes(ax, theme, "One training step: forward and backward", 9, 2.6)
    names = list(milliseconds)
    low, median, high = (np.array([np.quantile(milliseconds[n], q) for n in names]) for q in (0.25, 0.5, 0.75))
    places = np.arange(len(names))[::-1]
    ax.barh(places, median, height=0.6, color=PALETTE[: len(names)])
    ax.hlines(places, low, high, color=ink.foreground, lw=2)
    for place, value, end in zip(places, median, np.maximum(median, high)):
        ax.text(end + 0.015 * high.max(), place, f"{value:.1f} ms", va="center", fontsize=11, color=ink.foreground)
    ax.set_yticks(places, names, fontsize=11)
    ax.set(xlim=(0, 1.15 * high.max()))
    ax.set_xlabel("milliseconds for a training step on this machine", color=ink.foreground)
    return ax


def _axes(ax: Axes | None, theme: str, title: str, width: float, height: float) -> tuple[Axes, Theme]:
    """`ax`, or the axes of a new figure of `width` × `height` inches, and the theme to draw with."""
    ax, ink = axes_for(ax, theme, width, height)
    ax.set_title(title, loc="left", fontsize=11, color=ink.foreground)
    ax.set_facecolor(ink.background)
    ax.tick_params(colors=ink.muted, labelcolor=ink.foreground, labelsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(ink.grid)
    return ax, ink


def _label_line(ax: Axes, share: float, name: str, ink: Theme) -> None:
    """Write the name of a diagonal on it, along it, near its upper end."""
    x = 0.88 * min(ax.get_xlim()[1], ax.get_ylim()[1] / share)
    (x0, y0), (x1, y1) = ax.transData.transform([(x / 10, x / 10 * share), (x, x * share)])
    label = ax.text(x, x * share, name, ha="right", va="center", fontsize=9, color=ink.muted, zorder=2)
    label.set(rotation=np.degrees(np.arctan2(y1 - y0, x1 - x0)), rotation_mode="anchor")
    label.set_bbox({"facecolor": ink.background, "edgecolor": "none", "pad": 1})


def label_points(
    ax: Axes, x: Sequence[float], y: Sequence[float], names: Sequence[str], ink: Theme, places: Sequence = LABEL_PLACES
) -> None:
    """Name each point beside it, at the first of `places` within the axes that covers no point and no other name."""
    pixels = ax.transData.transform(np.column_stack([x, y]))
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in pixels]
    for i, (name, point) in enumerate(zip(names, zip(x, y))):
        label = ax.annotate(name, point, (0, 0), textcoords="offset points", fontsize=9.5, color=ink.foreground)
        label.set(zorder=4, path_effects=[withStroke(linewidth=3, foreground=ink.background)])
        others = taken[:i] + taken[i + 1 :]
        for dx, dy, ha, va in places:
            label.set(position=(dx, dy), ha=ha, va=va)
            box = label.get_window_extent().extents
            is_inside = ax.bbox.x0 <= box[0] and box[2] <= ax.figure.bbox.x1
            if is_inside and not any(_overlap(box, other) for other in others):
                break
        taken.append(tuple(box))


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
