"""Where the words of a `Heat` stand in a still picture, by the rules of canvas/labels.js."""

from collections.abc import Iterator
from itertools import compress
from typing import NamedTuple

import numpy as np

from moe_lessons.plots.marks import Boxes, Heat, Line, Panel, Points, Rule
from moe_lessons.plots.theme import LETTER

HALF = 6  # of the height of words, in pixels, as all that follows
APART = 2.5  # words
ENOUGH = 6  # from words to a line that they do not name
CLEARLY = 0.5  # more room than elsewhere
FINE = 4  # places of a name from row to row
LEAST = 0.04  # of the map: what a region needs for its words
EVEN = 0.03  # of a speedup: about as fast, and no region


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
    """Place the words of the `Heat` that a panel begins with, the regions' first, in axes of this size: where other
    lines leave most room; if they leave enough, in the middle."""
    heat, axes = panel.marks[0], (panel.x, panel.y)

    def pixels(x, y) -> np.ndarray:
        places = zip(np.broadcast_arrays(x, y), axes, (width, height))
        return np.column_stack([(own - axis.low) / (axis.high - axis.low) * size for own, axis, size in places])

    rows = np.linspace(0, height, len(heat.z))
    contours = [np.column_stack([pixels(line, 0.0)[:, 0], rows]) for line in np.asarray(heat.contours, "f8")]
    parts, over = [*map(_parts, contours)], []
    rings = [] if heat.selected is None else pixels(*heat.selected)
    taken = [(x - 9, y - HALF, x + 9, y + HALF) for x, y in rings]
    for mark in panel.marks:
        if isinstance(mark, Line):
            over.append(_parts(pixels(mark.x, mark.y)))
        elif isinstance(mark, Rule):
            ends = [mark.x] * 2 if mark.y is None else [panel.x.low, panel.x.high]
            if mark.kind == "end":
                ((x, y),) = pixels([panel.x.low], [mark.y])
                taken.append((x + 6, y + 9 - HALF, x + 6 + LETTER * len(mark.name), y + 9 + HALF))
            over.append(_parts(pixels(ends, [panel.y.low, panel.y.high] if mark.y is None else [mark.y] * 2)))
        elif isinstance(mark, Points):
            taken += [(x - 7, y - HALF, x + 7, y + HALF) for x, y in pixels(mark.x, mark.y)]
        elif isinstance(mark, Boxes):
            said = zip(pixels(*np.asarray(mark.places)[:, :2].T), mark.texts)
            taken += [(x, y - HALF, x + LETTER * len(text), y + HALF) for (x, y), text in said]
    labels: list[Label] = []

    def put(places: np.ndarray, text: str, is_region: bool, lines: np.ndarray, least: float) -> None:
        options = [Label(text, x, y, is_region) for x, y in places]
        boxes = np.reshape([option.box for option in options], (-1, 4))
        is_inside = (boxes[:, :2] > 0).all(axis=1) & (boxes[:, 2:] < (width, height)).all(axis=1)
        words = np.reshape([*taken, *(label.box for label in labels)], (-1, 4))
        is_free = is_inside & (_gaps(boxes, words) >= APART)
        found = None
        for option, free in zip(compress(options, is_free), _gaps(boxes[is_free], lines).clip(max=ENOUGH)):
            if free > least + CLEARLY:
                found, least = option, free
        labels.extend([found] if found else [])

    for text, places in _regions(heat, width, height):
        put(places, text, True, np.concatenate([*parts, *over]), 0)
    for i, (text, line) in enumerate(zip(heat.names, contours)):
        for run in _runs(line, width - LETTER * len(text), width / 2):
            put(run, text, False, np.concatenate([*parts[:i], *parts[i + 1 :]]), 0)
    return labels


def _parts(line: np.ndarray) -> np.ndarray:
    """The rectangles (n, 4) around the parts of a line (n + 1, 2)."""
    return np.hstack([np.minimum(line[1:], line[:-1]), np.maximum(line[1:], line[:-1])])


def _gaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How far each of the rectangles (n, 4) is from the nearest of the others; less than 0: how far it lies over it."""
    gaps = np.maximum(boxes[:, None, :2] - others[:, 2:], others[:, :2] - boxes[:, None, 2:])
    return gaps.max(axis=2).min(axis=1, initial=np.inf)


def _regions(heat: Heat, width: float, height: float) -> Iterator[tuple[str, np.ndarray]]:
    """For each region the places of its words, those near its middle first: of what is below 0; of what is above,
    beside that, or under it and over it."""
    z, rows = np.asarray(heat.z), np.arange(len(heat.z))[:, None]
    least = np.log2(1 + EVEN)
    is_below = z < -least
    low, high = (np.where(is_below, rows, end) for end in (len(z), -1))
    under, over, beside = rows < low.min(axis=0), rows > high.max(axis=0), ~is_below.any(axis=0)
    around = [beside] if beside.mean() > 0.5 else [under & ~beside, over & ~beside]
    for text, region in zip(heat.regions[:1] + heat.regions[1:] * 2, [is_below, *around]):
        own = region & (abs(z) > least)
        if own.sum() < LEAST * z.size:
            continue
        places = np.argwhere(own.T) / (np.array(z.shape[::-1]) - 1) * (width, height)
        order = np.hypot(*(places - places.mean(axis=0)).T).argsort(kind="stable")
        yield text, places[order]


def _runs(line: np.ndarray, room: float, middle: float) -> Iterator[np.ndarray]:
    """The places of a contour's name on each part of it where the map has room for it, from the middle of the part
    outwards."""
    rows = np.arange(FINE * (len(line) - 1)) / FINE
    fine = np.column_stack([np.interp(rows, range(len(line)), axis) for axis in line.T])
    is_inside = abs(fine[:, 0] - middle) < room / 2
    for run in np.split(fine, np.flatnonzero(np.diff(is_inside)) + 1)[not is_inside[0] :: 2]:
        yield run[abs(2 * np.arange(len(run)) - len(run) + 1).argsort(kind="stable")]
