"""Several panels in one figure that is drawn many times a second."""

import time
from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from moe_lessons.plots.theme import LIGHT, Panel, Theme

TEXT_INTERVAL = 0.5  # seconds between two refreshes of the slow artists: text is the dearest thing to draw


class LiveFigure:
    """Panels in a grid, drawn by blitting: what stands still is drawn once and kept as pixels.

    Over that background the slow artists are drawn a few times a second and kept too, and the live ones with every
    frame, in the order of their zorder. The pixels are the same as those of a full drawing.

    make_panels: functions (axes, theme) -> Panel, one for each place in the grid, row by row.
    has_caption: leave room for a line of text under the panels.
    """

    def __init__(
        self,
        make_panels: Sequence[Callable[[Axes, Theme], Panel]],
        columns: int = 3,
        theme: Theme = LIGHT,
        width: int = 980,
        row_height: int = 290,
        dpi: int = 100,
        has_caption: bool = False,
    ):
        rows = -(-len(make_panels) // columns)
        below = 24 if has_caption else 0  # pixels
        height = rows * row_height + below
        self.figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor=theme.background)
        self.canvas = FigureCanvasAgg(self.figure)
        inner = {"left": 50 / width, "right": 1 - 12 / width, "top": 1 - 26 / height, "bottom": (40 + below) / height}
        cells = self.figure.add_gridspec(rows, columns, **inner, hspace=76 / (row_height - 76), wspace=0.24)
        axes = [self.figure.add_subplot(cells[i // columns, i % columns]) for i in range(len(make_panels))]
        self.panels = [make(ax, theme) for make, ax in zip(make_panels, axes, strict=True)]
        self.live = self._by_zorder([artist for panel in self.panels for artist in panel.live])
        self.slow = self._by_zorder([artist for panel in self.panels for artist in panel.slow])
        for artist in (*self.live, *self.slow):
            artist.set_animated(True)
        self._caption = self.figure.text(50 / width, 10 / height, "", fontsize=9, color=theme.foreground)
        self._still = self._with_text = None
        self.want_text()

    @staticmethod
    def _by_zorder(artists: list) -> list:
        return sorted(artists, key=lambda artist: artist.get_zorder())

    @property
    def caption(self) -> str:
        """A line under the panels; it needs `has_caption`."""
        return self._caption.get_text()

    @caption.setter
    def caption(self, text: str) -> None:
        if text != self.caption:
            self._caption.set_text(text)
            self._still = None

    def text_is_due(self) -> bool:
        """Whether the next drawing refreshes the slow artists."""
        return self._with_text is None or time.monotonic() - self._text_time > TEXT_INTERVAL

    def want_text(self) -> None:
        """Have the next drawing refresh the slow artists."""
        self._text_time = float("-inf")

    def draw(self, final: bool = False) -> None:
        """Draw the panels as they are now. `final` refreshes the slow artists too."""
        if self._still is None or any(panel.stale for panel in self.panels):
            self.canvas.draw()
            self._still = self.canvas.copy_from_bbox(self.figure.bbox)
            self._with_text = None
            for panel in self.panels:
                panel.stale = False
        if final or self.text_is_due():
            self.canvas.restore_region(self._still)
            for artist in self.slow:
                artist.axes.draw_artist(artist)
            self._with_text = self.canvas.copy_from_bbox(self.figure.bbox)
            self._text_time = time.monotonic()
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
