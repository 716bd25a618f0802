"""Pictures of how fast mixtures write: where a step's time goes, and what others measured on real accelerators."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_lessons.analysis.inference import union_law
from moe_lessons.analysis.roofline import WEIGHT_BYTES, ModelSizes, both_times, machine_for
from moe_lessons.analysis.step_parts import PARTS
from moe_lessons.plots.marks import Axis, Boxes, Panel
from moe_lessons.plots.theme import LIGHT, PALETTE, annotate, axes_for, log_axis, model_inks, name_over

KINDS = {"one text": ("o", 0), "full load": ("s", 3), "training": ("D", 4)}  # marker and ink


def plot_step_parts(frame: pd.DataFrame) -> Axes:
    """Draw where the time of a step goes, by `analysis.step_parts`: bars in times of the step of the last model."""
    base, last = frame.groupby("batch")["whole"].transform("last"), frame.model.iloc[-1]
    rows = frame.batch.rank(method="dense").astype(int) - 1 + np.arange(len(frame))  # a gap after each batch
    ax = axes_for(9, 0.9 + 0.23 * rows.max(), "Where the time of a step goes", f"times a step of '{last}'")
    left = 0 * base
    for part, color in zip(PARTS, PALETTE):
        ax.barh(rows, frame[part] / base, 0.8, left, color=color, label=part)
        left += frame[part] / base
    ax.vlines(frame.promise / base, rows - 0.5, rows + 0.5, LIGHT.foreground, lw=2.4, label="what its bytes promise")
    for row, end, whole in zip(rows, np.maximum(left, frame.promise / base), frame.whole):
        annotate(ax, f"{whole:.3g} ms", (end, row), (5, 0))
    ax.set_yticks(rows, [f"B = {batch}: {model}" for batch, model in zip(frame.batch, frame.model)])
    ax.set(xlim=(0, 1.15 * left.max()), ylim=(rows.max() + 0.6, -0.6))
    return name_over(ax)


def plot_published_speeds(frame: pd.DataFrame) -> Axes:
    """Draw what `published_speeds()` were promised, and what was had: times the speed of the dense model."""
    promise, had, y = frame.dense_b / frame.mixture_active_b, frame.mixture_figure / frame.dense_figure, frame.index
    ax = axes_for(9, 1.3 + 0.32 * len(frame), "What was promised, and what was had", "times as fast as the dense model")
    ax.hlines(y, had, promise, color=LIGHT.muted, lw=1.2)
    ax.plot(promise, y, "|", ms=15, mew=2.4, color=LIGHT.foreground, label="promised by bytes (one text) or FLOPs")
    for kind, (marker, ink) in KINDS.items():
        own = frame.work.str.startswith(kind)
        look = {"ls": "", "ms": 8, "color": LIGHT.lines[ink], "zorder": 3, "label": f"had: {kind}"}
        ax.plot(had[own], y[own], marker, **look)
    for row, value in zip(y, had):
        annotate(ax, f"{value:.2g}", (value, row), (0, 11), ha="center", halo=True)
    ax.axvline(1, ls="--", lw=1.2, color=LIGHT.foreground)
    ax.set_yticks(y, frame.mixture + " : " + frame.dense + ", " + frame.work)
    ax.set(xlim=(0.05, 14), ylim=(len(frame) - 0.5, -0.8))
    return name_over(log_axis(ax, "x", (0.1, 0.2, 0.5, 1, 2, 5, 10)))


def stream_panel(models: Mapping[str, ModelSizes], context: int, dtype: str, machine: pd.Series, batch: int) -> Panel:
    """Show what memory sends to the processor in a step that writes `batch` texts, one box after the other, as long as
    it takes; under it, how long the processor computes. The experts of all layers are one box; as many as expected."""
    roof, inks, boxes, ticks = machine_for(machine, dtype), model_inks(models), [], []
    for row, (name, m) in zip(range(0, 3 * len(models), 3), models.items()):
        reading, computing = (1000 * seconds for seconds in both_times(m, roof, dtype, batch, context))
        each, group = 1000 * WEIGHT_BYTES[dtype] / roof.bytes_per_second, next(iter(m.groups), None)  # of one weight
        sent = [("FFN", 4 + inks[row // 3], -1, each * m.ffn)]
        if group:
            touched = union_law(group.num_experts, group.top_k, batch)
            each *= group.expert * group.layers * touched / round(touched)
            sent = [(f"E{e}", 3, e, each) for e in range(round(touched))]
        start, sent = 0, [("other", 2, -1, reading - sum(part[3] for part in sent)), *sent]
        for text, look, expert, long in sent:
            boxes.append(((start + long / 2, row, 0.97 * long, 0.8), text, look, expert, f"{long:.3g} ms to read"))
            start += long
        boxes.append(((computing / 2, row + 1, computing, 0.8), "", 1, -1, "arithmetic"))
        boxes += [((x, y, 0, 0.8), f" {x:.3g} ms", 0, -1, "") for x, y in ((reading, row), (computing, row + 1))]
        ticks += [(row, f"{name}: memory sends"), (row + 1, "the processor computes")]
    places, texts, looks, experts, says = zip(*boxes)
    mark = Boxes(np.array(places), texts, looks, experts, [-1] * len(boxes), says)
    end = 1.35 * max(x + w / 2 for x, _, w, _ in places)  # room for the last number, on a phone too
    axes = Axis(0, float(end), "milliseconds of a step, at best"), Axis(3 * len(models) - 1.5, -0.6, ticks=ticks)
    return Panel(f"A step that writes {batch:,} text{'s' * (batch > 1)}", [mark], *axes, width=12, height=260)
