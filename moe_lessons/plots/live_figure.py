"""Several panels in one figure that is drawn many times a second."""

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from moe_lessons.plots.theme import LIGHT, Panel, Theme


class Row(NamedTuple):
    """A row of panels: how many, how high in pixels (title and labels included) and, in widths of a panel's axes, the
    space between two and the part of each that is left free on its right."""

    panels: int
    height: int = 290
    gap: float = 0.24
    room: float = 0.0


class LiveFigure:
    """Panels in a grid, drawn by blitting: what stands still is drawn once and kept as pixels.

    Over that background the slow artists are drawn when they are asked for and kept too, and the live ones with every
    frame, in the order of their zorder. The pixels are the same as those of a full drawing.

    make_panels: functions (axes, theme) -> Panel, one for each place in the grid, row by row.
    caption_lines: leave room for so many lines of text under the panels.
    rows: the `Row`s, where they are not all alike; `columns` and `row_height` then count for nothing.
    """

    def __init__(
        self,
        make_panels: Sequence[Callable[[Axes, Theme], Panel]],
        columns: int = 3,
        theme: Theme = LIGHT,
        width: int = 980,
        row_height: int = 290,
        dpi: int = 100,
        caption_lines: int = 0,
        rows: Sequence[Row] = (),
    ):
        rows = rows or [Row(columns, row_height)] * -(-len(make_panels) // columns)
        below = 10 + 14 * caption_lines if caption_lines else 0  # pixels
        height = sum(row.height for row in rows) + below
        self.figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor=theme.background)
        self.canvas = FigureCanvasAgg(self.figure)
        places = _places(rows, width, height)[: len(make_panels)]
        axes = [self.figure.add_axes(place) for place in places]
        self.panels = [make(ax, theme) for make, ax in zip(make_panels, axes, strict=True)]
        self.live = self._by_zorder([artist for panel in self.panels for artist in panel.live])
        self.slow = self._by_zorder([artist for panel in self.panels for artist in panel.slow])
        for artist in (*self.live, *self.slow):
            artist.set_animated(True)
        self._caption = self.figure.text(50 / width, 10 / height, "", fontsize=9, color=theme.foreground, wrap=True)
        self._still = self._with_text = None

    @staticmethod
    def _by_zorder(artists: list) -> list:
        return sorted(artists, key=lambda artist: artist.get_zorder())

    @property
    def caption(self) -> str:
        """The text under the panels; it needs `caption_lines`."""
        return self._caption.get_text()

    @caption.setter
    def caption(self, text: str) -> None:
        if text != self.caption:
            self._caption.set_text(text)
            self._still = None

    def draw(self, text: bool = False) -> None:
        """Draw the panels as they are now. `text` refreshes the slow artists too: without it, their pixels stay."""
        if self._still is None or any(panel.stale for panel in self.panels):
            self.canvas.draw()
            self._still = self.canvas.copy_from_bbox(self.figure.bbox)
            self._with_text = None
            for panel in self.panels:
                panel.stale = False
        if text or self._with_text is None:
            self.canvas.restore_region(self._still)
            for artist in self.slow:
                artist.axes.draw_artist(artist)
            self._with_text = self.canvas.copy_from_bbox(self.figure.bbox)
        self.canvas.restore_region(self._with_text)
        for artist in self.live:
            artist.axes.draw_artist(artist)

    def pixels(self) -> np.ndarray:
        """(height, width, 4): the picture as it was last drawn, RGBA."""
        return np.asarray(self.canvas.buffer_rgba())

    def encode(self, kind: str = "png") -> bytes:
        """The picture as it was last drawn: 'png' (exact) or 'jpeg' (six times faster, for pictures in motion)."""
        buffer, size = BytesIO(), self.canvas.get_width_height()
        image = Image.frombuffer("RGBX", size, self.canvas.buffer_rgba(), "raw", "RGBX", 0, 1)  # opaque: X is unused
        if kind == "jpeg":
            image.save(buffer, "jpeg", quality=85, subsampling=0)
        else:
            image.convert("RGB").save(buffer, "png", compress_level=6)
        return buffer.getvalue()

    def panel_at(self, x: float, y: float) -> tuple[int, float, float] | None:
        """The panel under a place in the picture (0 to 1, from the top left), and the data coordinates there."""
        width, height = self.canvas.get_width_height()
        pixel = (x * width, (1 - y) * height)
        for i, panel in enumerate(self.panels):
            if panel.ax.bbox.contains(*pixel):
                return i, *panel.ax.transData.inverted().transform(pixel)
        return None


def _places(rows: Sequence[Row], width: int, height: int) -> list[tuple[float, float, float, float]]:
    """Left, bottom, width and height of the axes, as parts of the figure: row by row, from the top left."""
    places, top = [], height
    for row in rows:
        axes_width = (width - 62) / (row.panels + row.gap * (row.panels - 1))  # 50 pixels on the left, 12 on the right
        for i in range(row.panels):
            left, bottom = 50 + i * axes_width * (1 + row.gap), top - row.height + 46
            box = left / width, bottom / height, axes_width * (1 - row.room) / width, (row.height - 72) / height
            places.append(box)  # 26 pixels above for the title, 46 below for ticks and label
        top -= row.height
    return places
