"""Pictures of what models cost: where parameters are, how many are active, how fast it is, what an exchange takes."""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.dates import YearLocator, date2num

from moe_lessons.analysis.counting import ParameterCount, TransformerShape
from moe_lessons.analysis.roofline import CACHE_BYTES, WEIGHT_BYTES, ModelSizes, on_machine
from moe_lessons.plots import theme as style
from moe_lessons.plots.marks import Arrows, Axis, Boxes, Panel, Parts, Table
from moe_lessons.plots.panels.block import box, words
from moe_lessons.plots.still import plot
from moe_lessons.plots.theme import (
    LIGHT,
    PALETTE,
    TEXT_SIZE,
    axes_for,
    log_axis,
    model_inks,
    name_over,
    percent,
    short_number,
)

MODEL_PARTS = ("experts", "attention", "embedding", "head", "shared experts", "router", "attention scores", "norms")
MODEL_PART_COLORS = dict(zip(MODEL_PARTS, PALETTE)) | {"FFN": PALETTE[0], "attention, head, dense FFNs": PALETTE[1]}


def edges_over_time(costs: pd.DataFrame, named: Collection[str] = ()) -> Axes:
    """Draw the upper edge of each of `release_costs()` over the day of its release, those in 4 bits in a colour, and
    some with their names."""
    ax = axes_for(7.2, 4.4, "Upper edge over dense, 4×, on an H200", ylabel="sequences decoded together")
    is_small = costs.weights == "4-bit"
    for kind, color, own in (("8 or 16 bits", LIGHT.muted, ~is_small), ("experts in 4 bits", LIGHT.lines[4], is_small)):
        ax.scatter(costs.day[own], costs.upper[own], s=44, color=color, label=kind, zorder=3)
    ax.set(ylim=(60, 9000), xlim=(pd.Timestamp("2023-12-01"), pd.Timestamp("2027-01-15")))
    log_axis(ax, "y", (100, 200, 500, 1000, 2000, 5000), say="{:,.0f}".format, grid="y")
    ax.xaxis.set_major_locator(YearLocator())
    shown = costs.dropna(subset="upper")
    style.label_points(ax, date2num(shown.day), shown.upper, [name if name in named else "" for name in shown.index])
    return name_over(ax)


def parameter_panel(parts: Mapping[str, ParameterCount]) -> Panel:
    """Show where the parameters of a model are: a stacked bar for the total, one for the active."""
    parts = {name: count for name, count in parts.items() if count.total > 0}
    values = np.array([[getattr(count, kind) for count in parts.values()] for kind in ("total", "active")], float)
    texts, colors = [*map(short_number, values.sum(axis=1))], [MODEL_PART_COLORS[name] for name in parts]
    bars = Parts(("total", "active"), tuple(parts), values, colors, texts)
    return Panel("Where the parameters are", [bars], Axis(0, 1.12 * float(values[0].sum()), "parameters"))


def layer_panel(shape: TransformerShape, context: int, title: str) -> Panel:
    """Show the matrices in a layer of a dense model to one scale: an area is its parameters, and half its FLOPs for a
    token. In a frame: the products with the `context` tokens attended to, which have no parameters."""
    D = shape.d_model
    q, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    free = "scores, sum"  # without parameters
    attention = {"queries": q, "keys": kv, "values": kv, free: round(2 * context * q / D), "output": q}  # columns
    ffn = dict.fromkeys(("gate", "up", "down"), shape.d_ff)
    work = sum((attention | ffn).values())
    scale = 860 / work
    left = 24
    heads, boxes = [], []
    arrows = [((0, 22, 980, 22), -1, -1)]
    high = D * scale
    weights = work - attention[free]
    for name, part, fill in (("Attention: between tokens", attention, 9), ("FFN: each token by itself", ffn, 7)):
        columns = sum(part.values())
        weighted = columns - part.get(free, 0)  # that have parameters
        parameters = f"parameters {D * weighted:,}: {percent(weighted / weights)}"
        costs = (parameters, f"FLOPs {2 * D * columns:,}: {percent(columns / work)}")
        heads += [words(left, y, text) for y, text in zip((60, high + 92, high + 110), (name, *costs))]
        arrows.append(((left + 8, 24, left + 8, 50), -1, -1))
        for text, wide in part.items():
            place = (left + wide * scale / 2, 76 + high / 2, wide * scale, high)
            is_free = text == free
            says = f"{text}: {0 if is_free else D * wide:,} parameters, {2 * D * wide:,} FLOPs"
            boxes.append(box(*place, text if wide * scale > 30 else text[0], 1 if is_free else fill, says=says))
            left += wide * scale + 4
        arrows.append(((left - 12, 74, left - 12, 26), -1, -1))
        left += 28
    heads.append(words(24, 10, f"residual stream, {D:,} numbers for each token: each part reads it and adds to it"))
    marks = [Arrows(*zip(*arrows)), Boxes(*zip(*boxes)), Boxes(*zip(*heads), strong=True)]
    return Panel(title, marks, Axis(0, 980, ticks=()), Axis(high + 120, 0, ticks=()), 12, 760, int(high) + 120)


def share_bars(rows: Mapping[str, Mapping[str, int]]) -> Axes:
    """Draw a bar for each row, cut into the shares of its parts. rows: what it counts -> how much each part has."""
    names = list(dict.fromkeys(name for parts in rows.values() for name, size in parts.items() if size > 0))
    values = [[parts.get(name, 0) / sum(parts.values()) for name in names] for parts in rows.values()]
    bars = Parts(tuple(rows), names, values, [MODEL_PART_COLORS[name] for name in names])
    shares = Axis(0, 1, ticks=[(part / 5, percent(part / 5)) for part in range(6)])
    made = Panel("Parts of a model, as shares of its parameters", [bars], shares)
    return plot(made, width=7.2, height=1.5 + 0.5 * len(rows))


def cost_table(models: Mapping[str, ModelSizes], context: int, dtype: str, machine: pd.Series, batch: int = 1) -> Table:
    """Say what each model costs in weights of this type on a row of `roofline.machines`, while it decodes `batch`
    sequences of `context` tokens together."""
    fits = f"fits into {size_words(machine.memory_bytes)}"
    sequences = "1 sequence" if batch == 1 else f"{batch:,} sequences"
    columns = []
    for m in models.values():
        there = on_machine(m, machine, dtype, context, batch)
        cache = CACHE_BYTES[dtype] * batch * m.cache(context)
        column = {
            "total parameters": short_number(m.total),
            "active parameters": short_number(m.active),
            "active / total": f"{100 * m.active / m.total:.1f} %",
            "FLOPs per token": short_number(m.flops(context)),
            f"weights in {dtype}": size_words(WEIGHT_BYTES[dtype] * m.total),
            f"KV cache of {sequences} of {context:,} tokens": "not counted" if m.cached is None else size_words(cache),
            fits: "yes" if there["fits"] else "no",
            f"{context:,}-token sequences that fit": "not counted" if there["texts"] is None else f"{there['texts']:,}",
            "weights loaded per step": size_words(WEIGHT_BYTES[dtype] * m.read(batch)),
            f"tokens/s at batch size {batch:,}": _three_digits(there["tokens_per_second"]),
        }
        columns.append(column)
    cells = [[column[name] for column in columns] for name in columns[0]]
    return Table(tuple(models), tuple(columns[0]), cells, model_inks(models))


def size_words(count: float) -> str:
    """Write a number of bytes."""
    return f"{_three_digits(count / 1e9)} GB" if count >= 1e9 else f"{_three_digits(count / 1e6)} MB"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if 100 <= value < 1e15 else f"{value:.3g}"


def speed_bars(speeds: pd.DataFrame) -> Axes:
    """Draw how fast each model decodes one sequence: a bar for each row of `decode_speed` at one batch size."""
    ax = axes_for(7.2, 2.6, "Decoding at batch size 1: tokens per second", "tokens per second on this machine")
    colors = [LIGHT.lines[i] for i in model_inks(speeds["model"])]
    bars = ax.barh(speeds["model"], speeds["tokens_per_second"], 0.6, color=colors)
    ax.bar_label(bars, fmt="%.0f", padding=4, color=LIGHT.foreground, fontsize=TEXT_SIZE)
    ax.set_xlim(0, 1.15 * speeds["tokens_per_second"].max())
    ax.invert_yaxis()
    return ax
