"""Figures of many runs: which dense model is as good, what is gained, where experts die, what it costs."""

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from moe_lessons.plots import theme as style
from moe_lessons.plots.marks import Axis, Line, Panel
from moe_lessons.plots.still import plot
from moe_lessons.plots.theme import LIGHT, annotate, axes_for, dress, log_axis, model_inks, name_over

WIDEST = 8  # dense model beside the mixtures of `width_over_size`


def width_rows(ours: pd.DataFrame, published: pd.DataFrame) -> Axes:
    """Draw quality-matched widths, a row each: those of `width_over_size`, in their intervals, an arrow where one ends
    beyond the dense models that were trained (dotted: from where to where); and those of `published_pairs`."""
    height = 1.5 + 0.5 * (len(ours) + len(published))
    ax = axes_for(6.4, height, "Quality-matched width", "× the active width, or parameters")
    names = [*(f"D = {d_model}" for d_model in ours.index), *(f"{name},\npublished" for name in published.index)]
    for y, own in enumerate(ours.itertuples()):
        low, width, high = np.clip([own.low, own.width, own.high], own.narrowest, own.widest)
        ax.plot([low, high], [y, y], color=LIGHT.lines[0], lw=2)
        ax.vlines([own.narrowest, own.widest], y - 0.35, y + 0.35, ls=":", lw=1.5, color=LIGHT.foreground)
        shown = (low, "<", own.low == 0), (width, "o", 0 < own.width < np.inf), (high, ">", own.high == np.inf)
        for x, marker, is_shown in shown:
            ax.plot([x] * is_shown, [y] * is_shown, marker, color=LIGHT.lines[0], ms=8)
        annotate(ax, own.said.replace(" (", " ×\n("), (WIDEST, y), (14, 0))
    for y, width in enumerate(published.width, len(ours)):
        ax.plot(width, y, "D", color=LIGHT.lines[0], mfc=LIGHT.background, ms=8)
        annotate(ax, f"{width:.2g} ×", (WIDEST, y), (14, 0))
    annotate(ax, "dotted: narrowest and widest trained", (1, -0.6), (-4, 0))
    ax.set_yticks(range(len(names)), names)
    ax.set(xlim=(0.9, 1.1 * WIDEST), ylim=(len(names) - 0.5, -0.9))
    return log_axis(ax, "x", [1, 2, 3, 4, 6, 8], say="{:g}×".format)


def race_lines(race: pd.DataFrame) -> Axes:
    """Draw the held-out losses of `race_by_clock`: for each model the mean and the range of the seeds."""
    ax = axes_for(6.4, 3.4, "Held-out loss of six seeds, nats per byte", "seconds of training")
    models = race.model.unique()
    for model, ink in zip(models, model_inks(models)):
        rows = race[race.model == model].pivot(index="seconds", columns="seed", values="loss")
        _seed_band(ax, rows.index, rows, "-", model, ink)
    return name_over(log_axis(ax, "x", [5, 10, 20, 40, 80]))


def seed_sweep(values, title: str, x_label: str, baseline: float, ax: Axes) -> Axes:
    """Draw the mean and all seeds at several settings: values: x above 0 -> (S,). Dashed: a baseline."""
    dress(ax, title, x_label)
    _seed_band(ax, [*values], [*values.values()], "o-", "mean, and all seeds")
    ax.axhline(baseline, ls="--", lw=1.2, color=LIGHT.foreground, label="without")
    return name_over(log_axis(ax, "x", list(values), grid="both"))


def _seed_band(ax: Axes, x, seeds, line: str, label: str, ink: int = 0) -> None:
    """Draw the mean of the seeds, (places, S), over x in a band of their range."""
    seeds, color = np.asarray(seeds), LIGHT.lines[ink]
    ax.fill_between(x, seeds.min(axis=1), seeds.max(axis=1), color=color, alpha=0.2, lw=0)
    ax.plot(x, seeds.mean(axis=1), line, color=color, lw=1.8, ms=5, label=label)


def strength_multiples(found: Mapping[str, pd.DataFrame], used: Mapping[tuple, str]) -> style.LessonFigure:
    """Draw a picture for each method that has strengths: over these, how many of 8 experts are dead at the last step,
    the mean and the range of the seeds, a line for each of `found` by its name. Dashed: the first without balancing.

    found: name -> `load_plane_sweep`; used: (method, strength) -> who has published that they use it."""
    ends = {name: frame[frame.step == frame.step.max()] for name, frame in found.items()}
    first = next(iter(ends.values()))
    methods = first[first.strength.notna()].method.unique()
    rows = -(-len(methods) // 2)
    figure = style.LessonFigure(7.2, 0.6 + 1.6 * rows)
    axes = figure.subplots(rows, 2, sharey=True)
    for ax, method in zip(axes.flat, methods):
        strengths = sorted(first[first.method == method].strength)[:: len(first.seed.unique())]
        ticks = [f"{one:g}\n{used.get((method, one), '')}".strip() for one in strengths]
        lines = {name: frame.pivot_table(index=["method", "strength"], columns="seed", values="dead")
                 for name, frame in ends.items()}  # fmt: skip
        draw_strengths(ax, {name: line.loc[method] for name, line in lines.items()})
        unbalanced = first[first.method == "no balancing"].dead.mean()
        ax.axhline(unbalanced, ls="--", lw=1, color=LIGHT.muted, label="no balancing")
        dress(ax, f"{method}: dead of 8")
        ax.set_xticks(range(len(ticks)), ticks)
    for ax in axes.flat[len(methods) :]:
        ax.set_axis_off()
    with rc_context(style.STYLE):
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


def draw_strengths(ax: Axes, lines: Mapping[str, pd.DataFrame]) -> None:
    """Draw (strengths, seeds) for each name."""
    for (name, values), ink in zip(lines.items(), (3, 4)):
        places, mean = np.arange(len(values)) + 0.08 * (ink - 3), values.mean(axis=1)
        ax.vlines(places, values.min(axis=1), values.max(axis=1), color=LIGHT.lines[ink], lw=1)
        dashes, marker = style.DASHES[ink], style.MARKERS[ink]
        ax.plot(places, mean, ls=dashes, marker=marker, color=LIGHT.lines[ink], ms=5, lw=1.6, label=name)


def method_costs(table: pd.DataFrame) -> style.LessonFigure:
    """Draw each column in bars, with its numbers, all to a hundredth."""
    table = table.round(2) + 0.0  # no -0
    figure = style.LessonFigure(9, 1.2 + 0.4 * len(table))
    for ax, (name, values) in zip(figure.subplots(1, len(table.columns), sharey=True), table.items()):
        bars = ax.barh(table.index, values, 0.6, color=LIGHT.lines[5])
        ax.bar_label(bars, [f" {value:.3g}" for value in values], fontsize=style.TEXT_SIZE)
        style.dress(ax, fill(name, 10))
        ax.set(xticks=[], xlim=(min(0, 1.5 * values.min()), 1.5 * max(values.max(), 1e-9)))
        ax.spines[:].set_visible(False)
    ax.invert_yaxis()
    return figure


def dead_curves(
    dead: Mapping[str, Sequence], steps: Sequence[int] | None = None, num_experts: int = 8,
    title: str = "Dead experts: mean of the seeds, and their range", ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw how many of `num_experts` are dead at N steps: for each name (S, N), the mean over S seeds and the range of
    them all. steps (N,): from 1 on, if None."""
    marks = []
    steps = np.arange(1, len(next(iter(dead.values()))[0]) + 1) if steps is None else np.asarray(steps)
    for (name, values), ink in zip(dead.items(), model_inks(dead)):
        marks.append(Line(steps, np.mean(values, 0), name, ink, low=np.min(values, 0), high=np.max(values, 0)))
    axes = Axis(0, float(steps[-1]), "step"), Axis(-0.012 * num_experts, num_experts, f"dead experts of {num_experts}")
    return plot(Panel(title, marks, *axes), ax, width=6.4, height=3.4)


def collapse_map(cells: pd.DataFrame, ours: tuple[str, str, float]) -> Figure:
    """Draw the dead experts of `analysis.results.load_collapse_map` at step 600 with the learning rate of one setting,
    and this setting in a frame: its start, weights and lr."""
    start, weight, lr = ours
    starts, weights = (list(cells[name].unique()) for name in ("start", "weights"))
    rows = cells[(cells.step == 600) & (cells.lr == lr)]
    values = rows.pivot(index="start", columns="weights", values="dead").loc[starts, weights].to_numpy(float)
    shades = style.shades(LIGHT.background, style.RED)
    figure = style.LessonFigure(6.4, 3.4)
    words = "Dead experts of 8 at step 600, mean of ten seeds\n(frame: section 1)"
    ax = dress(figure.subplots(), words, "K and routing weight", "router initialisation")
    ax.imshow(values, cmap=shades, vmin=0, vmax=5, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        annotate(ax, f"{value:.1f}", (column, row), (0, 0), ha="center", va="center", fontsize=13)
    options = {"fc": "none", "ec": LIGHT.foreground, "lw": 3, "clip_on": False, "zorder": 4}
    ax.add_patch(Rectangle((weights.index(weight) - 0.48, starts.index(start) - 0.48), 0.96, 0.96, **options))
    ax.set_xticks(range(len(weights)), weights)
    ax.set_yticks(range(len(starts)), starts)
    ax.spines[:].set_visible(False)
    return figure
