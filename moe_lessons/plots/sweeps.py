"""What many runs showed: loss against what was spent, the learning rates that models stand, speed against the batch."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator
from pandas.api.types import is_numeric_dtype

from moe_lessons.errors import check_choice, check_number
from moe_lessons.plots.theme import (
    LABEL_PLACES,
    Theme,
    axes_for,
    label_points,
    log_axis,
    model_ink,
    name_over,
    short_number,
    write,
)

SPENT = {  # what loss can be set against: the column, and what the axis says
    "steps": ("step", "steps"),
    "FLOPs": ("flops", "training FLOPs"),
    "seconds": ("seconds", "seconds of training"),
    "parameters": ("parameters", "total parameters"),
}
SPEEDS = {"tokens_per_second": "tokens per second", "speedup": "times the tokens/s of the equal-total twin"}
NAMES = ("model", "name", "seed")  # columns of names, and not of numbers
STYLES = (("-", "o"), ("--", "s"), (":", "D"), ("-.", "^"), ("-", "v"), ("--", "P"))  # by ink: line, marker
LOSSES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)  # ticks
NATS = "loss (nats per byte)"


def loss_against(results: pd.DataFrame, x: str = "steps", ax: Axes | None = None, theme: str = "light") -> Axes:
    """Held-out loss against what was spent on it: a line for each model, the mean of its seeds; the band has them all.

    results: a row for each measurement, with the columns model, seed, step, loss and the one for x: 'steps',
    'FLOPs' (column flops), 'seconds' (seconds) or 'parameters' (parameters). Against parameters the last loss of each
    run is drawn; the mixtures are joined by a line.
    """
    column, label = SPENT[check_choice("x", x, SPENT)]
    _check(results, "results", ("model", "seed", "step", "loss", column))
    if "lr" in results and (results.groupby("model").lr.nunique() > 1).any():
        raise ValueError("results must have one learning rate for each model, got several: choose the best of each")
    if not (np.isfinite(results["loss"]) & (results["loss"] > 0)).all():
        raise ValueError("results must have finite losses above 0, got others: leave out the runs that diverged")
    ax, ink = axes_for(ax, theme, 8.4, 4, f"Held-out loss against {label}", label, NATS)
    looks, of_step = model_looks(results["model"].unique(), ink), ["step", "model"]
    if x == "parameters":
        results = results.sort_values("step").groupby(["model", column, "seed"]).tail(1)
        of_step = [column, "model"]
    table = results.groupby(of_step).agg(x=(column, "mean"), mean=("loss", "mean"), low=("loss", "min"),
                                         high=("loss", "max")).reset_index()  # fmt: skip
    if x == "parameters":
        _final_losses(ax, ink, table, looks)
    else:
        ends = table.groupby("model")["mean"].last().sort_values(ascending=False).index  # as the lines end
        for model in ends:
            banded(ax, table[table["model"] == model].set_index("x"), looks[model], model, marker=False)
        name_over(ax, ink)
    _log_loss(ax, table)
    if x == "steps":
        ax.set_xlim(0, None)
    else:
        log_axis(ax, "x", say="{:g}".format if x == "seconds" else short_number)
    if x == "parameters":
        ax.figure.canvas.draw()  # settles the layout, and with it where a point lies in pixels
        beside_the_line = [place for place in LABEL_PLACES if place[1] > 0] + list(LABEL_PLACES)  # which falls
        label_points(ax, table["x"], table["mean"], table["model"], ink, beside_the_line)
    return ax


def banded(ax: Axes, curve: pd.DataFrame, look: tuple[str, str, str], name: str, marker: bool = True) -> None:
    """A line through the column mean, in a band from low to high, against the index."""
    color, style, sign = look
    ax.fill_between(curve.index, curve["low"], curve["high"], color=color, alpha=0.2, lw=0)
    ax.plot(curve.index, curve["mean"], style + sign * marker, color=color, lw=1.8, ms=5, label=name)


def _final_losses(ax: Axes, ink: Theme, table: pd.DataFrame, looks: dict) -> None:
    """A point for each model and size: the mean of the last losses, and a bar over all seeds."""
    family = table[~table["model"].str.startswith("dense")]
    ax.plot(family["x"], family["mean"], "-", color=ink.muted, lw=1.2, zorder=1.8)
    for row in table.to_dict("records"):
        color, _, marker = looks[row["model"]]
        ax.vlines(row["x"], row["low"], row["high"], color=color, lw=2)
        ax.plot([row["x"]], [row["mean"]], marker, color=color, ms=8, mec=ink.background, label=row["model"])
    ax.set_xlim(0.85 * table["x"].min(), 1.3 * table["x"].max())


def rate_tolerance(results: pd.DataFrame, ax: Axes | None = None, theme: str = "light") -> Axes:
    """The loss at the end against the learning rate: a line for each model, the mean of its seeds; the band has them
    all. A cross at the upper edge marks a rate at which a run diverged, a ring the best rate of a model at which none
    did.

    results: with the columns model, lr, seed, loss, and perhaps step (the last one counts) and diverged. A run whose
    loss is NaN or infinite has diverged too.
    """
    _check(results, "results", ("model", "lr", "seed", "loss"))
    last = results.sort_values("step") if "step" in results else results
    last = last.groupby(["model", "lr", "seed"], sort=False).tail(1)
    failed = ~np.isfinite(last["loss"]) | (last["diverged"].eq(True) if "diverged" in last else False)
    ax, ink = axes_for(ax, theme, 8.4, 4, "Held-out loss against the learning rate", "learning rate", NATS)
    looks = model_looks(results["model"].unique(), ink)
    for model, runs in last[~failed].groupby("model", sort=False):
        curve = runs.groupby("lr").loss.agg(mean="mean", low="min", high="max")
        banded(ax, curve, looks[model], model)
        best = curve["mean"].drop(last["lr"][failed & (last["model"] == model)], errors="ignore").nsmallest(1)
        ax.plot(best.index, best, "o", ms=12, mfc="none", mec=looks[model][0], mew=1.5)
    if not failed.all():
        _log_loss(ax, last[~failed].rename(columns={"loss": "mean"}))
    for i, (model, runs) in enumerate(last[failed].groupby("model", sort=False)):
        rates, look = sorted(runs["lr"].unique()), {"transform": ax.get_xaxis_transform(), "clip_on": False}
        (cross,) = ax.plot(rates, [1 - 0.05 * i] * len(rates), "x", color=looks[model][0], ms=8, mew=2, **look)
        cross.set_label(f"{model}: diverged")
    log_axis(ax, "x", sorted(last["lr"].unique()), "{:g}".format)
    name_over(ax, ink)
    return ax


def speed_by_batch(frame: pd.DataFrame, y: str = "tokens_per_second", ax: Axes | None = None, theme="light") -> Axes:
    """Speed of decoding against the batch, a line for each model; both axes logarithmic.

    frame: with the columns model, batch and y: 'tokens_per_second', or 'speedup', where a dashed line marks the speed
    of the twin. Several rows of one model and batch are drawn as their median, with a band over all; for 'speedup', the
    columns low and high, if there are any, are the ends of the band.
    """
    label = SPEEDS[check_choice("y", y, SPEEDS)]
    _check(frame, "frame", ("model", "batch", y))
    ax, ink = axes_for(ax, theme, 8.4, 3.8, "Decoding: " + label, "batch: sequences at once", label)
    low, high = ("low", "high") if y == "speedup" and {"low", "high"} <= set(frame) else (y, y)
    looks = model_looks(frame["model"].unique(), ink)
    for model, rows in frame.groupby("model", sort=False):
        curve = rows.groupby("batch").agg(mean=(y, "median"), low=(low, "min"), high=(high, "max"))
        banded(ax, curve, looks[model], model)
    if y == "speedup":
        ax.axhline(1, ls="--", lw=1.2, color=ink.foreground, label="dense, same total")
    log_axis(ax, "y", say="{:,g}".format)
    log_axis(ax, "x", sorted(frame["batch"].unique()))
    name_over(ax, ink)
    return ax


def distinct_by_batch(frame: pd.DataFrame, ax: Axes | None = None, theme: str = "light") -> Axes:
    """How many different experts a layer needs for a batch: what was measured, and what chance would need.

    frame: with the columns batch, distinct (measured) and union_law, E(1 - (1 - K/E)^B): the expectation where B tokens
    choose K of E experts each, alike and independently. A column model, if there is one, tells points apart.
    """
    _check(frame, "frame", ("batch", "distinct", "union_law"))
    title = "Different experts that one layer needs for a batch"
    ax, ink = axes_for(ax, theme, 7.4, 3.6, title, "batch: tokens at once", "distinct experts")
    frame = frame if "model" in frame else frame.assign(model="")
    looks = model_looks(frame["model"].unique(), ink)
    curves = {model: rows.groupby("batch")[["distinct", "union_law"]].mean() for model, rows in frame.groupby("model")}
    one_law = len({tuple(curve.union_law) for curve in curves.values()}) == 1  # of models with one E and K
    for i, model in enumerate(frame["model"].unique()):
        (color, _, marker), curve, name = looks[model], curves[model], f"{model}: " if model else ""
        if i == 0 or not one_law:
            look = {"color": ink.foreground if one_law else color, "label": name * (not one_law)}
            look["label"] += "E(1 − (1 − K/E)$^B$)"
            ax.plot(curve.index, curve.union_law, "--", lw=1.4, **look)
        ax.plot(curve.index, curve.distinct, marker, color=color, ms=6, label=f"{name}measured")
    ax.set_ylim(0, None)
    log_axis(ax, "x", sorted(frame["batch"].unique()))
    name_over(ax, ink)
    return ax


def roofline(bandwidth: float, flops: float, points: pd.DataFrame, ax: Axes | None = None, theme="light") -> Axes:
    """What this machine can do at most, and what was reached: FLOP/s against FLOPs for each byte read from memory.

    bandwidth: bytes per second from memory; flops: FLOP/s of the arithmetic. The roof is the lesser of bandwidth ×
    intensity and flops (S. Williams, A. Waterman, D. Patterson, Roofline, 2009). points: with the columns name,
    intensity (FLOPs per byte) and flops_per_second; names that begin with that of a dense twin have its colour.
    """
    check_number("bandwidth", bandwidth, above=True)
    check_number("flops", flops, above=True)
    _check(points, "points", ("name", "intensity", "flops_per_second"))
    labels = "arithmetic intensity: FLOPs for each byte read", "GFLOP/s"
    ax, ink = axes_for(ax, theme, 8.4, 4.6, "The roofline of this machine", *labels)
    ridge = flops / bandwidth
    left, right = min(points.intensity.min(), ridge) / 3, max(points.intensity.max(), ridge) * 6
    bottom = min(points.flops_per_second.min(), bandwidth * left) / 1.5
    ax.plot([left, ridge, right], [bandwidth * left, flops, flops], color=ink.foreground, lw=2, zorder=2)
    ax.plot([ridge, ridge], [bottom, flops], ls=":", lw=1.2, color=ink.muted)
    ax.set(xlim=(left, right), ylim=(bottom, flops * 2.2))
    for start, end, word, color in ((left, ridge, "memory", ink.lines[4]), (ridge, right, "arithmetic", ink.lines[3])):
        side, at = ("left", 0.02) if start == left else ("right", 0.98)
        ax.fill_between([start, end], bottom, [min(bandwidth * x, flops) for x in (start, end)], color=color, alpha=0.1)
        write(ax, f"{word} sets the pace", (at, 0.05), ink, xycoords="axes fraction", ha=side, color=color)
    for name, x, y in zip(points["name"], points["intensity"], points["flops_per_second"]):
        color, _, marker = model_looks([name], ink)[name]
        ax.plot([x], [y], marker, color=color, ms=7.5, mec=ink.background, zorder=3)
    log_axis(ax, "x", say="{:g}".format)
    log_axis(ax, "y", say=lambda value: f"{value / 1e9:,g}")
    write(ax, f"{flops / 1e9:,.3g} GFLOP/s ", (right, flops), ink, (0, 7), ha="right")
    write(ax, f"  {bandwidth / 1e9:,.3g} GB/s", (left, bandwidth * left * 2.2), ink)
    ax.figure.canvas.draw()  # settles the layout, and with it where a point lies in pixels
    label_points(ax, points.intensity, points.flops_per_second, points["name"], ink)
    return ax


def seed_sweep(values, title: str, x_label: str, baseline: float | None = None, ax=None, theme="light") -> Axes:
    """Draw something measured from several seeds at several settings: `values` maps x (above 0) to values (S,).

    The line is the mean, the band reaches from the least to the largest seed; x is logarithmic. Dashed: a baseline.
    """
    ax, ink = axes_for(ax, theme, 6.4, 3.2, title, x_label)
    seeds = pd.DataFrame({x: np.asarray(own, dtype=float) for x, own in values.items()})
    curve = pd.DataFrame({"mean": seeds.mean(), "low": seeds.min(), "high": seeds.max()})
    banded(ax, curve, (ink.lines[3], "-", "o"), "mean, and all seeds")
    if baseline is not None:
        ax.axhline(baseline, ls="--", lw=1.2, color=ink.foreground, label="without")
    log_axis(ax, "x", list(values), "{:g}".format)
    ax.grid(color=ink.grid, lw=0.5)
    name_over(ax, ink)
    return ax


def model_looks(models: Sequence[str], ink: Theme) -> dict[str, tuple[str, str, str]]:
    """The colour, line style and marker of each model: those of `model_ink`, but of several mixtures shades of one
    hue, in their order."""
    looks = {model: (ink.lines[model_ink(model)], *STYLES[model_ink(model)]) for model in models}
    mixtures = [model for model in models if not model.startswith("dense")]
    if len(mixtures) > 1:  # shades that stand out from the page
        shades = colormaps["RdPu"](np.linspace(*(0.55, 1.0) if ink.name == "light" else (0.65, 0.1), len(mixtures)))
        looks |= {model: (to_hex(shade), "-", "o") for model, shade in zip(mixtures, shades)}
    return looks


def _check(frame: pd.DataFrame, name: str, columns: Sequence[str]) -> None:
    if not isinstance(frame, pd.DataFrame) or frame.empty:
        got = "an empty one" if isinstance(frame, pd.DataFrame) else type(frame).__name__
        raise ValueError(f"{name} must be a DataFrame with at least one row, got {got}")
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(f"{name} must have the columns {', '.join(columns)}, got none called {', '.join(missing)}")
    words = [column for column in columns if column not in NAMES and not is_numeric_dtype(frame[column])]
    if words:
        raise ValueError(f"{name} must have numbers in the columns {', '.join(words)}, got {frame[words[0]].dtype}")


def _log_loss(ax: Axes, losses: pd.DataFrame) -> None:
    """A logarithmic y axis that holds all numbers of some columns, with ticks at round losses."""
    found = losses[[name for name in ("mean", "low", "high") if name in losses]].to_numpy()
    low, high = found.min() * 0.96, found.max() * 1.04
    ax.set_ylim(low, high)
    ticks = [tick for tick in LOSSES if low <= tick <= high]
    log_axis(ax, "y", ticks if len(ticks) > 3 else list(MaxNLocator(6).tick_values(low, high)), "{:g}".format)
