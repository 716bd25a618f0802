"""Pictures of a collapse: who gets a gradient, who is pushed where, who was dead from the start, and what it costs."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from moe_lessons.plots.curves import STYLES
from moe_lessons.plots.load import LoadBars, LoadFilm
from moe_lessons.plots.theme import LIGHT, Theme, axes_for, expert_color, expert_hatch


class EarlyFilm(LoadFilm):
    """The film of the load, with room for the first 60 steps: a collapse is over by then."""

    first_x = 60


class GradientFilm(EarlyFilm):
    """The film of the gradients: which share of their norms each expert's weights got, at every step."""

    title = "Gradient share over time"

    def __init__(self, ax: Axes, theme: Theme = LIGHT, num_experts: int = 8):
        super().__init__(ax, theme, num_experts)
        ax.set_ylabel("share of gradient norm")


class GradientBars(LoadBars):
    """A bar for each expert: the share of the gradient norms that its weights got. A tick: its share of the load."""

    title = "Gradient of each expert"

    def __init__(self, ax: Axes, theme: Theme = LIGHT, num_experts: int = 8):
        super().__init__(ax, theme, num_experts)
        self.clean.set_label("its load")
        ax.set_ylabel("share of gradient norm")


def share_scatter(x, y, labels: tuple[str, str], title: str, ax: Axes | None = None, theme: str = "light") -> Axes:
    """Two shares of each expert against each other: x, y (N, E) from N steps or runs. Dashed: the even share.

    Dotted: where both are equal.
    """
    ax, ink = plain_axes(ax, theme, title, 4.2, 3.6)
    x, y = np.asarray(x), np.asarray(y)
    num_experts = x.shape[1]
    for expert in range(num_experts):
        look = {"color": expert_color(expert), "edgecolor": ink.background, "lw": 0.4}
        ax.scatter(x[:, expert], y[:, expert], s=26, label=f"E{expert}", clip_on=False, zorder=3, **look)
    for line in (ax.axhline, ax.axvline):
        line(1 / num_experts, ls="--", lw=0.8, color=ink.muted)
    top = 1.08 * max(x.max(), y.max())
    ax.plot([0, top], [0, top], ls=":", lw=0.8, color=ink.muted)
    ax.set(xlim=(0, top), ylim=(0, top), xlabel=labels[0], ylabel=labels[1])
    look = {"facecolor": ink.background, "edgecolor": "none", "labelcolor": ink.foreground, "fontsize": 7.5}
    legend = ax.legend(loc="upper left", framealpha=1, handletextpad=0.1, ncols=2, columnspacing=0.6, **look)
    legend.set_zorder(2.5)  # over the dashed lines, under the points
    return ax


def push_bars(own, others, title: str = "Push on the score of each expert", ax: Axes | None = None, theme="light"):
    """Two bars for each expert: the push on its score by its own tokens (full) and by all others (pale); up is up.

    own, others (E,): see `analysis.collapse.score_pushes`.
    """
    ax, ink = plain_axes(ax, theme, title, 6.4, 3.2)
    places = np.arange(len(own))
    colors, hatches = [expert_color(e) for e in places], [expert_hatch(e) for e in places]
    edge = {"edgecolor": ink.background, "lw": 0.5}
    ax.bar(places - 0.2, own, 0.4, color=colors, hatch=hatches, **edge)
    ax.bar(places + 0.2, others, 0.4, color=colors, hatch=hatches, alpha=0.4, **edge)
    ax.axhline(0, lw=1, color=ink.foreground)
    for name, alpha in (("by its own tokens", 1.0), ("by the tokens of the others", 0.4)):
        ax.bar([0], [0], color=ink.muted, alpha=alpha, label=name)
    low, high = min(np.min(own), np.min(others), 0), max(np.max(own), np.max(others), 0)
    ax.set_ylim(low - 0.05 * (high - low), high + 0.3 * (high - low))  # room for the legend
    ax.set_xticks(places, [f"E{e}" for e in places])
    ax.set_ylabel("push (nats per unit of score)")
    ax.legend(loc="upper right", fontsize=8.5, frameon=False, labelcolor=ink.foreground, ncols=2)
    return ax


def dead_curves(dead: Mapping[str, Sequence], num_experts: int = 8, ax: Axes | None = None, theme="light") -> Axes:
    """Dead experts over N steps: for each name (S, N), drawn as the mean over S seeds and the range of them all."""
    ax, ink = plain_axes(ax, theme, "Dead experts: mean of the seeds, and their range", 7.6, 3.4)
    for i, (name, values) in enumerate(dead.items()):
        values = np.asarray(values)
        steps = np.arange(1, values.shape[1] + 1)
        color = ink.lines[i % len(ink.lines)]
        ax.fill_between(steps, values.min(axis=0), values.max(axis=0), color=color, alpha=0.13, lw=0)
        ax.plot(steps, values.mean(axis=0), color=color, ls=STYLES[i % len(STYLES)], lw=2, label=name)
    ax.set(xlim=(0, steps[-1]), ylim=(-0.1, num_experts), xlabel="step", ylabel=f"dead experts of {num_experts}")
    ax.legend(fontsize=8.5, frameon=False, labelcolor=ink.foreground, loc="upper left", ncols=2)
    return ax


def dead_histogram(dead: Mapping[str, Sequence[int]], num_experts: int = 8, ax: Axes | None = None, theme="light"):
    """In how many of the routers there are 0, 1, 2, … dead experts: for each name, a count of each router."""
    ax, ink = plain_axes(ax, theme, "Dead experts before the first step", 6.4, 3.2)
    width = 0.8 / len(dead)
    for i, (name, counts) in enumerate(dead.items()):
        heights = np.bincount(np.asarray(counts), minlength=num_experts)[:num_experts]
        places = np.arange(num_experts) + (i - (len(dead) - 1) / 2) * width
        ax.bar(places, heights, width, color=ink.lines[(i + 1) % len(ink.lines)], label=name)
    ax.set_xticks(range(num_experts))
    ax.set(xlabel=f"dead experts of {num_experts}", ylabel="routers")
    ax.legend(fontsize=8.5, frameon=False, labelcolor=ink.foreground)
    return ax


def accuracy_dots(accuracies: Mapping[str, Sequence[float]], title: str, ax: Axes | None = None, theme="light") -> Axes:
    """The accuracy of several settings: a dot for each seed, a line and a number for their mean."""
    ax, ink = plain_axes(ax, theme, title, 4.4, 3.2)
    for place, values in enumerate(accuracies.values()):
        color, mean = ink.lines[(place + 1) % len(ink.lines)], np.mean(values)
        ax.plot(place + np.linspace(-0.2, 0.2, len(values)), values, "o", ms=5, color=color, alpha=0.7, mew=0)
        ax.hlines(mean, place - 0.3, place + 0.3, color=ink.foreground, lw=1.6)
        ax.text(place + 0.33, mean, f"{mean:.1%}", va="center", fontsize=8.5, color=ink.foreground)
    ax.set_xticks(range(len(accuracies)), list(accuracies), fontsize=8.5)
    ax.set(xlim=(-0.5, len(accuracies) - 0.25), ylim=(0.6, 1), ylabel="accuracy on held-out points")
    ax.grid(axis="y", color=ink.grid, lw=0.5)
    return ax


def plain_axes(ax: Axes | None, theme: str, title: str, width: float, height: float) -> tuple[Axes, Theme]:
    """`ax`, or the axes of a new figure of `width` × `height` inches, and the theme to draw with."""
    ax, ink = axes_for(ax, theme, width, height)
    ax.set_title(title, loc="left", fontsize=10, color=ink.foreground, pad=5)
    ax.set_facecolor(ink.background)
    ax.tick_params(labelsize=8, colors=ink.muted, length=2)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set(color=ink.muted, fontsize=8.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(ink.grid)
    return ax, ink
