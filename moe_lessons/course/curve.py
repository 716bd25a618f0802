"""A curve drawn by hand, to be compared with the measured one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import traitlets as T
from matplotlib.ticker import LogLocator, MaxNLocator

from moe_lessons.course.predict import Folded, Outcome, call_of, checked_limits, rounded
from moe_lessons.course.question import HERE, Question
from moe_lessons.support.errors import is_number

PLACES = 41  # along the x axis, at which a drawn curve has a value


class CurvePrediction(Question):
    """A question whose answer is drawn. `compare` draws the measured curve over it and says how far off it was.

    x, y: (label, lowest, highest); the label has the unit. log_x: each step along x multiplies it by the same factor.
    `answer` is a list of [x, y].

    >>> prediction = CurvePrediction("How does the loss fall?", x=("step", 0, 100), y=("loss, nats", 0, 4))
    >>> prediction.answer = [[0, 4], [100, 2]]
    >>> prediction.compare([0, 50, 100], [4, 2, 2])
    Your curve is 0.488 away on average (loss, nats), mostly above what happened.
    """

    _esm = (HERE / "curve.js").read_text("utf-8")

    x = T.List().tag(sync=True)  # label, lowest, highest
    y = T.List().tag(sync=True)
    places = T.List().tag(sync=True)  # the values of x at which a curve can be drawn, evenly apart in the picture
    ticks = T.List().tag(sync=True)  # of x and of y: [part of the axis, text]
    measured = T.List().tag(sync=True)  # [part of the x axis, part of the y axis]; empty until there is an answer, too

    def __init__(
        self, question: str, x: tuple[str, float, float], y: tuple[str, float, float], key: str | None = None,
        log_x: bool = False,
    ):  # fmt: skip
        for name, (_, *limits) in (("x", x), ("y", y)):
            checked_limits(f"the limits of {name}", limits)
        if log_x and x[1] <= 0:
            raise ValueError(f"x must be above 0 where log_x is set, got {x[1]!r}")
        self.log_x, self._measured = bool(log_x), []
        places = (np.geomspace if log_x else np.linspace)(*x[1:], PLACES)
        ticks = [ticks_of(*x[1:], self.log_x), ticks_of(*y[1:], False)]
        super().__init__(question, key, x=list(x), y=list(y), places=places.tolist(), ticks=ticks)

    def checked(self, answer: Any) -> list[list[float]]:
        points = answer if isinstance(answer, list) and len(answer) > 1 else [None]
        limits = self.x[1:], self.y[1:]
        if not all(isinstance(p, list) and len(p) == 2 and all(map(is_number, p, *zip(*limits))) for p in points):
            raise T.TraitError(f"answer must be a list of at least two [x, y] within the axes, got {answer!r}")
        parts = part_of([x for x, _ in answer], self.places, self.log_x)
        near = np.rint(parts * (PLACES - 1)).astype(int)
        drawn = {self.places[place]: y for place, (_, y) in zip(near, answer)}
        return [[x, drawn[x]] for x in self.places if x in drawn]

    def keep(self) -> None:
        super().keep()
        self.measured = self._measured

    def compare(self, xs: Sequence[float], ys: Sequence[float]) -> Outcome:
        """Draw what was measured over the drawn curve, and say how far the two are apart. xs rise."""
        xs, ys = np.asarray(xs, float), np.asarray(ys, float)
        is_curve = xs.ndim == 1 and xs.shape == ys.shape and len(xs) > 1 and np.isfinite([xs, ys]).all()
        if not is_curve or min(np.diff(xs)) <= 0 or (self.log_x and xs[0] <= 0):
            raise ValueError(f"xs and ys must be two or more finite numbers each, and xs must rise, got {xs} and {ys}")
        parts = part_of(xs, self.places, self.log_x), part_of(ys, self.y[1:], False)
        self._measured = np.stack(parts, axis=1).round(4).tolist()
        if self.answer is None:
            ends = (f"{rounded(y):,.12g} at {rounded(x):,.12g}" for x, y in ((xs[0], ys[0]), (xs[-1], ys[-1])))
            return Folded(f"What happened, {self.y[0]} over {self.x[0]}: from {' to '.join(ends)}.")
        self.measured = self._measured
        return Outcome(self._distance(parts[0], ys))

    def _distance(self, parts: np.ndarray, ys: np.ndarray) -> str:
        """Say how far the drawn curve is from the measured one, at the places where there are both."""
        drawn = part_of([x for x, _ in self.answer], self.places, self.log_x)
        at = np.linspace(0, 1, PLACES)
        at = at[(at >= max(drawn[0], parts[0]) - 1e-9) & (at <= min(drawn[-1], parts[-1]) + 1e-9)]
        if not len(at):
            return "You drew nothing where it was measured."
        off = (np.interp(at, drawn, [y for _, y in self.answer]) - np.interp(at, parts, ys)).round(9)
        above, below = (off > 0).mean(), (off < 0).mean()
        side = "mostly above" if above > 0.75 else "mostly below" if below > 0.75 else "partly above, partly below"
        return f"Your curve is {rounded(abs(off).mean()):,.12g} away on average ({self.y[0]}), {side} what happened."

    def still(self) -> str:
        x, y = (f"{label} ({low:,.12g} to {high:,.12g})" for label, low, high in (self.x, self.y))
        return f"**{self.kind}** {self.text}\n\nA curve to be drawn: {y} over {x}."

    def __repr__(self) -> str:
        more = ["log_x=True"] * self.log_x
        return call_of(self, f"x={tuple(self.x)}", f"y={tuple(self.y)}", *more)


def part_of(values: Sequence[float], limits: Sequence[float], is_log: bool) -> np.ndarray:
    """Tell where values lie on an axis: 0 at the first of the limits, 1 at the last."""
    values, low, high = ((np.log if is_log else np.asarray)(each) for each in (values, limits[0], limits[-1]))
    return (values - low) / (high - low)


def ticks_of(low: float, high: float, is_log: bool) -> list[list]:
    """Choose round numbers along an axis: where they lie, and their texts."""
    locator = LogLocator(base=2 if high / low <= 600 else 10, numticks=12) if is_log else MaxNLocator(5)
    values = np.array([value for value in locator.tick_values(low, high) if low <= value <= high])
    return [[float(part), f"{value:,.12g}"] for part, value in zip(part_of(values, (low, high), is_log), values)]
