"""Pictures of how fast mixtures write: where a step's time goes, and what others measured on real accelerators."""

import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_lessons.analysis.inference import Machine, union_law
from moe_lessons.analysis.roofline import WEIGHT_BYTES, ModelSizes, step_seconds
from moe_lessons.analysis.speedup import Speedups
from moe_lessons.plots.labels import EVEN
from moe_lessons.plots.marks import Axis, Boxes, Heat, Line, Panel, Points
from moe_lessons.plots.theme import LIGHT, annotate, axes_for, log_axis, model_inks, name_over

LEVELS = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12)  # of a speedup, as lines
LEGEND = [("speedup ¼", -2), ("½", -1), ("1", 0), ("2", 1), ("4", 2), ("16", 4)]  # of their logarithm, as colours
LAST = 12  # the largest batch size of a map is 2¹²
ROWS = 4  # of a `stream_panel`, for each model: what memory holds, the times of a step, and a gap
KINDS = {"one text": ("o", 0), "full load": ("s", 3), "training": ("D", 4)}  # marker and ink


def say_work(work: str) -> str:
    """Say in the field's words what was measured, of `published_speeds()`."""
    return work.replace("one text", "batch size 1")


def plot_published_speeds(frame: pd.DataFrame) -> Axes:
    """Draw the speedups of `published_speeds()` over a dense model: predicted and measured."""
    promise, had, y = frame.dense_b / frame.mixture_active_b, frame.mixture_figure / frame.dense_figure, frame.index
    ax = axes_for(7.2, 1.6 + 0.55 * len(frame), "Predicted and measured speedups", "speedup over the dense model")
    ax.hlines(y, had, promise, color=LIGHT.muted, lw=1.2)
    ax.plot(promise, y, "|", ms=15, mew=2.4, color=LIGHT.foreground, label="predicted")
    for kind, (marker, ink) in KINDS.items():
        own = frame.work.str.startswith(kind)
        style = {"ls": "", "ms": 8, "color": LIGHT.lines[ink], "zorder": 3}
        ax.plot(had[own], y[own], marker, **style, label=say_work(kind))
    for row, value in zip(y, had):
        annotate(ax, f"{value:.2g}", (value, row), (0, 11), ha="center", halo=LIGHT.background)
    ax.axvline(1, ls="--", lw=1.2, color=LIGHT.foreground)
    ax.set_yticks(y, frame.mixture + " : " + frame.dense + ",\n" + frame.work.map(say_work))
    ax.set(xlim=(0.05, 14), ylim=(len(frame) - 0.5, -0.8))
    return name_over(log_axis(ax, "x", (0.1, 0.2, 0.5, 1, 2, 5, 10)))


EDGE_INKS = {"lower edge": 4, "upper edge": 3}  # of the lines on a map
TITLE = "Speedup of the MoE over a dense model"
REGIONS = "MoE slower", "MoE faster"
CAPTION = f"At an edge both are as fast (derived); between, the MoE is slower. About as fast: within {100 * EVEN:g} %."


def edge_lines(edges: Callable[[float], tuple[float, float] | None], top: float) -> list[Line]:
    """Draw the two edges over the width of the dense model, from 1 to `top`, where they lie on the map. edges: width ->
    the lower and the upper batch size, or None."""
    found = [(width, each) for width in np.linspace(1, top, 8 * LAST + 1) if (each := edges(width))]
    lines = []
    for place, (name, ink) in enumerate(EDGE_INKS.items()):
        points = [(width, np.log2(each[place])) for width, each in found if each[place] <= 2**LAST]
        lines += [Line(*np.array(points).T, name, ink)] if len(points) > 1 else []
    return lines


def speedup_panel(
    found: Speedups, top: float, heat: Mapping[str, Any], marks: Sequence[Any] = (),
    points: Sequence[tuple[float, int, float]] = (), caption: str = "", **more: Any,
) -> Panel:  # fmt: skip
    """Draw the speedup of a mixture over dense models 1 to `top` times as wide as its active part: colours, and lines
    at `LEVELS`. found: at batch sizes from 1 to 4,096, evenly spaced in their logarithm. heat: the rest of the mark,
    see `Heat`. marks: over it. points: (width, batch size, speedup) as measured, in the colour that the map has for
    their speedup; at the edges they have room. caption: under what the lines are. more: of the panel."""
    room = 0.02 * top * bool(points)
    low, high = 1 - room, top + room
    z = np.log2(found.at(np.linspace(low, high, len(found.moe)))).astype("f4")  # (rows, columns)
    contours = np.array([found.widths(level) for level in LEVELS])
    x, y = np.array([point[0] for point in points]), np.log2([point[1] for point in points])
    beside = np.where(x < 0.95 * top, 0.012, -0.055) * top  # right of a point, or left
    names = [f"{level:g}" for level in LEVELS]
    drawn = [Heat(z, 4.0, contours.astype("f4"), names, REGIONS, legend=LEGEND, **heat), *marks]
    if points:
        speedup = np.array([each for *_, each in points])
        texts = [f"{each:#.2g}".rstrip(".") for each in speedup]
        places = np.column_stack([x + beside, y.clip(0.35), 0 * x, 0 * x + 0.4])
        none = [-1] * len(texts)
        said = Boxes(places, texts, [0] * len(texts), none, none, [""] * len(texts), strong=True)
        drawn += [Points(x, y, fill=np.log2(speedup).astype("f4"), most=4.0), said]
    x = Axis(low, high, "dense FFN width, × the MoE's active width")
    y = Axis(0, LAST, "batch size", [(n, f"{2**n:,}") for n in range(LAST + 1)])
    return Panel(TITLE, drawn, x, y, caption="\n".join(filter(None, (CAPTION, caption))), **more)


class Stream:
    """The loading of the weights of a model, the `parts`, at best: a step takes `step_seconds`. A batch reads as many
    experts as the `union_law` expects, drawn anew for each step, the same in all layers. Times in seconds; the KV cache
    is left out."""

    def __init__(self, sizes: ModelSizes, roof: Machine, dtype: str, batch: int):
        self.batch, each = batch, WEIGHT_BYTES[dtype] / roof.bytes_per_second  # of a weight
        self.experts, self.touched, self.parts = 0, 0, [("FFN", each * sizes.ffn)]
        for group in sizes.groups[:1]:
            self.experts, self.touched = group.num_experts, round(union_law(group.num_experts, group.top_k, batch))
            self.parts = [(f"E{e}", each * group.layers * group.expert) for e in range(self.experts)]
        whole = each * (sizes.total - sizes.looked_up - sizes.outside)  # of what is read, if all is
        self.parts.insert(0, ("", whole - sum(part[1] for part in self.parts)))
        self.reading = sum(part[1] for part, is_read in zip(self.parts, self.read(0)) if is_read)
        self.computing = batch * sizes.flops() / roof.flops_per_second
        self.step = max(self.reading, float(step_seconds(sizes, roof, dtype, batch)))

    def read(self, number: int) -> list[bool]:
        """Say which parts the step of this number reads."""
        chosen = Random(number).sample(range(self.experts), self.touched)
        return [True, *(e in chosen for e in range(self.experts))] if self.experts else [True, True]

    def wrote(self, seconds: float) -> int:
        """Count the tokens that are written by then."""
        return self.batch * int(seconds / self.step + 1e-9)


def stream_panel(streams: Mapping[str, Stream], seconds: float) -> Panel:
    """Show what memory holds of each model, a box as wide as the time to load it, and full what this step has loaded;
    under it, how long the step loads and computes. The experts of all layers are one box."""
    inks, boxes, ticks = model_inks(streams), [], []
    for row, ((name, stream), ink) in zip(range(0, ROWS * len(streams), ROWS), zip(streams.items(), inks)):
        number = max(0, math.ceil(seconds / stream.step - 0.1) - 1)  # what has just ended is still shown
        passed, x, start = 1000 * (seconds - number * stream.step), 0, 0
        gap = 30 * min(long for _, long in stream.parts)  # 3 % of the smallest box
        for place, ((text, long), is_read) in enumerate(zip(stream.parts, stream.read(number))):
            long, says = 1000 * long, f"{1000 * long:.3g} ms to load"
            expert, fill = (place - 1, 3) if place and stream.experts else (-1, 4 + ink if place else 2)
            full = min(max(passed - start, 0), long) if is_read else 0
            start += long * is_read
            for wide, kind, says_it in ((long, 1, 2 * full < long), (full, fill, 2 * full >= long)):
                place_of = x + (wide - gap) / 2, row, wide - gap, 0.8
                boxes += [(place_of, text if says_it else "", kind, expert, says)] if wide > gap else []
            x += long
        times = {"loading": 1000 * stream.reading, "arithmetic": 1000 * stream.computing}
        for below, (part, whole) in enumerate(times.items(), 1):
            for long, fill in ((whole, 1), (min(passed, whole), 4 + ink)):
                boxes.append(((long / 2, row + below, long, 0.5), "", fill, -1, f"{part}: {whole:.3g} ms"))
            ticks.append((row + below, part))
        boxes.append(((times["loading"], row + 1, 0, 0.8), f" {stream.wrote(seconds):,} tokens", 0, -1, ""))
        ticks.append((row, f"{name}: in memory"))
    places, texts, fills, experts, says = zip(*boxes)
    mark = Boxes(np.array(places), texts, fills, experts, [-1] * len(boxes), says, strong=True)
    end = 1.3 * max(x + w / 2 for x, _, w, _ in places)  # room for the last words, on a phone too
    axes = Axis(0, float(end), "milliseconds"), Axis(ROWS * len(streams) - 1.5, -0.6, ticks=ticks)
    title = f"Tokens after {1000 * seconds:.3g} ms. White: not loaded in this step (grey: attention and other)"
    return Panel(title, [mark], *axes, width=12, height=320)
