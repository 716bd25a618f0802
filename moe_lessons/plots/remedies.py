"""Remedies against a collapse, beside each other: a small film of each, and panels that compare them all."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.collections import LineCollection
from matplotlib.image import AxesImage
from matplotlib.text import Annotation, Text
from matplotlib.ticker import MaxNLocator

from moe_lessons.plots.load import LoadFilm
from moe_lessons.plots.theme import LIGHT, Panel, Theme, axes_for, expert_image

LABEL_HEIGHT = 12.5  # pixels from one name to the next


class RemedyTile(LoadFilm):
    """A small load film with a remedy's name over it and up to two lines of text under it.

    The strip on the right is a second reading, of the router without its noise. A strong frame marks the selected
    tile.
    """

    rows = 60

    def __init__(self, ax: Axes, theme: Theme = LIGHT, name: str = "", num_experts: int = 8):
        self.title = name
        super().__init__(ax, theme, num_experts)
        ax.set_title(name, loc="left", fontsize=9.5 if len(name) < 25 else 8)
        ax.set(xlabel="", ylabel="", yticks=[])
        ax.tick_params(labelsize=7.5, pad=2)
        self.caption = write(ax, (0, 0), (0, -16), theme.foreground, va="top", linespacing=1.25)
        place = {"transform": ax.transAxes, "extent": (1.012, 1.052, 0, 1), "origin": "lower", "clip_on": False}
        self.clean = AxesImage(ax, interpolation="nearest", visible=False, **place)
        self.clean.set_data(np.zeros((1, 1, 3), np.uint8))
        ax.add_artist(self.clean)
        self.slow = [self.caption, self.clean]
        self.spines = list(ax.spines.values())

    def update(self, steps, loads, marks=(), caption: str = "", clean=None, selected: bool = False) -> None:
        """steps (N,), loads (N, E), marks: see `LoadFilm`; caption: the lines of text; clean (E,): shares now, without
        noise, or None."""
        super().update(steps, loads, marks)
        self.caption.set_text(caption)
        self.clean.set_visible(clean is not None)
        if clean is not None:
            heights = (np.arange(self.rows) + 0.5) / self.rows
            expert = np.searchsorted(np.cumsum(clean)[:-1], heights)
            self.clean.set_data(expert_image(expert[:, None]))
        for spine in self.spines:
            spine.set(color=self.theme.lines[1] if selected else self.theme.grid, lw=2 if selected else 0.8)


class RemedyCurves(Panel):
    """A quantity of each remedy against the steps, with the names where the lines end.

    One is selected: its line is strong, its band reaches from the lowest to the highest seed, and a dotted line may
    show a second reading of it.
    """

    def __init__(
        self,
        ax: Axes,
        theme: Theme = LIGHT,
        names: Sequence[str] = (),
        title: str = "Dead experts (mean of the seeds)",
        top: float = 8,
    ):
        self.title = title
        super().__init__(ax, theme)
        thin, strong = {"lw": 1, "color": theme.muted, "alpha": 0.7}, {"lw": 2.2, "color": theme.lines[1]}
        self.lines = [ax.plot([], [], **thin)[0] for _ in names]
        self.band = ax.fill_between([], [], color=theme.lines[1], alpha=0.25, lw=0, zorder=2.1)
        (self.strong,) = ax.plot([], [], zorder=2.2, **strong)
        (self.second,) = ax.plot([], [], ls=":", lw=1.6, color=theme.lines[1], zorder=2.3)
        self.labels = RightLabels(ax, theme, names)
        self.live = [*self.lines, self.band, self.strong, self.second, *ax.spines.values()]
        self.slow = self.labels.artists
        ax.grid(color=theme.grid, lw=0.5)
        ax.set(xlim=(0, self.first_x), ylim=(0, top), xlabel="step")

    def update(self, curves, selected: int = 0, second=None) -> None:
        """curves: for each name, steps (N,) and values (N, S) of S seeds; second: steps and values (N,), or None."""
        ends = []
        for i, (line, (steps, values)) in enumerate(zip(self.lines, curves, strict=True)):
            values = np.asarray(values)
            line.set_data(steps, values.mean(axis=1))
            if i == selected:
                self.strong.set_data(steps, values.mean(axis=1))
                self.band.set_data(steps, values.min(axis=1), values.max(axis=1))
            ends.append((steps[-1], values[-1].mean()))
        self.second.set_data(*(second if second is not None else ([], [])))
        self.limit_x(max(x for x, _ in ends))
        self.labels.update(ends, selected)


class BalanceQuality(Panel):
    """How evenly the load lies (across) against how often the model is right (up): a mark for each remedy, with a cross
    from the lowest to the highest seed. Up and to the left is better."""

    title = "Balance and quality (crosses: all seeds)"

    def __init__(self, ax: Axes, theme: Theme = LIGHT, names: Sequence[str] = ()):
        super().__init__(ax, theme)
        self.crosses = LineCollection([], zorder=2)
        ax.add_collection(self.crosses, autolim=False)
        self.marks = ax.scatter([0] * len(names), [0] * len(names), s=26, zorder=3)
        self.labels = RightLabels(ax, theme, names)
        self.slow = [self.crosses, self.marks, *self.labels.artists, *ax.spines.values()]
        write(ax, (0, 1), (5, -5), theme.muted, va="top", zorder=1.52).set_text("↖ better")
        ax.grid(color=theme.grid, lw=0.5)
        ax.set(xlim=(0, 1.5), ylim=(0, 1))
        ax.set_xlabel("variation of the load (0: even)")
        ax.set_ylabel("accuracy")
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))  # two decimals: 0.825 would reach the names

    def update(self, variations, accuracies, selected: int = 0) -> None:
        """variations, accuracies: for each name, the values (S,) of its seeds."""
        points = [(np.mean(x), np.mean(y)) for x, y in zip(variations, accuracies, strict=True)]
        segments, colors, widths = [], [], []
        for i, (x, y) in enumerate(zip(variations, accuracies, strict=True)):
            segments += [[(min(x), points[i][1]), (max(x), points[i][1])]]
            segments += [[(points[i][0], min(y)), (points[i][0], max(y))]]
            colors += [self.theme.lines[1] if i == selected else self.theme.muted] * 2
            widths += [1.8 if i == selected else 0.8] * 2
        self.crosses.set(segments=segments, colors=colors, linewidths=widths)
        self.marks.set(offsets=points, facecolors=colors[::2], edgecolors=self.theme.background)
        self._limit(max(map(max, variations)), min(map(min, accuracies)))
        self.labels.update(points, selected)

    def _limit(self, widest: float, lowest: float) -> None:
        """Axes that reach from even to the widest variation, and from the lowest accuracy to 1, in large steps."""
        right = next((stop for stop in (0.5, 1, 1.5, 2, 2.7) if stop >= widest), 1.05 * widest)
        bottom = next(stop for stop in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2, 0) if stop <= lowest)
        now_right, now_bottom = self.ax.get_xlim()[1], self.ax.get_ylim()[0]
        if right > now_right or widest < 0.6 * now_right or bottom < now_bottom or lowest > now_bottom + 0.25:
            if (right, bottom) != (now_right, now_bottom):
                self.ax.set(xlim=(0, right), ylim=(bottom, 1))
                self.stale = True


class RightLabels:
    """Names in a column on the right of the axes, each near its point and joined to it, none over another."""

    def __init__(self, ax: Axes, theme: Theme, names: Sequence[str]):
        self.ax, self.theme = ax, theme
        self.texts = [write(ax, (1, 0), (22, 0), theme.foreground, va="center", fontsize=8) for _ in names]
        for text, name in zip(self.texts, names, strict=True):
            text.set_text(name)
        self.leaders = LineCollection([], linewidths=0.6, transform=ax.transAxes, clip_on=False, zorder=1.55, alpha=0.7)
        ax.add_artist(self.leaders)
        self.artists = [self.leaders, *self.texts]

    def update(self, points: Sequence[tuple[float, float]], selected: int) -> None:
        """points: x and y of each name, in data coordinates."""
        box, scale = self.ax.bbox, self.ax.figure.dpi / 100
        at = self.ax.transAxes.inverted().transform(self.ax.transData.transform(np.asarray(points, dtype=float)))
        heights = spread(at[:, 1].clip(0, 0.97), LABEL_HEIGHT * scale / box.height, 0, 0.97)
        left, right = 1 + 5 * scale / box.width, 1 + 20 * scale / box.width
        self.leaders.set_segments([[xy, (left, y), (right, y)] for xy, y in zip(at, heights, strict=True)])
        strong = self.theme.lines[1]
        self.leaders.set_color([strong if i == selected else self.theme.muted for i in range(len(at))])
        for i, (text, y) in enumerate(zip(self.texts, heights, strict=True)):
            text.xy = (1, y)
            text.set_color(strong if i == selected else self.theme.foreground)


class Stamp(Annotation):
    """A text that is drawn as pixels, which are kept until it says something else: it moves at no cost.

    Text is the dearest thing to draw, and these panels have some fifty, most of which stay the same for a while.
    """

    _look, _stamp = None, None

    def draw(self, renderer) -> None:
        if not self.get_text() or not self.get_visible():
            return
        box = self.get_window_extent(renderer)
        look = self.get_text(), self.get_color(), renderer.dpi
        if look != self._look:
            scratch = RendererAgg(int(box.width) + 8, int(box.height) + 8, renderer.dpi)
            style = {"fontsize": self.get_fontsize(), "linespacing": self._linespacing, "va": "bottom"}
            text = Text(4, 4, self.get_text(), color=self.get_color(), **style)
            text.set_figure(self.get_figure(root=False))
            text.draw(scratch)
            self._look, self._stamp = look, np.asarray(scratch.buffer_rgba())[::-1].copy()  # images count from below
        renderer.draw_image(renderer.new_gc(), round(box.x0) - 4, round(box.y0) - 4, self._stamp)


def write(ax: Axes, place: tuple[float, float], offset: tuple[float, float], color: str, **look) -> Stamp:
    """An empty text at a place of the axes (0 to 1), moved by an offset in pixels (at 100 dpi)."""
    look = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 8, "color": color} | look
    stamp = Stamp("", place, tuple(0.72 * pixels for pixels in offset), annotation_clip=False, **look)
    ax.add_artist(stamp)
    return stamp


def spread(wanted, gap: float, low: float, high: float) -> np.ndarray:
    """The places nearest to those wanted (N,), in the same order, at least `gap` apart and from `low` to `high`.

    Least squares: y_i = p_i - i·gap must not fall, so it is the isotonic regression of the wanted places, which is
    max over a ≤ i of min over b ≥ i of the mean of a to b. Where there is no room for all, the gap is less.
    """
    wanted = np.asarray(wanted, dtype=float)
    num = len(wanted)
    gap = min(gap, (high - low) / max(num - 1, 1))
    order = np.argsort(wanted, kind="stable")
    level = wanted[order] - gap * np.arange(num)
    fitted = [max(min(level[a : b + 1].mean() for b in range(i, num)) for a in range(i + 1)) for i in range(num)]
    places = np.empty(num)
    places[order] = np.clip(fitted, low, high - gap * (num - 1)) + gap * np.arange(num)
    return places


def balance_quality(points, selected: str | None = None, ax: Axes | None = None, theme: str = "light") -> Axes:
    """Draw balance against quality: `points` maps a name to variations (S,) and accuracies (S,) of its seeds.

    See `BalanceQuality`; `selected` is the name of the strong mark.
    """
    ax, colors = axes_for(ax, theme)
    names = list(points)
    panel = BalanceQuality(ax, colors, names)
    panel.update(*zip(*points.values(), strict=True), names.index(selected) if selected else -1)
    return ax
