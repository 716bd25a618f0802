"""What many runs showed: loss against what was spent, the learning rates that models stand, speed against the batch."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_lessons.errors import check_choice, check_number
from moe_lessons.nn.twins import SAME_TOTAL
from moe_lessons.plots import theme as style
from moe_lessons.plots.theme import model_looks

SPENT = {  # what loss can be set against: the column, and what the axis says
    "steps": ("step", "steps"),
    "FLOPs": ("flops", "training FLOPs"),
    "seconds": ("seconds", "seconds of training"),
    "parameters": ("parameters", "total parameters"),
}
SPEEDS = {"tokens_per_second": "tokens per second", "speedup": "times the tokens/s of the equal-total twin"}
NATS = "loss (nats per byte)"


def curves(ax, ink: style.Theme, frame: pd.DataFrame, x: str, y: str, low="", high="", marker=True, middle="mean"):
    """For each model of a frame a line through the middle of its y at each x, in a band over them all, or from the
    least of column low to the most of high."""
    for model, (color, dash, sign) in model_looks(frame["model"].unique(), ink).items():
        rows = frame[frame["model"] == model].groupby(x)
        line = rows[y].agg(middle)
        ax.fill_between(line.index, rows[low or y].min(), rows[high or y].max(), color=color, alpha=0.2, lw=0)
        ax.plot(line.index, line, ls=dash, marker=sign * marker, color=color, lw=1.8, ms=5, label=model)


def loss_against(results: pd.DataFrame, x: str = "steps", ax: Axes | None = None, theme: str = "light") -> Axes:
    """Held-out loss against what was spent on it: a line for each model, the mean of its seeds; the band has them all.

    results: a row for each measurement, with the columns model, seed, step, loss and the one of x in `SPENT`. Against
    parameters the last loss of each run is drawn; the mixtures are joined by a line.
    """
    column, label = SPENT[check_choice("x", x, SPENT)]
    _check("results", results, ("model", "seed", "step", "loss", column))
    if "lr" in results and (results.groupby("model").lr.nunique() > 1).any():
        raise ValueError("results must have one learning rate for each model, got several: choose the best of each")
    if not np.isfinite(results["loss"]).all():
        raise ValueError("results must have finite losses, got others: leave out the runs that diverged")
    ax, ink = style.axes_for(ax, theme, 8.4, 4, f"Held-out loss against {label}", label, NATS)
    if x == "parameters":
        results = results[results["step"] == results.groupby("model")["step"].transform("max")]
        is_dense = results["model"].str.startswith("dense")
        curves(ax, ink, results.assign(model=results["model"].where(is_dense, "mixtures")), column, "loss")
        for (model, dense), own in results.groupby(["model", is_dense]):
            at, low, high = own[column].mean(), own["loss"].min(), own["loss"].max()
            ax.vlines(at, low, high, color=ink.muted, lw=1.5)
            place, by = ((at, low), (0, -9)) if dense else ((at, high), (0, 9))
            style.annotate(ax, model, place, ink, by, halo=True, ha="center")
        ax.margins(0.15)
    else:
        at = results.groupby(["model", "step"])[column].transform("mean")  # seeds take different times
        curves(ax, ink, results.assign(at=at), "at", "loss", marker=False)
    style.log_axis(ax, "y", say="{:g}".format)
    if x != "steps":
        style.log_axis(ax, "x", say="{:g}".format if x == "seconds" else style.short_number)
    return style.name_over(ax, ink)


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
    from the column low to high; there a dashed line marks the speed of the twin.
    """
    label = SPEEDS[check_choice("y", y, SPEEDS)]
    ends = ("low", "high") if y == "speedup" else (y, y)
    _check("frame", frame, ("model", "batch", y, *ends))
    ax, ink = style.axes_for(ax, theme, 8.4, 3.8, "Decoding: " + label, "batch: sequences at once", label)
    curves(ax, ink, frame, "batch", y, *ends, middle="median")
    if y == "speedup":
        ax.axhline(1, ls="--", lw=1.2, color=ink.foreground, label=SAME_TOTAL)
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
