"""Figures of many runs: what models cost and know, what more experts bring, where experts die, how fast they are."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from moe_lessons.analysis.quality import dense_families, times_as_wide, times_the_cost
from moe_lessons.nn.baselines import dense_name
from moe_lessons.plots import theme as style
from moe_lessons.plots.marks import Axis, Line, Panel
from moe_lessons.plots.still import plot
from moe_lessons.plots.theme import LIGHT, annotate, axes_for, dress, log_axis, model_inks, model_styles, name_over

OTHER_WIDTHS = "dense, of other widths"


def curves(ax: Axes, frame: pd.DataFrame, x: str, y: str) -> None:
    """Draw for each model a line through the mean of its y at each x, in a band from the least to the largest."""
    for model, (color, dash, marker) in model_styles(frame["model"].unique()).items():
        rows = frame[frame["model"] == model].groupby(x)
        line = rows[y].mean()
        ax.fill_between(line.index, rows[y].min(), rows[y].max(), color=color, alpha=0.2, lw=0)
        ax.plot(line.index, line, ls=dash, marker=marker, color=color, lw=1.8, ms=5, label=model)


def front(ends: pd.DataFrame, arrow: tuple[str, int]) -> Axes:
    """Draw what each model knew at the end of its training over the cost of that: dense models of every width and
    length of training, a line along the best of them, and the smallest mixture and that of the arrow.

    ends: of `load_ends`; arrow: from which mixture (model, steps) to the best dense model that knows as much."""
    ax = axes_for(7.6, 4.8, "Memorised facts, %", "training compute, 10¹² FLOPs")
    mixtures = [name for name in ends["model"].unique() if not name.startswith(style.DENSE)]
    mixtures.sort(key=lambda name: int(name.partition("=")[2]))
    styles = {OTHER_WIDTHS: (LIGHT.muted, "", "."), **model_styles([*map(dense_name, (1, ends["width"].max()))])}
    styles |= {name: style for name, style in model_styles(mixtures).items() if name in (mixtures[0], arrow[0])}
    families = dense_families(ends, "teraflops").values()
    grid = np.unique(np.concatenate([np.geomspace(min(family), max(family), 100) for family in families]))
    means = [np.maximum.accumulate([np.mean(known) for known in family.values()]) for family in families]
    logs = [(np.log(grid), np.log(list(family)), mean) for family, mean in zip(families, means)]
    best = np.nanmax([np.interp(*each, left=np.nan) for each in logs], axis=0)
    ax.plot(grid, best, color=LIGHT.foreground, lw=1.6, zorder=1.5, label="dense, the best at each cost")
    shown = ends[ends["width"].notna() | ends["model"].isin(list(styles))]
    shown = shown.assign(kind=shown["model"].where(shown["model"].isin(list(styles)), OTHER_WIDTHS))
    for kind, (color, _, marker) in styles.items():
        runs = shown[shown["kind"] == kind].groupby(["model", "steps"])
        x, known = runs["teraflops"].first(), runs["known"]
        ax.vlines(x, known.min(), known.max(), color=color, lw=1.2, alpha=0.6)
        ax.plot(x, known.mean(), marker, ls="-" if kind in mixtures else "", color=color, lw=1.4, ms=6, label=kind)
    x, y = shown.groupby(["model", "steps"])[["teraflops", "known"]].mean().loc[arrow]
    times = times_the_cost(ends, *arrow).width
    ax.annotate("", (x * times, y), (x, y), arrowprops={"arrowstyle": "->", "color": LIGHT.foreground})
    annotate(ax, f"{times:.1f}×", (x * times**0.5, y), (0, 8), ha="center", halo=LIGHT.background)
    ax.grid(axis="y")
    return name_over(log_axis(ax, "x"))


def matched_widths(ends: pd.DataFrame, steps: int) -> Axes:
    """Draw what dense models know after so many steps over their FFN width, and mixtures at their active width, each
    joined to the width of the dense model that knows as much: the mean of the seeds, and their range.

    ends: of `load_ends`, with mixtures of one active width, that of the narrowest dense model."""
    rows = ends[ends["steps"] == steps]
    dense, mixtures = rows[rows["width"].notna()].groupby("width")["known"], rows[rows["width"].isna()]
    x = dense.mean().index / rows["width"].min()
    ax = axes_for(7.6, 4.2, f"Memorised facts after {steps:,} steps, %", "FFN width, × active width of the MoE")
    ax.vlines(x, dense.min(), dense.max(), color=LIGHT.foreground, lw=1.2)
    ax.plot(x, dense.mean(), "s-", color=LIGHT.foreground, lw=1.6, ms=5, label="dense")
    names = sorted(mixtures["model"].unique(), key=lambda name: int(name.partition("=")[2]))
    for name, (color, _, marker) in model_styles(names).items():
        known = mixtures[mixtures["model"] == name]["known"]
        width = times_as_wide(ends, name, steps).width
        ax.plot([1, width, width], [known.mean(), known.mean(), 0], ls=":", lw=1.4, color=color)
        ax.vlines(1, known.min(), known.max(), color=color, lw=1.2)
        ax.plot(1, known.mean(), marker, ls="", color=color, ms=7, label=name, clip_on=False, zorder=3)
        annotate(ax, f"{width:.1f}×", (width, 0), (3, 4), halo=LIGHT.background)
    ax.set_ylim(0, 104)
    return name_over(log_axis(ax, "x", [1, 2, 3, 4, 6, 8], say="{:g}×".format))


def width_curves(found: Mapping[str, pd.DataFrame], total: float) -> Axes:
    """Draw the quality-matched width of a mixture over the steps of training, a line for each `width_over_steps` by its
    name: the mean of the seeds, and the range of them all. total: the width of the parameter-matched baseline; what is
    better than the widest dense model that was trained stands at the upper edge."""
    widest = 1.15 * max(total, *(frame[np.isfinite(frame)].to_numpy()[:, 1:].max() for frame in found.values()))
    ax = axes_for(7.6, 4.2, "Quality-matched width", "training steps", "FFN width of the dense model, × active width")
    for (name, frame), ink in zip(found.items(), (3, 4, 5)):
        color, dash, marker = LIGHT.lines[ink], style.DASHES[ink], style.MARKERS[ink]
        width, low, high = (frame[column].clip(0.9, widest) for column in ("width", "low", "high"))
        ax.fill_between(frame["step"], low, high, color=color, alpha=0.2, lw=0)
        ax.plot(frame["step"], width, ls=dash, marker=marker, color=color, lw=1.8, ms=4, label=name)
    for width, text in ((1, "FLOP-matched"), (total, "parameter-matched")):
        ax.axhline(width, ls=":", lw=1, color=LIGHT.foreground)
        annotate(ax, text, (frame["step"].max(), width), (0, 4), ha="right", halo=LIGHT.background)
    ax.set_ylim(0.9, 1.2 * widest)
    log_axis(ax, "y", [1, 2, 4, 8, 16], say="{:g}×".format)
    return name_over(log_axis(ax, "x", [250, 500, 1000, 2000, 4000, 8000]))


def rate_tolerance(results: pd.DataFrame) -> Axes:
    """Draw the last loss of results with model, lr, seed, step, loss, diverged, where none did; a ring: the best."""
    last = results.sort_values("step").groupby(["model", "lr", "seed"], sort=False).tail(1)
    failed = ~np.isfinite(last["loss"]) | last["diverged"].eq(True)
    last = last[~failed.groupby([last["model"], last["lr"]]).transform("any")]
    ax = axes_for(8.4, 4, "Held-out loss against the learning rate", "learning rate", "loss (nats per byte)")
    curves(ax, last, "lr", "loss")
    for model, (color, _, _) in model_styles(last["model"].unique()).items():
        best = last[last["model"] == model].groupby("lr").loss.mean().nsmallest(1)
        ax.plot(best.index, best, "o", ms=12, mfc="none", mec=color, mew=1.5)
    log_axis(ax, "y")
    return name_over(log_axis(ax, "x", sorted(last["lr"].unique())))


def seed_sweep(values, title: str, x_label: str, baseline: float, ax: Axes) -> Axes:
    """Draw the mean and all seeds at several settings: values: x above 0 -> (S,). Dashed: a baseline."""
    dress(ax, title, x_label)
    rows = [("mean, and all seeds", x, float(y)) for x, seeds in values.items() for y in seeds]
    curves(ax, pd.DataFrame(rows, columns=["model", "x", "y"]), "x", "y")
    ax.axhline(baseline, ls="--", lw=1.2, color=LIGHT.foreground, label="without")
    return name_over(log_axis(ax, "x", list(values), grid="both"))


MEASURES = {"dead": ("Dead experts of 8", 1), "max_over_mean": ("Busiest / mean", 1), "accuracy": ("Accuracy, %", 100)}


def strength_multiples(found: Mapping[str, pd.DataFrame], used: Mapping[tuple, str]) -> style.LessonFigure:
    """Draw a row for each method that has strengths, a column for each measure: over the strengths, the mean and the
    range of the seeds at the last step, a line for each of `found` by its name. Dashed: the first of them with nothing.

    found: name -> `load_plane_sweep`; used: (method, strength) -> who has published that they use it."""
    ends = {name: frame[frame.step == frame.step.max()] for name, frame in found.items()}
    first = next(iter(ends.values()))
    methods = first[first.strength.notna()].method.unique()
    figure = style.LessonFigure(11, 1.3 * len(methods))
    for row, method in zip(figure.subplots(len(methods), len(MEASURES), sharey="col"), methods):
        strengths = sorted(first[first.method == method].strength)[:: len(first.seed.unique())]
        ticks = [f"{one:g}\n{used.get((method, one), '')}".strip() for one in strengths]
        for ax, (measure, (title, times)) in zip(row, MEASURES.items()):
            lines = {name: times * frame.pivot_table(index=["method", "strength"], columns="seed", values=measure)
                     for name, frame in ends.items()}  # fmt: skip
            draw_strengths(ax, {name: line.loc[method] for name, line in lines.items()})
            ax.axhline(times * first[first.method == "nothing"][measure].mean(), ls="--", lw=1, color=LIGHT.muted)
            dress(ax, title if method == methods[0] else "", ylabel=method if ax is row[0] else "")
            ax.set_xticks(range(len(ticks)), ticks)
    return figure


def draw_strengths(ax: Axes, lines: Mapping[str, pd.DataFrame]) -> None:
    """Draw (strengths, seeds) for each name, which stands at the end of its line, the higher one above."""
    highest = max(lines, key=lambda name: lines[name].iloc[-1].mean())
    for (name, values), ink in zip(lines.items(), (3, 4)):
        places, mean = np.arange(len(values)) + 0.08 * (ink - 3), values.mean(axis=1)
        ax.vlines(places, values.min(axis=1), values.max(axis=1), color=LIGHT.lines[ink], lw=1)
        ax.plot(places, mean, ls=style.DASHES[ink], marker=style.MARKERS[ink], color=LIGHT.lines[ink], ms=5, lw=1.6)
        up = 6 if name == highest else -6
        annotate(ax, name, (places[-1], mean.iloc[-1]), (8, up), color=LIGHT.lines[ink], halo=LIGHT.background)
    ax.set_xlim(-0.3, len(values) + 0.6)


def method_costs(table: pd.DataFrame) -> style.LessonFigure:
    """Draw each column in bars, with its numbers, all to a hundredth."""
    table = table.round(2) + 0.0  # no -0
    figure = style.LessonFigure(11, 0.9 + 0.32 * len(table))
    for ax, (name, values) in zip(figure.subplots(1, len(table.columns), sharey=True), table.items()):
        bars = ax.barh(table.index, values, 0.6, color=LIGHT.lines[5])
        ax.bar_label(bars, [f" {value:.3g}" for value in values], fontsize=style.TEXT_SIZE)
        style.dress(ax, name)
        ax.set(xticks=[], xlim=(min(0, 1.5 * values.min()), 1.5 * max(values.max(), 1e-9)))
        ax.spines[:].set_visible(False)
    ax.invert_yaxis()
    return figure


def dead_curves(dead: Mapping[str, Sequence], steps: Sequence[int] | None = None, num_experts: int = 8) -> Axes:
    """Draw how many of `num_experts` are dead at N steps: for each name (S, N), the mean over S seeds and the range of
    them all. steps (N,): from 1 on, if None."""
    marks = []
    steps = np.arange(1, len(next(iter(dead.values()))[0]) + 1) if steps is None else np.asarray(steps)
    for (name, values), ink in zip(dead.items(), model_inks(dead)):
        marks.append(Line(steps, np.mean(values, 0), name, ink, low=np.min(values, 0), high=np.max(values, 0)))
    axes = Axis(0, float(steps[-1]), "step"), Axis(-0.012 * num_experts, num_experts, f"dead experts of {num_experts}")
    return plot(Panel("Dead experts: mean of the seeds, and their range", marks, *axes), width=7.6, height=3.4)


def collapse_map(cells: pd.DataFrame, ours: tuple[str, str, float]) -> Figure:
    """Draw the dead experts of `analysis.results.load_collapse_map` at step 600 with the learning rate of one setting,
    and this setting in a frame: its start, weights and lr."""
    start, weight, lr = ours
    starts, weights = (list(cells[name].unique()) for name in ("start", "weights"))
    rows = cells[(cells.step == 600) & (cells.lr == lr)]
    values = rows.pivot(index="start", columns="weights", values="dead").loc[starts, weights].to_numpy(float)
    shades = LinearSegmentedColormap.from_list("dead", [LIGHT.background, style.RED])
    figure = style.LessonFigure(7.6, 3.4)
    words = "Dead experts of 8 at step 600, mean of ten seeds (frame: section 1)"
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
