"""One look for every picture: colours, themes, and figures that need no pyplot."""

import functools
import os
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from moe_lessons.errors import check_choice

# Okabe and Ito's colours for all kinds of sight, ordered so that neighbours differ; their black is a grey here,
# which is seen on a light and on a dark page. The same in both themes.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8C8C8C")
PALETTE_BYTES = (255 * np.array([to_rgb(color) for color in PALETTE])).round().astype(np.uint8)
RED = "#ff4d4d"  # what is selected, a limit, a dead expert
HATCHES = ("", "////", "....", "xxxx")  # experts 0 to 7, 8 to 15, 16 to 23, 24 to 31, then again
TITLE_SIZE, TEXT_SIZE, LETTER = 10, 8.5, 6.6  # points: 14 and 12 pixels; the pixels that a letter takes, at most

# where a name may stand, seen from its point, best first: offset in points, alignment
LABEL_PLACES = (
    (8, 0, "left", "center"), (-8, 0, "right", "center"),
    (0, 8, "center", "bottom"), (0, -8, "center", "top"),
    (6, 6, "left", "bottom"), (6, -6, "left", "top"),
    (-6, 6, "right", "bottom"), (-6, -6, "right", "top"),
)  # fmt: skip


@dataclass(frozen=True)
class Theme:
    """The colours around the data."""

    name: str
    background: str
    foreground: str
    muted: str
    grid: str
    lines: tuple[str, ...]  # by `ink`: the mixture, the dense twins of its active and its total size, and others


LIGHT = Theme(
    *("light", "#ffffff", "#1f2328", "#57606a", "#d0d7de"),
    ("#1f2328", "#D55E00", "#0072B2", "#CC79A7", "#007a58", "#6e7781"),
)
DARK = Theme(
    *("dark", "#111111", "#e6e6e6", "#a8a8a8", "#3a3a3a"),
    ("#e6e6e6", "#E69F00", "#56B4E9", "#CC79A7", "#2fbf92", "#9aa0a6"),
)
THEMES = {"light": LIGHT, "dark": DARK}


def model_ink(name: str, place: int = 0) -> int:
    """The number of a model's colour in `Theme.lines`, the same in every picture: 0 a mixture, 1 and 2 its dense twins
    of the same active and the same total size. Further mixtures and other dense models have one of the others.

    >>> [model_ink(name) for name in ("MoE", "dense, same active", "dense: same total size")], model_ink("noise", 1)
    ([0, 1, 2], 3)
    """
    if name.startswith("dense"):
        return 1 if "same active" in name else 2 if "same total" in name else (3, 4, 5)[place % 3]
    return (0, 3, 4, 5)[place % 4]


def model_inks(names: Iterable[str]) -> list[int]:
    """The ink of each model of a picture; different ones as long as there are enough."""
    inks: list[int] = []
    for name in names:
        wanted = [model_ink(name, place) for place in range(4)]
        inks.append(next((ink for ink in wanted if ink not in inks), wanted[len(inks) % 4]))
    return inks


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
    rgb = np.array([to_rgb(one), to_rgb(other)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ (0.2126, 0.7152, 0.0722))
    return float((light + 0.05) / (dark + 0.05))


@functools.cache
def ink_on(color: str) -> str:
    """Black or white: the colour of text that is read better on `color`.

    >>> ink_on("#0072B2"), ink_on("#E69F00")
    ('#ffffff', '#000000')
    """
    return max(("#000000", "#ffffff"), key=lambda ink: contrast(ink, color))


def stripe_on(color: str) -> str:
    """The colour of stripes on `color`: further from the ink of text on it, so that text stays as readable."""
    return to_hex([0.65 * part + 0.35 * (ink_on(color) == "#000000") for part in to_rgb(color)])


def expert_image(expert: np.ndarray) -> np.ndarray:
    """Paint a map of expert numbers (rows, columns) as RGB bytes (rows, columns, 3), hatched from expert 8 on."""
    image, level = PALETTE_BYTES[expert % len(PALETTE)], expert // len(PALETTE) % len(HATCHES)
    row, column = np.indices(expert.shape)
    rising, falling = (row + column) % 6 < 2, (row - column) % 6 < 2
    dots = (row % 5 < 2) & (column % 5 < 2)
    light = (level == 1) & rising | (level == 2) & dots | (level == 3) & (rising | falling)
    image[light] = 128 + image[light] // 2
    return image


def static_mode() -> bool:
    """Whether MOE_LESSONS_STATIC=1 asks for pictures in the place of widgets and HTML, as a static page needs."""
    return os.environ.get("MOE_LESSONS_STATIC", "") not in ("", "0")


def shortened(name: str, most: int) -> str:
    """The name, or where it has more than `most` characters its beginning and an ellipsis."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def short_number(n: float, digits: int = 3) -> str:
    """A large number with its unit, to three digits: 46,702,792,704 is '46.7 B', 1,568 is '1.57 K'.

    >>> short_number(46_702_792_704), short_number(999_999), short_number(12)
    ('46.7 B', '1 M', '12')
    """
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " K")):
        if n >= size * (1 - 0.5 * 10**-digits):
            return f"{n / size:.{digits}g}{unit}"
    return f"{n:.{digits}g}"


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


def axes_for(ax: Axes | None, theme: str, width=6.4, height=3.6, title="", xlabel="", ylabel="") -> tuple[Axes, Theme]:
    """The given axes, or those of a new figure, in the look of the course, and the theme to draw with."""
    check_choice("theme", theme, THEMES)
    if ax is None:
        ax = LessonFigure(width, height, THEMES[theme]).add_subplot()
    dress(ax, THEMES[theme], title, xlabel, ylabel)
    return ax, THEMES[theme]


def dress(ax: Axes, theme: Theme, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Give axes the look of the course: letters of one size, no lines that say nothing."""
    ax.set_title(title, loc="left", fontsize=TITLE_SIZE, color=theme.foreground, pad=6)
    ax.set(facecolor=theme.background, axisbelow=True)
    ax.tick_params(which="both", labelsize=TEXT_SIZE, color=theme.grid, labelcolor=theme.muted, length=2)
    ax.set_xlabel(xlabel, color=theme.foreground, fontsize=TEXT_SIZE)
    ax.set_ylabel(ylabel, color=theme.foreground, fontsize=TEXT_SIZE)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(theme.grid)


def write(ax: Axes, text: str, place: tuple[float, float], theme: Theme, by=(0, 0), halo=False, **look) -> Annotation:
    """Write something at a place, moved by so many points, in the letters of the course. halo: readable on lines."""
    look = {"fontsize": TEXT_SIZE, "color": theme.foreground, "va": "center", "parse_math": False} | look
    written = ax.annotate(text, place, by, textcoords="offset points", annotation_clip=False, **look)
    written.set_path_effects([withStroke(linewidth=3, foreground=theme.background)] * halo)
    return written


def label_points(ax: Axes, x, y, names: Sequence[str], ink: Theme, places: Sequence = LABEL_PLACES) -> None:
    """Name each point beside it, at the first of `places` within the axes that covers no point and no other name."""
    pixels = ax.transData.transform(np.column_stack([x, y]))
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in pixels]
    for i, (name, point) in enumerate(zip(names, zip(x, y))):
        label = write(ax, name, point, ink, halo=True, zorder=4)
        for dx, dy, ha, va in places:
            label.set(position=(dx, dy), ha=ha, va=va)
            left, low, right, high = label.get_window_extent().extents
            others = (a < right and left < c and b < high and low < d for a, b, c, d in taken[:i] + taken[i + 1 :])
            if ax.bbox.x0 <= left and right <= ax.figure.bbox.x1 and not any(others):
                break
        taken.append((left, low, right, high))


def name_over(ax: Axes, theme: Theme) -> None:
    """A legend of what has a label, between the title and the picture: there it covers nothing."""
    handles, texts = ax.get_legend_handles_labels()
    if not texts:
        return
    room = ax.bbox.width * 100 / ax.figure.dpi  # pixels
    texts = [textwrap.fill(text, max(int((room - 36) / LETTER), 12)) for text in texts]
    widths = [46 + LETTER * max(map(len, text.split("\n"))) for text in texts]
    columns = len(texts) if sum(widths) < room else max(1, int(room / max(widths)))
    rows = -(-sum(text.count("\n") + 1 for text in texts) // columns)
    look = {"handlelength": 2.2, "columnspacing": 1.2, "labelspacing": 0.25, "borderpad": 0, "borderaxespad": 0.4}
    look |= {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": columns, "frameon": False, "fontsize": TEXT_SIZE}
    ax.legend(handles, texts, labelcolor=theme.foreground, **look)
    ax.set_title(ax.get_title(loc="left"), loc="left", fontsize=TITLE_SIZE, pad=8 + 11.2 * rows)


def log_axis(ax: Axes, name: str, ticks: Iterable[float] | None = None, say=short_number) -> None:
    """Make the axis 'x' or 'y' logarithmic, with these ticks, or with as many round ones as there is room for."""
    ax.set(**{f"{name}scale": "log"})
    axis, (low, high) = getattr(ax, f"{name}axis"), getattr(ax, f"get_{name}lim")()
    axis.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: say(value)))
    axis.set_minor_locator(NullLocator())
    axis.grid(True, color=ax.spines["left"].get_edgecolor(), lw=0.5)
