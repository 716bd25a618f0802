"""Where the words of a `Heat` stand in a still picture: on no line and on no other words, as in canvas/labels.js."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from matplotlib.path import Path
from matplotlib.transforms import Bbox

from moe_lessons.plots.marks import Boxes, Heat, Line, Panel, Points, Rule
from moe_lessons.plots.theme import LETTER

HALF = 6  # of the height of words, in pixels, as all that follows
FREE = 2  # around words
APART = 4  # of a contour from its name
LEAST = 0.04  # of the map: what a region needs for its words
EVEN = 0.03  # as a logarithm: no region


class Label(NamedTuple):
    """A text, and the pixels of its middle from the lower left corner of the axes."""

    text: str
    x: float
    y: float
    is_region: bool

    @property
    def box(self) -> tuple[float, float, float, float]:
        half = LETTER * (1.1 if self.is_region else 1) * len(self.text) / 2
        return self.x - half, self.y - HALF, self.x + half, self.y + HALF


def place_labels(panel: Panel, width: float, height: float) -> list[Label]:
    """Place the words of the `Heat` that a panel begins with, the regions' first, in axes of this size."""
    heat, axes = panel.marks[0], (panel.x, panel.y)

    def pixels(x, y) -> np.ndarray:
        places = zip(np.broadcast_arrays(x, y), axes, (width, height))
        return np.column_stack([(own - axis.low) / (axis.high - axis.low) * size for own, axis, size in places])

    rows = np.linspace(0, height, len(heat.z))
    contours = [np.column_stack([pixels(line, 0.0)[:, 0], rows]) for line in np.asarray(heat.contours, "f8")]
    lines = [*map(Path, contours)]
    rings = [] if heat.selected is None else pixels(*heat.selected)
    taken = [(x - 9, y - HALF, x + 9, y + HALF) for x, y in rings]
    for mark in panel.marks:
        if isinstance(mark, Line):
            lines.append(Path(pixels(mark.x, mark.y)))
        elif isinstance(mark, Rule):
            ends = [mark.x] * 2 if mark.y is None else [panel.x.low, panel.x.high]
            lines.append(Path(pixels(ends, [panel.y.low, panel.y.high] if mark.y is None else [mark.y] * 2)))
        elif isinstance(mark, Points):
            taken += [(x - 7, y - HALF, x + 7, y + HALF) for x, y in pixels(mark.x, mark.y)]
        elif isinstance(mark, Boxes):
            said = zip(pixels(*np.asarray(mark.places)[:, :2].T), mark.texts)
            taken += [(x, y - HALF, x + LETTER * len(text), y + HALF) for (x, y), text in said]

    def is_free(label: Label) -> bool:
        left, low, right, high = label.box
        is_inside = left > FREE and low > FREE and right < width - FREE and high < height - FREE
        around = Bbox.from_extents(left - FREE, low - FREE, right + FREE, high + FREE)
        boxes = [*taken, *(other.box for other in labels)]
        is_apart = all(left > x1 + 8 or right < x0 - 8 or low > y1 + 2 or high < y0 - 2 for x0, y0, x1, y1 in boxes)
        return is_inside and is_apart and not any(line.intersects_bbox(around, filled=False) for line in lines)

    labels: list[Label] = []
    wanted = [*_regions(heat, width, height)]
    wanted += [part for name, line in zip(heat.names, contours) for part in _beside(name, line)]
    for options in wanted:
        labels += [label for label in options if is_free(label)][:1]
    return labels


def _regions(heat: Heat, width: float, height: float) -> Iterator[list[Label]]:
    """For each region the places of its words, those near its middle first: of what is below 0; of what is above,
    beside that, or under it and over it."""
    z, rows = np.asarray(heat.z), np.arange(len(heat.z))[:, None]
    is_below = z < -EVEN
    low, high = (np.where(is_below, rows, end) for end in (len(z), -1))
    under, over, beside = rows < low.min(axis=0), rows > high.max(axis=0), ~is_below.any(axis=0)
    around = [beside] if beside.mean() > 0.5 else [under & ~beside, over & ~beside]
    for text, region in zip(heat.regions[:1] + heat.regions[1:] * 2, [is_below, *around]):
        own = region & (abs(z) > EVEN)
        if own.sum() < LEAST * z.size:
            continue
        places = np.argwhere(own.T) / (np.array(z.shape[::-1]) - 1) * (width, height)
        order = np.hypot(*(places - places.mean(axis=0)).T).argsort(kind="stable")
        yield [Label(text, x, y, True) for x, y in places[order]]


def _beside(name: str, line: np.ndarray) -> Iterator[list[Label]]:
    """For both halves of a contour (rows, 2), the upper first, the places of its name, from its end inwards."""
    half, middle = LETTER * len(name) / 2, len(line) // 2
    for part in (line[:middle:-1], line[: middle + 1]):
        beside = ((APART + half, 0), (-APART - half, 0), (0, APART + HALF), (0, -APART - HALF))
        yield [Label(name, x + right, y + up, False) for x, y in part for right, up in beside]
