"""What many runs showed: which dense width is as good, what more experts bring, learning rates, speed by batch."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_lessons.analysis.effective import effective_width
from moe_lessons.nn.twins import EQUAL_ACTIVE, EQUAL_TOTAL
from moe_lessons.plots import theme as style
from moe_lessons.plots.theme import DASHES, MARKERS, model_looks
from moe_lessons.support.errors import check_choice, check_number

SPEEDS = {"tokens_per_second": "tokens per second", "speedup": "times the tokens/s of"}
NATS = "loss (nats per byte)"


def curves(ax, ink: style.Theme, frame: pd.DataFrame, x: str, y: str, low="", high="", marker=True, middle="mean"):
    """For each model of a frame a line through the middle of its y at each x, in a band over them all, or from the
    least of column low to the most of high."""
    for model, (color, dash, sign) in model_looks(frame["model"].unique(), ink).items():
        rows = frame[frame["model"] == model].groupby(x)
        line = rows[y].agg(middle)
        ax.fill_between(line.index, rows[low or y].min(), rows[high or y].max(), color=color, alpha=0.2, lw=0)
        ax.plot(line.index, line, ls=dash, marker=sign * marker, color=color, lw=1.8, ms=5, label=model)


def dense_family(
    family: Mapping[int, Sequence[float]], mixture: Sequence[float], quality: str, ax: Axes | None = None, theme="light"
) -> Axes:
    """Which dense model is as good as a mixture: the quality of a family of dense widths, and that of the mixture.

    family, mixture: see `analysis.effective_width`; a dot for each seed, a line through the means. The mixture's line
    is the mean of its seeds. The band and the dashed line: the width that is as good, where it is in the family.
    """
    found = effective_width(family, mixture)
    title, widths = f"The dense width that is as good: {found}", sorted(family)
    ax, ink = style.axes_for(ax, theme, 7.4, 3.8, title, "width of the dense FFN", quality)
    dense, color = np.array([family[width] for width in widths], float), ink.lines[4]
    ax.plot(np.repeat(widths, dense.shape[1]), dense.ravel(), "o", ms=4, alpha=0.5, color=color)
    ax.plot(widths, dense.mean(axis=1), color=color, lw=1.8, marker=MARKERS[4], label="dense, mean of its seeds")
    ax.axhline(np.mean(mixture), color=ink.lines[0], lw=1.8, label="the mixture, mean of its seeds")
    low, high = max(found.low, widths[0]), min(found.high, widths[-1])
    if low <= high:
        ax.axvspan(low, high, color=ink.lines[3], alpha=0.2, lw=0, label="as good: from the lowest to the highest seed")
    if widths[0] <= found.width <= widths[-1]:
        ax.axvline(found.width, ls="--", lw=1.2, color=ink.lines[3])
    style.log_axis(ax, "x", widths, "{:g}".format)
    ax.grid(axis="y")
    return style.name_over(ax, ink)


def gain_over_twin(results: pd.DataFrame, column: str, label: str, ax: Axes | None = None, theme="light") -> Axes:
    """How much better mixtures are than the equal-active twin of the same seed, against their number of experts.

    results: of `analysis.load_results`, one rate for each model; the last step counts. column: what is compared; more
    is better, but of a loss less is. A dot for each seed, a line through the means. E = 1: the twin itself. The dashed
    line: the mean of the equal-total twin, where there is one.
    """
    gain = _gains(results, EQUAL_ACTIVE, column)
    mixtures = {1: EQUAL_ACTIVE} | {int(name.partition("=")[2]): name for name in gain if name.startswith("MoE")}
    experts = sorted(mixtures)
    values = gain[[mixtures[e] for e in experts]]  # (S, E)
    ax, ink = style.axes_for(ax, theme, 7.4, 3.4, f"{label}, against the twin of the same seed", "experts, E", label)
    ax.axhline(0, lw=1.2, color=ink.lines[1], label="equal-active twin")
    ax.plot(np.tile(experts, len(values)), values.to_numpy().ravel(), "o", ms=4, alpha=0.5, color=ink.lines[0])
    ax.plot(experts, values.mean(), color=ink.lines[0], lw=1.8, label="mixtures, mean of their seeds")
    if EQUAL_TOTAL in gain:
        ax.axhline(gain[EQUAL_TOTAL].mean(), ls=DASHES[2], lw=1.4, color=ink.lines[2], label="equal-total twin")
    style.log_axis(ax, "x", experts, "{:g}".format)
    ax.grid(axis="y")
    return style.name_over(ax, ink)


def gain_by_model(results: pd.DataFrame, base: str, column: str, label: str, ax=None, theme: str = "light") -> Axes:
    """How much better each model is than `base` of the same seed: a dot for each seed, a bar at the mean.

    results, column: as in `gain_over_twin`; to the right is better, of a loss too.
    """
    gain, names = _gains(results, base, column), [name for name in results["model"].unique() if name != base]
    gain = gain[names]
    ax, ink = style.axes_for(ax, theme, 7.4, 0.9 + 0.36 * len(names), f"Against '{base}' of the same seed", label)
    ax.barh(names, gain.mean(), 0.55, color=ink.lines[0], alpha=0.35, label="mean")
    for name in names:
        first = {"label": "a seed"} if name == names[0] else {}
        ax.plot(gain[name], [name] * len(gain), "o", ms=5, color=ink.lines[0], **first)
    ax.axvline(0, lw=1.2, color=ink.foreground)
    ax.invert_yaxis()
    ax.grid(axis="x")
    return style.name_over(ax, ink)


def _gains(results: pd.DataFrame, base: str, column: str) -> pd.DataFrame:
    """(S, models): how much better each model is at the last step than `base` of the same seed."""
    _check("results", results, ("model", "seed", "step", column))
    if "lr" in results and (results.groupby("model").lr.nunique() > 1).any():
        raise ValueError("results must have one learning rate for each model, got several: choose the best of each")
    last = results[results["step"] == results["step"].max()].pivot(index="seed", columns="model", values=column)
    return last.sub(last[base], axis=0) * (-1 if column == "loss" else 1)


def rate_tolerance(results: pd.DataFrame, ax: Axes | None = None, theme: str = "light") -> Axes:
    """The loss at the end against the learning rate: a line for each model, the mean of its seeds; the band has them
    all. A ring marks the best rate of each. Of a rate at which a run diverged nothing is drawn.

    results: with the columns model, lr, seed, step (the last one counts) and loss, perhaps diverged.
    """
    _check("results", results, ("model", "lr", "seed", "step", "loss"))
    last = results.sort_values("step").groupby(["model", "lr", "seed"], sort=False).tail(1)
    failed = ~np.isfinite(last["loss"]) | ("diverged" in last and last["diverged"].eq(True))
    last = last[~failed.groupby([last["model"], last["lr"]]).transform("any")]
    ax, ink = style.axes_for(ax, theme, 8.4, 4, "Held-out loss against the learning rate", "learning rate", NATS)
    curves(ax, ink, last, "lr", "loss")
    for model, (color, _, _) in model_looks(last["model"].unique(), ink).items():
        best = last[last["model"] == model].groupby("lr").loss.mean().nsmallest(1)
        ax.plot(best.index, best, "o", ms=12, mfc="none", mec=color, mew=1.5)
    style.log_axis(ax, "y", say="{:g}".format)
    style.log_axis(ax, "x", sorted(last["lr"].unique()), "{:g}".format)
    return style.name_over(ax, ink)


def speed_by_batch(frame: pd.DataFrame, y: str = "tokens_per_second", ax: Axes | None = None, theme="light") -> Axes:
    """Speed of decoding against the batch, a line for each model through the median; both axes logarithmic.

    frame: with the columns model, batch and y: 'tokens_per_second', in a band over all rows, or 'speedup', in a band
    from the column low to high; there the last model is what the others are compared with, a dashed line.
    """
    label = SPEEDS[check_choice("y", y, SPEEDS)]
    ends = ("low", "high") if y == "speedup" else (y, y)
    _check("frame", frame, ("model", "batch", y, *ends))
    last = frame["model"].iloc[-1] if y == "speedup" else None
    title = "Decoding: " + (f"{label} '{last}'" if last else label)
    ax, ink = style.axes_for(ax, theme, 8.4, 3.8, title, "batch: sequences at once", "times as fast" if last else label)
    curves(ax, ink, frame[frame["model"] != last], "batch", y, *ends, middle="median")
    if last:
        color, _, _ = model_looks([last], ink)[last]
        ax.axhline(1, ls="--", lw=1.4, color=color, label=last)
    style.log_axis(ax, "y", say="{:,g}".format)
    style.log_axis(ax, "x", sorted(frame["batch"].unique()))
    return style.name_over(ax, ink)


def distinct_by_batch(frame: pd.DataFrame, ax: Axes | None = None, theme: str = "light") -> Axes:
    """How many different experts a layer needs for a batch: what was measured, and what chance would need.

    frame: with the columns batch, distinct (measured), union_law, E(1 - (1 - K/E)^B), the expectation where B tokens
    choose K of E experts each, alike and independently, and perhaps model.
    """
    _check("frame", frame, ("batch", "distinct", "union_law"))
    title = "Different experts that one layer needs for a batch"
    ax, ink = style.axes_for(ax, theme, 7.4, 3.6, title, "batch: tokens at once", "distinct experts")
    frame = frame if "model" in frame else frame.assign(model="measured")
    for i, (model, (color, _, marker)) in enumerate(model_looks(frame["model"].unique(), ink).items()):
        curve = frame[frame["model"] == model].groupby("batch").mean(numeric_only=True)
        law = {"color": ink.foreground, "label": "_" if i else "E(1 − (1 − K/E)ᴮ)"}
        ax.plot(curve.index, curve["union_law"], "--", lw=1.4, **law)
        ax.plot(curve.index, curve["distinct"], marker, color=color, ms=6, label=model)
    ax.set_ylim(0, None)
    style.log_axis(ax, "x", sorted(frame["batch"].unique()))
    return style.name_over(ax, ink)


def roofline(bandwidth: float, flops: float, points: pd.DataFrame, ax: Axes | None = None, theme="light") -> Axes:
    """What this machine can do at most, and what was reached: FLOP/s against FLOPs for each byte read from memory.

    bandwidth: bytes per second from memory; flops: FLOP/s of the arithmetic. The roof is the lesser of bandwidth ×
    intensity and flops (S. Williams, A. Waterman, D. Patterson, Roofline, 2009). points: with the columns name,
    intensity (FLOPs per byte) and flops_per_second; names that begin with that of a dense twin have its colour.
    """
    check_number("bandwidth", bandwidth, above=True)
    check_number("flops", flops, above=True)
    _check("points", points, ("name", "intensity", "flops_per_second"))
    labels = "arithmetic intensity: FLOPs for each byte read", "GFLOP/s"
    ax, ink = style.axes_for(ax, theme, 8.4, 4.6, "The roofline of this machine", *labels)
    x, y, ridge = points["intensity"], points["flops_per_second"], flops / bandwidth
    left, right = min(x.min(), ridge) / 3, max(x.max(), ridge) * 6
    ax.plot([left, ridge, right], [bandwidth * left, flops, flops], color=ink.foreground, lw=2, zorder=2)
    ax.set(xlim=(left, right), ylim=(min(y.min(), bandwidth * left) / 1.5, flops * 2.2))
    for start, end, word, side, color in ((left, ridge, "memory", "left", 4), (ridge, right, "arithmetic", "right", 3)):
        ax.axvspan(start, end, color=ink.lines[color], alpha=0.1, lw=0)
        look = {"xycoords": "axes fraction", "ha": side, "color": ink.lines[color]}
        style.annotate(ax, f"{word} sets the pace", (0.02 if side == "left" else 0.98, 0.05), ink, **look)
    for name, *point in points[["name", "intensity", "flops_per_second"]].itertuples(index=False):
        color, _, marker = model_looks([name], ink)[name]
        ax.plot(*point, marker, color=color, ms=7.5, mec=ink.background, zorder=3)
    style.log_axis(ax, "x", say="{:g}".format)
    style.log_axis(ax, "y", say=lambda value: f"{value / 1e9:,g}")
    style.annotate(ax, f"{flops / 1e9:,.3g} GFLOP/s ", (right, flops), ink, (0, 7), ha="right")
    style.annotate(ax, f"  {bandwidth / 1e9:,.3g} GB/s", (left, bandwidth * left * 2.2), ink)
    style.label_points(ax, x, y, points["name"], ink)
    return ax


def seed_sweep(values, title: str, x_label: str, baseline: float | None = None, ax=None, theme="light") -> Axes:
    """What several seeds gave at several settings: `values` maps x (above 0, on a logarithmic axis) to values (S,). The
    line is the mean, the band has all seeds. Dashed: a baseline."""
    ax, ink = style.axes_for(ax, theme, 6.4, 3.2, title, x_label)
    rows = [("mean, and all seeds", x, float(y)) for x, own in values.items() for y in own]
    curves(ax, ink, pd.DataFrame(rows, columns=["model", "x", "y"]), "x", "y")
    if baseline is not None:
        ax.axhline(baseline, ls="--", lw=1.2, color=ink.foreground, label="without")
    style.log_axis(ax, "x", list(values), "{:g}".format)
    ax.grid(axis="y")
    return style.name_over(ax, ink)


def _check(name: str, frame: pd.DataFrame, columns: Sequence[str]) -> None:
    if not isinstance(frame, pd.DataFrame) or frame.empty or not set(columns) <= set(frame):
        got = f"{len(frame)} rows with {list(frame)}" if isinstance(frame, pd.DataFrame) else type(frame).__name__
        raise ValueError(f"{name} must be a DataFrame with rows and the columns {', '.join(columns)}, got {got}")
