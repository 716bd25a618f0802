"""Loss against steps, arithmetic and time."""

import numpy as np
from matplotlib.axes import Axes

from moe_lessons.errors import check_choice
from moe_lessons.plots.theme import LIGHT, Panel, Theme, axes_for

X_AXES = {"steps": "step", "FLOPs": "training FLOPs so far", "seconds": "seconds of training"}
STYLES = ("-", "--", ":", "-.")


def running_mean(values, window: int = 10) -> np.ndarray:
    """The mean of each value and the ones before it, `window` in all, or as many as there are."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(1, len(sums))
    start = np.maximum(index - window, 0)
    return (sums[index] - sums[start]) / (index - start)


class LossCurves(Panel):
    """The loss of several models, against steps, FLOPs or seconds. A ghost is an earlier run, to compare with."""

    title = "Loss (cross entropy, nats)"

    def __init__(
        self,
        ax: Axes,
        theme: Theme = LIGHT,
        names: tuple[str, ...] = ("MoE",),
        x_axis: str = "steps",
        has_ghost: bool = False,
    ):
        super().__init__(ax, theme)
        self.x_axis = check_choice("x_axis", x_axis, X_AXES)
        self.first_x = {"steps": 200, "FLOPs": 1e7, "seconds": 0.25}[x_axis]
        (self.ghost,) = ax.plot([], [], lw=3.5, color=theme.muted, alpha=0.45, zorder=1.6)  # over the grid (1.5)
        if has_ghost:
            self.ghost.set_label("previous run")
        self.lines = []
        for i, name in enumerate(names):
            look = {"ls": STYLES[i % 4], "color": theme.lines[i % 4], "lw": 2 if i == 0 else 1.4}
            self.lines += ax.plot([], [], label=name, **look)
        legend = ax.legend(fontsize=8, frameon=False, labelcolor=theme.foreground, loc="upper right", handlelength=2.6)
        legend.set_zorder(1.55)  # under the curves: they are drawn later when the picture moves
        self.marks = self.draw_marks()
        self.live = [self.ghost, *self.lines, self.marks, *ax.spines.values()]
        ax.grid(color=theme.grid, lw=0.5)
        ax.set(xlim=(0, self.first_x), ylim=(0, 1), xlabel=X_AXES[x_axis])

    def update(self, curves, ghost=None, marks=()) -> None:
        """curves: for each name, x (N,) and loss (N,), in the order of the names; ghost: x and loss, or None; marks:
        x to mark. The axis follows the curves; of a longer ghost it shows at most as much again."""
        shown = [curve for curve in (*curves, ghost) if curve is not None and len(curve[0])]
        self.ghost.set_data(*(ghost if ghost is not None else ([], [])))
        for line, (x, loss) in zip(self.lines, curves, strict=True):
            line.set_data(x, loss)
        if shown:
            reach = max((x[-1] for x, _ in curves if len(x)), default=0)
            ghostly = ghost[0][-1] if ghost is not None and len(ghost[0]) else 0
            self.limit_x(max(reach, min(ghostly, 2 * reach) if reach else ghostly))
            highest = max(float(max(loss)) for _, loss in shown)
            self.limit_y(next((top for top in (0.5, 1, 1.5, 2, 2.5, 3, 4, 6, 7) if top >= highest), 10))
        self.place_marks(self.marks, marks)


def loss_curves(curves, ghost=None, x_axis: str = "steps", ax: Axes | None = None, theme: str = "light") -> Axes:
    """Draw losses: `curves` maps a name to (x, loss). `x_axis` says what x is: 'steps', 'FLOPs' or 'seconds'."""
    ax, colors = axes_for(ax, theme)
    LossCurves(ax, colors, tuple(curves), x_axis, ghost is not None).update(list(curves.values()), ghost)
    return ax


def seed_sweep(
    values, title: str, x_label: str, baseline: float | None = None, ax: Axes | None = None, theme: str = "light"
) -> Axes:
    """Draw something measured from several seeds at several settings: `values` maps x (above 0) to values (S,).

    The line is the mean, the band reaches from the least to the largest seed; x is logarithmic. Dashed: a baseline.
    """
    ax, colors = axes_for(ax, theme, height=3.2)
    Panel(ax, colors)
    x = list(values)
    seeds = [np.asarray(values[key], dtype=float) for key in x]
    color = colors.lines[1]
    low, high = [s.min() for s in seeds], [s.max() for s in seeds]
    ax.fill_between(x, low, high, color=color, alpha=0.2, lw=0, label="all seeds")
    ax.plot(x, [s.mean() for s in seeds], "o-", color=color, lw=2, ms=5, label="mean")
    if baseline is not None:
        ax.axhline(baseline, ls="--", lw=1.2, color=colors.foreground, label="without")
    ax.set(xscale="log", xlabel=x_label)
    ax.set_xticks(x, [f"{key:g}" for key in x])
    ax.set_xticks([], minor=True)
    ax.set_title(title, loc="left", fontsize=10, color=colors.foreground, pad=5)
    ax.grid(color=colors.grid, lw=0.5)
    ax.legend(fontsize=8, frameon=False, labelcolor=colors.foreground)
    return ax
