"""One look for every picture: colours, themes, and figures that need no pyplot."""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from moe_lessons.errors import check_choice

# Okabe and Ito's colours for all kinds of sight, ordered so that neighbours differ; their black is a grey here,
# which is seen on a light and on a dark page. The same in both themes.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8C8C8C")
PALETTE_BYTES = (255 * np.array([to_rgb(color) for color in PALETTE])).round().astype(np.uint8)
HATCHES = ("", "////", "....", "xxxx")  # experts 0 to 7, 8 to 15, 16 to 23, 24 to 31, then again


@dataclass(frozen=True)
class Theme:
    """The colours around the data."""

    name: str
    background: str
    foreground: str
    muted: str
    grid: str
    lines: tuple[str, ...]  # of curves: the first is the model in question, the others are what it is compared with


THEMES = {
    "light": Theme(
        "light",
        background="#ffffff",
        foreground="#1f2328",
        muted="#57606a",
        grid="#d0d7de",
        lines=("#1f2328", "#D55E00", "#0072B2", "#CC79A7"),
    ),
    "dark": Theme(
        "dark",
        background="#111111",
        foreground="#e6e6e6",
        muted="#a8a8a8",
        grid="#3a3a3a",
        lines=("#e6e6e6", "#E69F00", "#56B4E9", "#CC79A7"),
    ),
}
LIGHT = THEMES["light"]


def expert_color(expert: int) -> str:
    """The colour of an expert, the same in every picture of the course. It repeats after eight: see the hatch."""
    return PALETTE[expert % len(PALETTE)]


def expert_hatch(expert: int) -> str:
    """The hatching that tells expert 8 from expert 0, 16 from 8, and so on."""
    return HATCHES[expert // len(PALETTE) % len(HATCHES)]


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 1 to 21; text wants 4.5 or more (WCAG 2.2, relative luminance).

    >>> round(contrast("#ffffff", "black"), 6), round(contrast("#0072B2", "white"), 1)
    (21.0, 5.2)
    """
    dark, light = sorted(_luminance(color) for color in (one, other))
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: str) -> float:
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@functools.cache
def ink_on(color: str) -> str:
    """Black or white: the colour of text that is read better on `color`.

    >>> ink_on("#0072B2"), ink_on("#E69F00")
    ('#ffffff', '#000000')
    """
    return max(("#000000", "#ffffff"), key=lambda ink: contrast(ink, color))


def static_mode() -> bool:
    """Whether MOE_LESSONS_STATIC=1 asks for pictures in the place of widgets and HTML, as a static page needs."""
    return os.environ.get("MOE_LESSONS_STATIC", "") not in ("", "0")


def expert_image(expert: np.ndarray) -> np.ndarray:
    """Paint a map of expert numbers (rows, columns) as RGB bytes (rows, columns, 3), hatched from expert 8 on."""
    image = PALETTE_BYTES[expert % len(PALETTE)]
    if expert.max() < len(PALETTE):
        return image
    row, column = np.indices(expert.shape)
    rising, falling = (row + column) % 6 < 2, (row - column) % 6 < 2
    stripes = {1: rising, 2: (row % 5 < 2) & (column % 5 < 2), 3: rising | falling}
    for hatch, light in stripes.items():
        place = (expert // len(PALETTE) % len(HATCHES) == hatch) & light
        image[place] = 128 + image[place] // 2
    return image


def shortened(name: str, most: int) -> str:
    """The name, or where it has more than `most` characters its beginning and an ellipsis."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


class LessonFigure(Figure):
    """A matplotlib figure that shows itself in a notebook, without pyplot and so without global state."""

    def __init__(self, width: float = 6.4, height: float = 3.6, theme: Theme = LIGHT, dpi: int = 100):
        super().__init__(figsize=(width, height), dpi=dpi, facecolor=theme.background, layout="constrained")
        self.theme = theme
        FigureCanvasAgg(self)

    def png(self) -> bytes:
        """The picture as PNG, always of the same size."""
        buffer = BytesIO()
        self.canvas.print_png(buffer, metadata={"Software": None})
        return buffer.getvalue()

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict[str, Any], dict[str, Any]]:
        titles = ", ".join(ax.get_title(loc="left") for ax in self.axes if ax.get_title(loc="left"))
        data = {"image/png": self.png(), "text/plain": f"Figure: {titles}"}
        return data, {"image/png": {"alt": titles, "width": round(self.get_figwidth() * self.dpi)}}


class Panel:
    """One picture in one axes: artists are made once, `update` gives them new data.

    `live` artists change with every frame, `slow` ones may be refreshed a few times a second; everything else
    stands still until `stale` says that the axes themselves have changed (limits, ticks). The static plot
    functions make a panel, update it once and return its axes, so that both show the same.
    """

    title: ClassVar[str] = ""

    def __init__(self, ax: Axes, theme: Theme = LIGHT):
        self.ax, self.theme = ax, theme
        self.live: list[Artist] = []
        self.slow: list[Artist] = []
        self.stale = False
        ax.set_title(self.title, loc="left", fontsize=10, color=theme.foreground, pad=5)
        ax.set_facecolor(theme.background)
        ax.tick_params(which="both", labelsize=8, colors=theme.muted, length=2)
        ax.xaxis.label.set(color=theme.muted, fontsize=8.5)
        ax.yaxis.label.set(color=theme.muted, fontsize=8.5)
        for spine in ax.spines.values():
            spine.set_color(theme.grid)

    def name_experts(self, axis, num_experts: int) -> None:
        """Tick labels E0, E1, …; every second one where they would touch."""
        shown = range(0, num_experts, 1 if num_experts <= 8 else 2 if num_experts <= 16 else 4)
        axis.set_ticks(list(shown), [f"E{e}" for e in shown])

    def limit_y(self, top: float) -> None:
        """Set the upper end of the y axis, once it really changes."""
        if self.ax.get_ylim()[1] != top:
            self.ax.set_ylim(0, top)
            self.stale = True

    def limit_x(self, right: float) -> None:
        """Make room up to `right` on the x axis, in steps of a half, so that it seldom changes."""
        now, room = self.ax.get_xlim()[1], self.first_x
        while room < right:
            room *= 1.5
        if right > now or room < now / 2:
            self.ax.set_xlim(0, room)
            self.stale = True

    first_x: float = 200

    def draw_marks(self) -> Line2D:
        """Thin vertical lines where something was changed; `place_marks` moves them."""
        (line,) = self.ax.plot([], [], lw=0.9, color=self.theme.foreground, alpha=0.6)
        return line

    def place_marks(self, line: Line2D, x: Sequence[float]) -> None:
        """One line, from bottom to top at each x, with gaps between."""
        bottom, top = self.ax.get_ylim()
        line.set_data(np.repeat(x, 3), np.tile([bottom, top, np.nan], len(x)))


def axes_for(ax: Axes | None, theme: str, width: float = 6.4, height: float = 3.6) -> tuple[Axes, Theme]:
    """The given axes, or those of a new figure, and the theme to draw with."""
    check_choice("theme", theme, THEMES)
    if ax is None:
        ax = LessonFigure(width, height, THEMES[theme]).add_subplot()
    return ax, THEMES[theme]
