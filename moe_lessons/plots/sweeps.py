"""What many runs showed: loss against what was spent, the learning rates that models stand, speed against the batch."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from pandas.api.types import is_numeric_dtype

from moe_lessons.errors import check_choice, check_number
from moe_lessons.plots.cost import LABEL_PLACES, label_points, short_number
from moe_lessons.plots.theme import Panel, Theme, axes_for

SPENT = {  # what loss can be set against: the column, and what the axis says
    "steps": ("step", "steps"),
    "FLOPs": ("flops", "training FLOPs"),
    "seconds": ("seconds", "seconds of training"),
    "parameters": ("parameters", "total parameters"),
}
SPEEDS = {  # the column, and what the axis says
    "tokens_per_second": "tokens per second",
    "speedup": "times the tokens/s of the equal-total twin",
}
NAMES = ("model", "name", "seed")  # columns of names, and not of numbers
TWINS = ("dense, same active", "dense, same total")
LOSSES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)  # ticks
UNION_LAW = "E(1 − (1 − K/E)$^B$)"


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
    ax, ink = axes_for(ax, theme, 8.4, 4)
    looks = model_looks(results["model"].unique(), ink)
    _dress(ax, ink, f"Held-out loss against {label}", label, "loss (nats per byte)")
    if x == "parameters":
        _final_losses(ax, ink, results, looks)
    else:
        curves = {}
        for model, runs in results.groupby("model", sort=False):
            curves[model] = runs.groupby("step").agg(x=(column, "mean"), mean=("loss", "mean"), low=("loss", "min"),
                                                     high=("loss", "max"))  # fmt: skip
        for model, curve in sorted(curves.items(), key=lambda item: -item[1]["mean"].iloc[-1]):  # as the lines end
            color, style, _ = looks[model]
            ax.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.2, lw=0)
            ax.plot(curve.x, curve["mean"], style, color=color, lw=1.8, label=model)
        _legend(ax, ink)
        _log_loss(ax, results["loss"])
    if x == "steps":
        ax.set_xlim(0, None)
    else:
        _log_x(ax, short_number if x != "seconds" else "{:g}".format)
    return ax


def _final_losses(ax: Axes, ink: Theme, results: pd.DataFrame, looks: dict) -> None:
    """A point for each model and size: the mean of the last losses, and a bar over all seeds."""
    last = results.sort_values("step").groupby(["model", "parameters", "seed"]).tail(1)
    table = last.groupby(["parameters", "model"]).loss.agg(["mean", "min", "max"]).reset_index()  # by size
    family = table[~table["model"].map(is_dense)]
    ax.plot(family.parameters, family["mean"], "-", color=ink.muted, lw=1.2, zorder=1.8)
    for row in table.to_dict("records"):
        color, _, marker = looks[row["model"]]
        ax.vlines(row["parameters"], row["min"], row["max"], color=color, lw=2)
        ax.plot([row["parameters"]], [row["mean"]], marker, color=color, ms=8, mec=ink.background, label=row["model"])
    ax.set_xlim(0.85 * table.parameters.min(), 1.3 * table.parameters.max())
    ax.set_xscale("log")
    _log_loss(ax, last.loss)
    ax.figure.canvas.draw()  # settles the layout, and with it where a point lies in pixels
    beside_the_line = [place for place in LABEL_PLACES if place[1] > 0] + list(LABEL_PLACES)  # which falls
    label_points(ax, table.parameters, table["mean"], table.model, ink, beside_the_line)


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
    ax, ink = axes_for(ax, theme, 8.4, 4)
    looks = model_looks(results["model"].unique(), ink)
    _dress(ax, ink, "Held-out loss against the learning rate", "learning rate", "loss (nats per byte)")
    for model, runs in last[~failed].groupby("model", sort=False):
        color, style, marker = looks[model]
        curve = runs.groupby("lr").loss.agg(["mean", "min", "max"])
        ax.fill_between(curve.index, curve["min"], curve["max"], color=color, alpha=0.2, lw=0)
        ax.plot(curve.index, curve["mean"], style + marker, color=color, lw=1.8, ms=5, label=model)
        safe = curve["mean"].drop(last["lr"][failed & (last["model"] == model)], errors="ignore")
        best = safe.nsmallest(1)
        ax.plot(best.index, best, "o", ms=12, mfc="none", mec=color, mew=1.5)
    if not failed.all():
        _log_loss(ax, last["loss"][~failed])
    rates = sorted(last["lr"].unique())
    for i, (model, runs) in enumerate(last[failed].groupby("model", sort=False)):
        look = {"color": looks[model][0], "ms": 8, "mew": 2, "clip_on": False}
        at = sorted(runs["lr"].unique())
        ax.plot(
            at, [1 - 0.05 * i] * len(at), "x", transform=ax.get_xaxis_transform(), label=f"{model}: diverged", **look
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(rates))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    _legend(ax, ink)
    return ax


def speed_by_batch(
    frame: pd.DataFrame, y: str = "tokens_per_second", ax: Axes | None = None, theme: str = "light"
) -> Axes:
    """Speed of decoding against the batch, a line for each model; both axes logarithmic.

    frame: with the columns model, batch and y: 'tokens_per_second', or 'speedup', where a dashed line marks the speed
    of the twin. Several rows of one model and batch are drawn as their median, with a band over all; for 'speedup', the
    columns low and high, if there are any, are the ends of the band.
    """
    label = SPEEDS[check_choice("y", y, SPEEDS)]
    _check(frame, "frame", ("model", "batch", y))
    ax, ink = axes_for(ax, theme, 8.4, 3.8)
    looks = model_looks(frame["model"].unique(), ink)
    _dress(ax, ink, "Decoding: " + label, "batch: sequences at once", label)
    for model, rows in frame.groupby("model", sort=False):
        color, style, marker = looks[model]
        low, high = ("low", "high") if y == "speedup" and {"low", "high"} <= set(rows) else (y, y)
        curve = rows.groupby("batch").agg(median=(y, "median"), low=(low, "min"), high=(high, "max"))
        ax.fill_between(curve.index, curve.low, curve.high, color=color, alpha=0.2, lw=0)
        ax.plot(curve.index, curve["median"], style + marker, color=color, lw=1.8, ms=5, label=model)
    if y == "speedup":
        ax.axhline(1, ls="--", lw=1.2, color=ink.foreground, label="dense, same total")
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    _batches(ax, frame["batch"])
    _legend(ax, ink)
    return ax


def distinct_by_batch(frame: pd.DataFrame, ax: Axes | None = None, theme: str = "light") -> Axes:
    """How many different experts a layer needs for a batch: what was measured, and what chance would need.

    frame: with the columns batch, distinct (measured) and union_law, E(1 - (1 - K/E)^B): the expectation where B tokens
    choose K of E experts each, alike and independently. A column model, if there is one, tells points apart.
    """
    _check(frame, "frame", ("batch", "distinct", "union_law"))
    ax, ink = axes_for(ax, theme, 7.4, 3.6)
    frame = frame if "model" in frame else frame.assign(model="")
    looks = model_looks(frame["model"].unique(), ink)
    title = "Different experts that one layer needs for a batch"
    _dress(ax, ink, title, "batch: tokens at once", "distinct experts")
    curves = {model: rows.groupby("batch")[["distinct", "union_law"]].mean() for model, rows in frame.groupby("model")}
    one_law = len({tuple(curve.union_law) for curve in curves.values()}) == 1  # of models with one E and K
    for i, model in enumerate(frame["model"].unique()):
        color, _, marker = looks[model]
        curve, name = curves[model], f"{model}: " if model else ""
        if i == 0 or not one_law:
            look = {"color": ink.foreground if one_law else color, "label": ("" if one_law else name) + UNION_LAW}
            ax.plot(curve.index, curve.union_law, "--", lw=1.4, **look)
        ax.plot(curve.index, curve.distinct, marker, color=color, ms=6, label=f"{name}measured")
    ax.set_ylim(0, None)
    _batches(ax, frame["batch"])
    _legend(ax, ink)
    return ax


def roofline(
    bandwidth: float, flops: float, points: pd.DataFrame, ax: Axes | None = None, theme: str = "light"
) -> Axes:
    """What this machine can do at most, and what was reached: FLOP/s against FLOPs for each byte read from memory.

    bandwidth: bytes per second from memory; flops: FLOP/s of the arithmetic. The roof is the lesser of bandwidth ×
    intensity and flops (S. Williams, A. Waterman, D. Patterson, Roofline, 2009). points: with the columns name,
    intensity (FLOPs per byte) and flops_per_second; names that begin with that of a dense twin have its colour.
    """
    check_number("bandwidth", bandwidth, above=True)
    check_number("flops", flops, above=True)
    _check(points, "points", ("name", "intensity", "flops_per_second"))
    ax, ink = axes_for(ax, theme, 8.4, 4.6)
    _dress(ax, ink, "The roofline of this machine", "arithmetic intensity: FLOPs for each byte read", "GFLOP/s")
    ridge = flops / bandwidth
    left, right = min(points.intensity.min(), ridge) / 3, max(points.intensity.max(), ridge) * 6
    bottom = min(points.flops_per_second.min(), bandwidth * left) / 1.5
    ax.plot([left, ridge, right], [bandwidth * left, flops, flops], color=ink.foreground, lw=2, zorder=2)
    ax.fill_between([left, ridge], bottom, [bandwidth * left, flops], color=ink.lines[2], alpha=0.1, lw=0)
    ax.fill_between([ridge, right], bottom, [flops, flops], color=ink.lines[1], alpha=0.1, lw=0)
    ax.plot([ridge, ridge], [bottom, flops], ls=":", lw=1.2, color=ink.muted)
    for place, word, color in (
        (0.02, "memory sets the pace", ink.lines[2]),
        (0.98, "arithmetic sets the pace", ink.lines[1]),
    ):
        ax.text(
            place, 0.03, word, transform=ax.transAxes, ha="left" if place < 0.5 else "right", fontsize=9, color=color
        )
    for name, x, y in zip(points["name"], points["intensity"], points["flops_per_second"]):
        model = next((twin for twin in TWINS if str(name).startswith(twin)), "MoE")
        color, _, marker = model_looks([model], ink)[model]
        ax.plot([x], [y], marker, color=color, ms=7.5, mec=ink.background, zorder=3)
    ax.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, flops * 2.2))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e9:,g}"))
    ax.text(right, flops * 1.12, f"{flops / 1e9:,.3g} GFLOP/s ", ha="right", fontsize=9, color=ink.foreground)
    ax.text(left, bandwidth * left * 2.2, f"  {bandwidth / 1e9:,.3g} GB/s", fontsize=9, color=ink.foreground)
    ax.figure.canvas.draw()  # settles the layout, and with it where a point lies in pixels
    label_points(ax, points.intensity, points.flops_per_second, points["name"], ink)
    return ax


def model_looks(models: Sequence[str], ink: Theme) -> dict[str, tuple[str, str, str]]:
    """The colour, line style and marker of each model. The dense twins look as in other pictures, and so does a lone
    mixture; several are shades, in their order."""
    looks = {TWINS[0]: (ink.lines[1], "--", "s"), TWINS[1]: (ink.lines[2], ":", "D")}
    mixtures = [model for model in models if not is_dense(model)]
    shades = colormaps["RdPu"](np.linspace(*(0.55, 1.0) if ink.name == "light" else (0.65, 0.1), len(mixtures)))
    colors = [ink.lines[0]] if len(mixtures) == 1 else map(to_hex, shades)  # shades that stand out from the page
    others = {model: (ink.lines[3], "-.", "^") for model in models if is_dense(model)}
    return others | looks | {name: (color, "-", "o") for name, color in zip(mixtures, colors)}


def is_dense(model: str) -> bool:
    return str(model).startswith("dense")


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


def _dress(ax: Axes, ink: Theme, title: str, x_label: str, y_label: str) -> None:
    Panel(ax, ink)
    ax.set_title(title, loc="left", fontsize=11, color=ink.foreground, pad=6)
    ax.set_xlabel(x_label, color=ink.foreground, fontsize=10)
    ax.set_ylabel(y_label, color=ink.foreground, fontsize=10)
    ax.tick_params(which="both", labelsize=9, labelcolor=ink.foreground)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color=ink.grid, lw=0.5)


def _legend(ax: Axes, ink: Theme) -> None:
    look = {"fontsize": 9, "frameon": False, "labelcolor": ink.foreground, "handlelength": 2.6}
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), **look)


def _log_loss(ax: Axes, losses: pd.Series) -> None:
    """A logarithmic y axis, with ticks at round losses."""
    low, high = losses.min() * 0.96, losses.max() * 1.04
    ticks = [tick for tick in LOSSES if low <= tick <= high]
    ax.set(yscale="log", ylim=(low, high))
    if len(ticks) < 4:
        ticks = MaxNLocator(6).tick_values(low, high)
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def _log_x(ax: Axes, say) -> None:
    ax.set_xscale("log")
    left, right = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if right < 300 * left else (1,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: say(value)))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _batches(ax: Axes, batches: pd.Series) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(batches.unique()), [f"{batch:g}" for batch in sorted(batches.unique())])
    ax.xaxis.set_minor_locator(NullLocator())
