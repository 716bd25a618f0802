"""What all pictures share: colours, a matplotlib style, and figures that need no pyplot. What is drawn is light; a
renderer can turn it dark."""

import functools
import textwrap
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context, rc_params_from_file
from matplotlib.axes import Axes
from matplotlib.backend_bases import GraphicsContextBase
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox
from PIL import Image

from moe_lessons.nn.baselines import dense_name
from moe_lessons.support.errors import check_number

# Okabe and Ito's colours for all kinds of sight, so ordered that neighbours differ; a grey in the place of their black
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8C8C8C")
RED = "#ff4d4d"  # what is selected, a limit, a dead expert
HATCHES = ("", "////", "....", "xxxx")  # experts 0 to 7, 8 to 15, 16 to 23, 24 to 31, then again
LETTER = 6.6  # the pixels that a letter takes, at most, in a picture of panels
LARGE = 1.35  # times as large letters has a figure that a page shows smaller than it is
# by `ink`, as `Theme.lines`: dashes in widths of the line, as in the page, and markers
DASHES = ("-", (0, (4, 2.4)), (0, (1, 2)), (0, (5.3, 1.8, 1.2, 1.8)), (0, (2.4, 1.2)), (0, (8, 2.4)), "-", "-")
ALIVE, DEAD = 6, 7  # inks: no expert is dead, or some are
MARKERS = "osD^vPoX"
DENSE = "dense"  # how the names of dense models begin
DENSE_INKS = {dense_name(width): ink for width, ink in ((1, 1), (2, 4), (4, 2), (8, 3))}  # others have OTHER
OTHER = 5
COLORED = {
    "draw_path": (3,),
    "draw_markers": (5,),
    "draw_path_collection": (6, 7),
    "draw_quad_mesh": (7, 9),
    "draw_gouraud_triangles": (2,),
}  # methods of a renderer: which arguments are colours
LABEL_PLACES = ((8, 0), (-8, 0), (0, 8), (0, -8), (6, 6), (6, -6), (-6, 6), (-6, -6))  # points from a spot, best first
# letters of one size, no lines that say nothing
STYLE = rc_params_from_file(Path(__file__).with_name("lesson.mplstyle"), use_default_template=False)
TEXT_SIZE = STYLE["legend.fontsize"]  # points: 12 pixels


@dataclass(frozen=True)
class Theme:
    """The colours around data; `lines`, which no expert has, by `ink`: see `model_inks`; then alive, dead."""

    background: str
    foreground: str
    muted: str
    grid: str
    directions: tuple[str, str]  # below and above an even share
    lines: tuple[str, ...]


LIGHT = Theme(
    "#ffffff", "#1f2328", "#57606a", "#d0d7de", ("#5e3c99", "#b35806"),
    ("#1f2328", "#7a3b00", "#4a148c", "#00525c", "#ad1457", "#6e7781", "#1a7f37", "#d00000"),
)  # fmt: skip
DARK = Theme(  # of JupyterLab; directions and lines are those of live views
    "#111111", "#e6e6e6", "#b1b1b1", "#444444", ("#a274ff", "#fdb863"),
    ("#e6e6e6", "#d7b38c", "#b388ff", "#80deea", "#c5e1a5", "#9aa0a6", "#57d364", "#ff4d4d"),
)  # fmt: skip
BLACK, WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 0.999)  # in both themes; so white is told from LIGHT.background


def between(part: float, theme: Theme = LIGHT) -> str:
    """Mix a grey: a part of the foreground, the rest background."""
    paper, ink = (np.array(to_rgb(color)) for color in (theme.background, theme.foreground))
    return to_hex(paper + part * (ink - paper))


def colors_of(theme: Theme) -> list[str]:
    """All that is drawn with, in one order in each theme; the greys are those of `between`."""
    greys = [between(part, theme) for part in (0.07, 0.1, 0.3, 0.4)]
    return [theme.background, theme.foreground, theme.muted, theme.grid, *theme.directions, *theme.lines, *greys]


TURNED = dict(zip(colors_of(LIGHT), colors_of(DARK)))


def model_inks(names: Iterable[str]) -> list[int]:
    """Choose each model's `ink`: 0 a mixture, then others; that of a dense model is its width's, in every picture."""
    inks: list[int] = []
    for name in names:
        wanted = (DENSE_INKS.get(name, OTHER),) if name.startswith(DENSE) else (0, 3, 4, 5)
        inks.append(next((ink for ink in wanted if ink not in inks), wanted[len(inks) % len(wanted)]))
    return inks


def expert_color(expert: int) -> str:
    """Say the colour of an expert, the same in every picture of the course; after eight experts it repeats."""
    return PALETTE[expert % len(PALETTE)]


def expert_hatch(expert: int) -> str:
    """Say the hatching that tells expert 8 from expert 0, 16 from 8, and so on."""
    return HATCHES[expert // len(PALETTE) % len(HATCHES)]


@functools.cache
def ink_on(color: str) -> tuple[float, float, float]:
    """Choose black or white, whichever is read better on `color` (WCAG 2.2, relative luminance)."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return BLACK if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else WHITE


def short_number(n: float) -> str:
    """Write a large number with its unit, to three digits: 46,702,792,704 is '46.7 B', 999,999 is '1 M'."""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " K")):
        if n >= 0.9995 * size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.3g}"


def percent(part: float) -> str:
    """Write a part of 1 in percent: below ten, but for 0, to a tenth, as numbers.js does."""
    return f"{100 * part:.{1 if 0 < part < 0.0995 else 0}f} %"


def as_weight(weight: float) -> str:
    """Write the weight of an expert that serves in hundredths, as numbers.js does."""
    return "<0.01" if weight < 0.005 else f"{weight:.2f}"


class LessonFigure(Figure):
    """A matplotlib figure in the style of the course, without pyplot and its global state; a notebook shows it.

    width, height: in hundreds of pixels. letters: how large they are, beside `STYLE` at 100 dots per inch."""

    def __init__(self, width: float = 6.4, height: float = 3.6, letters: float = LARGE):
        width, height = check_number("width", width, above=True), check_number("height", height, above=True)
        size = width / letters, height / letters
        super().__init__(figsize=size, dpi=100 * letters, facecolor=LIGHT.background, layout="constrained")
        FigureCanvasAgg(self)

    def add_subplot(self, *args, **kwargs) -> Axes:
        return styled(super().add_subplot, *args, **kwargs)

    def png(self) -> bytes:
        """Make the picture as PNG, always of the same size."""
        self.canvas.print_png(buffer := BytesIO(), metadata={"Software": None})
        return buffer.getvalue()

    def dark_png(self) -> str:
        """Make the picture that `png` has made in the colours of `DARK`, in base64: the metadata `dark` of a PNG, shown
        in a dark JupyterLab and on a dark page of the site."""
        shaded = self.findobj(lambda part: getattr(getattr(part, "cmap", None), "name", "").startswith("#"))
        given, layout = [part.cmap for part in shaded], self.get_layout_engine()
        set_shades(shaded, [shades(*map(turned_shade, cmap.name.split())) for cmap in given])
        self.set_layout_engine("none")  # everything stays in its place
        self.draw(renderer := DarkRenderer(*self.bbox.size, self.dpi))
        self.set_layout_engine(layout)
        set_shades(shaded, given)
        image = Image.fromarray(np.asarray(renderer.buffer_rgba())).convert("RGB")
        if image.getcolors(2000):  # a palette does well, and takes a third; with more of them it loses small parts
            image = image.quantize(dither=Image.Dither.NONE)
        image.save(buffer := BytesIO(), "png", optimize=True)
        return b64encode(buffer.getvalue()).decode()

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict[str, Any], dict[str, Any]]:
        titles = ", ".join(filter(None, (ax.get_title(loc="left") for ax in self.axes)))
        width = round(self.bbox.width)
        data = {"image/png": b64encode(self.png()).decode(), "text/plain": f"Figure: {titles}"}
        return data, {"image/png": {"alt": titles, "width": width, "dark": self.dark_png()}}


def shades(*colors: str) -> LinearSegmentedColormap:
    """Go from each colour to the next; its name says which, as a dark picture has others."""
    return LinearSegmentedColormap.from_list(" ".join(colors), colors)


def set_shades(parts: Iterable[Any], cmaps: Iterable[Colormap]) -> None:
    for part, cmap in zip(parts, cmaps):
        with part.callbacks.blocked():  # or its colour bar would lose its ticks
            part.set_cmap(cmap)


def turned_shade(color: str) -> str:
    """The dark one. Where it is the background, cells stay cells: as in live views they are a little lighter."""
    return between(0.16, DARK) if color == LIGHT.background else TURNED.get(color[:7], color[:7]) + color[7:]


def turned(colors: Any) -> Any:
    """Colours (…, 3 or 4) of `LIGHT` in `DARK`; all others, as those of experts, stay."""
    found = np.array(colors, dtype=float)  # a copy
    for light, dark in TURNED.items() if found.size else ():
        found[(np.asarray(colors)[..., :3] == to_rgb(light)).all(axis=-1), :3] = to_rgb(dark)
    return tuple(found) if found.ndim == 1 else found


class DarkContext(GraphicsContextBase):
    """Turns the colours of lines and of text."""

    def set_foreground(self, fg, isRGBA=False):
        super().set_foreground(turned(to_rgba(fg)), isRGBA=True)


class DarkRenderer(RendererAgg):
    """Draws what is in `LIGHT` in `DARK`."""

    def __init__(self, *size: float):
        super().__init__(*size)
        for name, places in COLORED.items():
            setattr(self, name, functools.partial(self._draw_turned, getattr(self, name), places))

    def _draw_turned(self, draw, places, *args, **options) -> None:
        args = (turned(arg) if i in places and arg is not None else arg for i, arg in enumerate(args))
        draw(*args, **options)

    def new_gc(self):
        return DarkContext()

    def draw_text(self, gc, x, y, *args, **options):
        if gc.get_rgb()[:3] in (BLACK, WHITE):  # it was chosen by `ink_on`, and its ground may have turned
            gc.set_foreground(ink_on(to_hex(np.asarray(self.buffer_rgba())[int(y), int(x), :3] / 255)))
        super().draw_text(gc, x, y, *args, **options)


def styled(add_axes: Callable[..., Any], *args, **kwargs) -> Any:
    """Make axes, or a color bar, in the style of the course."""
    with rc_context(STYLE):
        made = add_axes(*args, **kwargs)
    ticks = {"length": 2, "color": LIGHT.grid, "labelcolor": LIGHT.muted, "labelsize": TEXT_SIZE}  # made when drawn
    getattr(made, "ax", made).tick_params(which="both", grid_color=LIGHT.grid, grid_linewidth=0.5, **ticks)
    return made


def axes_for(width: float, height: float, title: str, xlabel: str = "", ylabel: str = "") -> Axes:
    """Make the axes of a new figure of this size."""
    return dress(LessonFigure(width, height).add_subplot(), title, xlabel, ylabel)


def dress(ax: Axes, title: str = "", xlabel: str = "", ylabel: str = "") -> Axes:
    """Say what the axes show, in the style of the course."""
    with rc_context(STYLE):
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return ax


def annotate(ax: Axes, text: str, place: tuple, by=(0, 0), halo: str = "", **options) -> Annotation:
    """Write something at a place, moved by so many points. halo: the colour of what it lies on."""
    options = {"fontsize": TEXT_SIZE, "color": LIGHT.foreground, "va": "center", "parse_math": False} | options
    written = ax.annotate(text, place, by, textcoords="offset points", annotation_clip=False, **options)
    if halo:
        written.set_path_effects([withStroke(linewidth=3, foreground=halo)])
    return written


def label_points(ax: Axes, x, y, names: Sequence[str]) -> Axes:
    """Name each point beside it, at the first of `LABEL_PLACES` within the axes that covers no point and no name."""
    ax.figure.draw_without_rendering()  # settles the layout, and with it where a point lies in pixels
    taken = [Bbox([spot - 6, spot + 6]) for spot in ax.transData.transform(np.column_stack([x, y]))]
    for i, (name, point) in enumerate(zip(names, zip(x, y))):
        label = annotate(ax, name, point, halo=LIGHT.background, zorder=4)
        for place in LABEL_PLACES:
            right, up = np.sign(place)
            label.set(position=place, ha=("center", "left", "right")[right], va=("center", "bottom", "top")[up])
            box = label.get_window_extent()
            is_inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.figure.bbox.x1
            if is_inside and not box.count_overlaps(taken[:i] + taken[i + 1 :]):
                break
        taken.append(box)
    return ax


def name_over(ax: Axes) -> Axes:
    """Put a legend of what has a label between the title and the picture: there it covers nothing."""
    handles, texts = ax.get_legend_handles_labels()
    if texts:
        points = 72 / ax.figure.dpi  # in a pixel
        room = int((points * ax.bbox.width - 33) / (0.72 * LETTER))  # letters
        texts = [textwrap.fill(text, max(room, 12)) for text in texts]
        longest = max(len(line) for text in texts for line in text.splitlines())
        columns = max(1, min((room + 7) // (longest + 7), len(texts)))
        with rc_context(STYLE):
            legend = ax.legend(handles, texts, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns)
            ax.set_title(ax.get_title(loc="left"), pad=8 + points * legend.get_window_extent().height)
    return ax


def log_axis(ax: Axes, name: str, ticks: Iterable[float] | None = None, say="{:g}".format, grid="") -> Axes:
    """Make the axis 'x' or 'y' logarithmic, with these ticks, or with as many round ones as there is room for."""
    ax.set(**{f"{name}scale": "log"})
    axis, (low, high) = getattr(ax, f"{name}axis"), getattr(ax, f"get_{name}lim")()
    subs = (1, 2, 3, 4, 6, 8) if high < 20 * low else (1, 2, 5) if high < 200 * low else (1,)
    axis.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: say(value)))
    axis.set_minor_locator(NullLocator())
    ax.grid(axis=grid or name)
    return ax
