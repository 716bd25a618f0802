"""How busy each expert is: now, and over time."""

import numpy as np
from matplotlib.axes import Axes

from moe_lessons.plots.theme import LIGHT, Panel, Theme, axes_for, expert_color, expert_hatch, expert_image


class LoadBars(Panel):
    """A bar for each expert: the share of the assignments that the router wants for it. Dashed: the even share 1/E.

    Where experts have a capacity, a red line marks it, and the part of a bar above it is pale: it is dropped. Where
    the router is also read without its noise, a tick on each bar marks that reading.
    """

    title = "Load of each expert"

    def __init__(self, ax: Axes, theme: Theme = LIGHT, num_experts: int = 8):
        super().__init__(ax, theme)
        self.num_experts = num_experts
        experts = range(num_experts)
        bars = ax.bar(experts, [0] * num_experts, color=[expert_color(e) for e in experts], edgecolor=theme.background)
        for expert, bar in enumerate(bars):
            bar.set_hatch(expert_hatch(expert))
        dropped = ax.bar(experts, [0] * num_experts, color=[expert_color(e) for e in experts], alpha=0.35)
        self.even = ax.axhline(1 / num_experts, ls="--", lw=1.2, color=theme.foreground, label="even share")
        self.capacity = ax.axhline(0, lw=1.6, color="#ff4d4d", label="capacity", visible=False, zorder=1.9)
        (self.clean,) = ax.plot([], [], ls="", marker="_", ms=11, mew=2, color=theme.foreground, label="without noise")
        self.bars, self.dropped = list(bars), list(dropped)
        self.live = [*self.bars, *self.dropped, self.even, self.capacity, self.clean, *ax.spines.values()]
        self.named: list = []
        self.name_experts(ax.xaxis, num_experts)
        ax.set_xlim(-0.6, num_experts - 0.4)
        ax.set_ylabel("share of assignments")
        self.limit_y(min(1.15, 4 / num_experts))

    def update(self, load, capacity: float | None = None, clean=None) -> None:
        """load (E,): shares that sum to 1; capacity: as a share of all assignments; clean (E,): without noise."""
        limit = np.inf if capacity is None else capacity
        for bar, dropped, share in zip(self.bars, self.dropped, load, strict=True):
            bar.set_height(min(share, limit))
            dropped.set(y=limit if share > limit else 0, height=max(share - limit, 0))
        self.capacity.set(visible=capacity is not None, ydata=[capacity or 0] * 2)
        self.clean.set_data(range(self.num_experts if clean is not None else 0), clean if clean is not None else [])
        self._name([self.even, *[self.capacity] * (capacity is not None), *[self.clean] * (clean is not None)])
        highest = max(*load, *(clean if clean is not None else ()), capacity or 0, 1 / self.num_experts)
        tops = (min(1.15, 4 / self.num_experts), 0.5, 1.15, 1.1 * highest)
        top, now = next(top for top in tops if top >= highest), self.ax.get_ylim()[1]
        if top > now or highest < 0.8 * top:  # with some slack, or a load near a limit would go to and fro
            self.limit_y(top)

    def _name(self, shown: list) -> None:
        """A legend of the lines that are shown."""
        if shown != self.named:
            self.named, self.stale = shown, True
            look = {"fontsize": 7.5, "frameon": False, "labelcolor": self.theme.foreground, "handlelength": 1.5}
            legend = self.ax.legend(handles=shown, loc="upper right", ncols=len(shown), columnspacing=0.8, **look)
            legend.set_zorder(0.9)  # under the bars: they are drawn later when the picture moves


class LoadFilm(Panel):
    """The share of each expert at every step, stacked to 1: the film of a collapse. Dashed: where even shares lie."""

    title = "Load share over time"
    rows = 100

    def __init__(self, ax: Axes, theme: Theme = LIGHT, num_experts: int = 8):
        super().__init__(ax, theme)
        self.image = ax.imshow(np.zeros((1, 1, 3)), origin="lower", aspect="auto", interpolation="nearest", zorder=1)
        even = [ax.axhline(e / num_experts, ls="--", lw=0.6, color="black", alpha=0.45) for e in range(1, num_experts)]
        self.marks = self.draw_marks()
        self.live = [self.image, *even, self.marks, *ax.spines.values()]
        ax.set(xlim=(0, self.first_x), ylim=(0, 1), xlabel="step", ylabel="share of assignments")

    def update(self, steps, loads, marks=()) -> None:
        """steps (N,), loads (N, E): the shares of the experts at those steps; marks: steps to mark."""
        self.place_marks(self.marks, marks)
        self.image.set_visible(len(steps) > 0)
        if len(steps) == 0:
            return
        tops = np.cumsum(np.asarray(loads), axis=1)  # (N, E)
        heights = (np.arange(self.rows) + 0.5) / self.rows
        expert = np.zeros((self.rows, len(tops)), dtype=np.uint8)
        for top in tops[:, :-1].T:
            expert += heights[:, None] > top  # (rows, N): how many tops lie below
        self.image.set_data(expert_image(expert))
        self.image.set_extent((0, steps[-1], 0, 1))
        self.limit_x(steps[-1])


def load_bars(load, capacity: float | None = None, clean=None, ax: Axes | None = None, theme: str = "light") -> Axes:
    """Draw the load (E,) of each expert as shares that sum to 1. See `LoadBars`."""
    ax, colors = axes_for(ax, theme, height=2.8)
    LoadBars(ax, colors, len(load)).update(load, capacity, clean)
    return ax


def load_film(steps, loads, ax: Axes | None = None, theme: str = "light") -> Axes:
    """Draw the loads (N, E) of the experts at `steps` (N,), stacked. See `LoadFilm`."""
    ax, colors = axes_for(ax, theme, height=2.8)
    LoadFilm(ax, colors, len(loads[0])).update(steps, loads)
    ax.set_xlim(0, float(steps[-1]))
    return ax
