"""A question in the page, whose answer is kept: before you look, choose an option, give a number, or draw a curve."""

import html
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as W
import numpy as np
import traitlets as T
from IPython.display import display
from matplotlib.ticker import LogLocator, MaxNLocator

from moe_lessons.support import progress
from moe_lessons.support.errors import check_choice, is_number
from moe_lessons.support.keeper import Keeper
from moe_lessons.support.modules import join_modules
from moe_lessons.support.static import in_notebook, static_mode

HERE = Path(__file__).parent
RATIOS = "×", "times"  # units
PLACES = 41  # along the x axis of a curve, at which it has a value


class Sheet(W.VBox):
    """A view of several parts; a subclass says in `still` what a static page shows of it, as Markdown."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        data = {"text/plain": repr(self), "text/markdown": self.still()}
        return data if static_mode() else super()._repr_mimebundle_(**kwargs) | data


class Question(anywidget.AnyWidget):
    """A question with options, drawn by question.js, or one that a subclass asks in another way.

    `answer` is None until one is given. With a `key` (lesson, dot and name, such as '07.survivors') it is kept in the
    progress, and there when the cell runs again."""

    _esm: Any = join_modules(HERE / "question.js")  # the text: see LiveCanvas
    _css = Keeper._css
    section, kept_as = "predictions", "answer"  # in the learner's progress

    kind = T.Unicode("Predict.").tag(sync=True)  # stands before the question
    text = T.Unicode().tag(sync=True)
    choices = T.List().tag(sync=True)  # of [text, explanation, whether it is right]
    unit = T.Unicode().tag(sync=True)
    limits = T.List().tag(sync=True)  # of a number: the lowest and the highest
    answer = T.Any(None).tag(sync=True)
    skipped = T.Bool(False)  # in this session
    note = T.Unicode().tag(sync=True)  # what is wrong with the learner's progress file

    def __init__(self, text: str, key: str | None, **traits: Any):
        super().__init__(text=text, **traits)
        self.key = key
        self.add_class("moe-view")
        with suppress(T.TraitError):  # what is no longer offered counts as not answered
            self.answer = self.entry().get(self.kept_as)
        self.observe(lambda change: self.answer is None or self.keep(), "answer")

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(text for text, *_ in self.choices)

    @T.validate("answer")
    def _check(self, proposal: Any) -> Any:
        return None if proposal["value"] is None else self.checked(proposal["value"])

    def checked(self, answer: Any) -> Any:
        """Return the answer as it is kept. Raises TraitError where it is none to this question."""
        if answer not in self.options:
            raise T.TraitError(f"answer must be one of {', '.join(map(repr, self.options))}, got {answer!r}")
        return answer

    def entry(self) -> dict[str, Any]:
        return progress.read()[self.section].get(self.key, {}) if self.key else {}

    def keep(self) -> None:
        if self.key:
            self.note = progress.record(self.section, self.key, question=self.text, answer=self.answer) or ""

    def still(self) -> str:
        return f"**{self.kind}** {self.text}\n\n" + "\n".join(f"- {option}" for option in self.options)

    def reveal(self, view: Any = None) -> Any:
        """Give a view or a figure back; in a notebook that runs it is folded until this is answered or skipped, and the
        note below with it. A view trains from then on, or once a cell waits for it. What is printed and displayed in
        `with prediction.reveal():` is folded, too. Where no answers are kept, nothing waits."""
        if self._is_open() or progress.file() is None or not in_notebook():
            return nullcontext() if view is None else view
        held = W.Output() if view is None else view
        if hasattr(held, "hold"):  # it trains
            held.hold()
        waiting = Waiting(self, lambda: held)
        return waiting if view is not None else display(waiting) or held

    def _is_open(self) -> bool:
        return self.answer is not None or self.skipped

    def outcome_of(self, say: Callable[[], str]) -> Any:
        outcome = Outcome(say()) if self._is_open() else Folded(say())
        return outcome if self.reveal(outcome) is outcome else Waiting(self, lambda: Outcome(say()), outcome)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = ({}, {}) if static_mode() else super()._repr_mimebundle_(**kwargs)
        return data | {"text/plain": repr(self), "text/markdown": self.still()}, metadata


class Outcome(str):
    __repr__ = str.__str__

    def _repr_markdown_(self) -> str:
        return "  \n".join(map(as_words, self.splitlines()))


class Folded(Outcome):  # for a reader who has not predicted yet, as on a static page
    def _repr_markdown_(self) -> str:
        return f"<details><summary>What happened</summary>\n\n{html.escape(self)}\n\n</details>"


class Waiting(Sheet):  # what happened, folded until a question is answered or skipped
    def __init__(self, question: Question, show: Callable[[], Any], folded: str = ""):
        self.show, self.folded = show, folded
        skip = W.Button(description="Skip", tooltip="See what happened without an answer")
        skip.on_click(lambda _: question.set_trait("skipped", True))
        words = W.HTML('<div class="moe-words" role="status">Answer above, or skip, to see what happened.</div>')
        super().__init__([W.HBox([words, skip]).add_class("moe-bar")])
        for name in ("moe-view", "moe-plain", "moe-folded"):  # -folded: the note below is hidden, see canvas.css
            self.add_class(name)
        question.observe(lambda _: self.unfold(), ["answer", "skipped"])

    def unfold(self) -> None:
        shown = self.show()
        self.remove_class("moe-folded")
        if hasattr(shown, "release"):
            shown.release()
        if not isinstance(shown, W.Widget):
            what = shown
            shown = W.Output()
            shown.append_display_data(what)
        self.children = [shown]

    def __repr__(self) -> str:
        return self.folded or "what happened, once the question is answered"

    def still(self) -> str:
        return Folded(self)._repr_markdown_() if self.folded else "*Run this cell, and answer the question above.*"


class Prediction(Question):
    """A question with options, to answer before the experiment. Afterwards `compare` says how it went.

    >>> prediction = Prediction("How many experts will be left?", ("all", "some", "one"))
    >>> prediction.answer = "all"
    >>> prediction.compare("some")
    ✘ You predicted: all.
    What happened: some.
    """

    def __init__(self, question: str, options: Sequence[str], key: str | None = None):
        super().__init__(question, key, choices=[[option, "", False] for option in options])

    def compare(self, outcome: str, measured: str = "") -> Outcome:
        """Set what was predicted beside what happened: one of the options, and the numbers that say so."""
        check_choice("outcome", outcome, self.options)
        numbers = f"\nMeasured: {measured}." if measured else ""
        return self.outcome_of(lambda: self._words(outcome) + numbers)

    def _words(self, outcome: str) -> str:
        if self.answer == outcome:
            return f"✔ As you predicted: {outcome}."
        return f"✘ You predicted: {self.answer}.\n" * (self.answer is not None) + f"What happened: {outcome}."

    def __repr__(self) -> str:
        return call_of(self, repr(self.options))


class NumberPrediction(Question):
    """A question whose answer is a number from `low` to `high`, in a unit. `compare` says how far off it was.

    >>> prediction = NumberPrediction("How large is Mixtral 8x7B in 16 bits?", "GB", 1, 1000)
    >>> prediction.answer = 20
    >>> prediction.compare(93.4)
    You predicted: 20 GB.
    What happened: 93.4 GB. That is 73.4 GB more than you said, 4.7 times as much.
    """

    def __init__(self, question: str, unit: str, low: float, high: float, key: str | None = None):
        super().__init__(question, key, unit=unit, limits=[low, high])

    def checked(self, answer: Any) -> float:
        low, high = self.limits
        if not is_number(answer, low, high):
            raise T.TraitError(f"answer must be a number from {low:g} to {high:g}, got {answer!r}")
        return answer

    def compare(self, value: float) -> Outcome:
        return self.outcome_of(lambda: self._words(value))

    def _words(self, value: float) -> str:
        happened = f"What happened: {self.say(rounded(value))}."
        if self.answer is None:
            return happened
        if rounded(value) == rounded(self.answer):
            return f"✔ As you predicted: {self.say(rounded(value))}."
        off = rounded(value - self.answer)
        by = difference(abs(off), self.unit)
        words = f"{happened} That is {by} {'more' if off > 0 else 'less'} than you said"
        if self.unit not in ("%", *RATIOS) and value > self.answer > 0:
            words += f", {rounded(value / self.answer, 2):,.12g} times as much"
        return f"You predicted: {self.say(self.answer)}.\n{words}."

    def say(self, number: float) -> str:
        return f"{number:,.12g} {self.unit}".strip()

    def still(self) -> str:
        low, high = map(self.say, self.limits)
        return f"**{self.kind}** {self.text}\n\nA number from {low} to {high}."

    def __repr__(self) -> str:
        return call_of(self, *map(repr, (self.unit, *self.limits)))


class CurvePrediction(Question):
    """A question whose answer is drawn. `compare` draws the measured curve over it and says how far off it was.

    x, y: (label, lowest, highest); the label has the unit. log_x: each step along x multiplies it by the same factor.
    given: a value of y that the question names, which is marked. `answer` is a list of [x, y].

    >>> prediction = CurvePrediction("How does the loss fall?", x=("step", 0, 100), y=("loss, nats", 0, 4))
    >>> prediction.answer = [[0, 4], [100, 2]]
    >>> prediction.compare([0, 50, 100], [4, 2, 2])
    Your curve is on average 0.49 away (loss, nats), mostly above what happened. You drew a fall, and so it is.
    """

    _esm = join_modules(HERE / "curve.js")

    x = T.List().tag(sync=True)  # label, lowest, highest
    y = T.List().tag(sync=True)
    places = T.List().tag(sync=True)  # the values of x at which a curve can be drawn, evenly apart in the picture
    given = T.Float(None, allow_none=True).tag(sync=True)
    ticks = T.List().tag(sync=True)  # of x and of y: [part of the axis, text]
    measured = T.List().tag(sync=True)  # [part of the x axis, part of the y axis]; empty until there is an answer, too

    def __init__(
        self, question: str, x: tuple[str, float, float], y: tuple[str, float, float], key: str | None = None,
        log_x: bool = False, given: float | None = None,
    ):  # fmt: skip
        self.log_x = bool(log_x)
        self._measured = []
        places = (np.geomspace if log_x else np.linspace)(*x[1:], PLACES).tolist()
        ticks = [ticks_of(*x[1:], self.log_x), ticks_of(*y[1:], False)]
        super().__init__(question, key, x=list(x), y=list(y), places=places, ticks=ticks, given=given)

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
        parts = part_of(xs, self.places, self.log_x), part_of(ys, self.y[1:], False)
        self._measured = np.stack(parts, axis=1).round(4).tolist()
        return self.outcome_of(lambda: self._words(xs, ys, parts[0]))

    def _words(self, xs: np.ndarray, ys: np.ndarray, parts: np.ndarray) -> str:
        shape = self._shape(ys)
        if self.answer is None:
            ends = (f"{rounded(y):,.12g} at {rounded(x):,.12g}" for x, y in ((xs[0], ys[0]), (xs[-1], ys[-1])))
            return f"What happened, {self.y[0]} over {self.x[0]}: {shape}, from {' to '.join(ends)}."
        yours = self._shape([y for _, y in self.answer])
        self.measured = self._measured
        drawn = part_of([x for x, _ in self.answer], self.places, self.log_x)
        at = np.linspace(0, 1, PLACES)
        at = at[(at >= max(drawn[0], parts[0]) - 1e-9) & (at <= min(drawn[-1], parts[-1]) + 1e-9)]
        if not len(at):
            return "You drew nothing where it was measured."
        off = (np.interp(at, drawn, [y for _, y in self.answer]) - np.interp(at, parts, ys)).round(9)
        above, below = (off > 0).mean(), (off < 0).mean()
        side = "mostly above" if above > 0.75 else "mostly below" if below > 0.75 else "partly above, partly below"
        by, (label, *_) = rounded(abs(off).mean(), 2), self.y
        away = f"{difference(by, '%')} away" if label.endswith("%") else f"{by:,.12g} away ({label})"
        words = f"Your curve is on average {away}, {side} what happened."
        return f"{words} You drew {yours}, and {'so it is' if yours == shape else f'it is {shape}'}."

    def _shape(self, ys: Sequence[float]) -> str:
        """Name the shape of a curve; what is less than a tenth of the y axis counts as level."""
        first, last = ys[0], ys[-1]
        low, high = min(ys), max(ys)
        tenth = (self.y[2] - self.y[1]) / 10
        is_hump, is_valley = high - max(first, last) > tenth, min(first, last) - low > tenth
        if is_hump or is_valley:
            return "a wave" if is_hump and is_valley else "a hump" if is_hump else "a valley"
        return "a rise" if last - first > tenth else "a fall" if first - last > tenth else "a level line"

    def still(self) -> str:
        x, y = (f"{label} ({low:,.12g} to {high:,.12g})" for label, low, high in (self.x, self.y))
        return f"**{self.kind}** {self.text}\n\nA curve to be drawn: {y} over {x}."

    def __repr__(self) -> str:
        given = [] if self.given is None else [f"given={self.given:g}"]
        return call_of(self, f"x={tuple(self.x)}", f"y={tuple(self.y)}", *["log_x=True"] * self.log_x, *given)


def as_words(text: Any) -> str:
    """Any text as words of a line of Markdown: no sign of it is one to Markdown, HTML or MathJax, which reads last."""
    words = " ".join(str(text).split()).translate({ord("$"): "＄", ord("\\"): "＼"})
    return re.sub(r"[`*_{}\[\]<>|#&~!]", lambda sign: f"&#{ord(sign[0])};", words)


def rounded(value: float, digits: int = 3) -> float:
    return float(f"{value:.{digits}g}")


def difference(number: float, unit: str) -> str:
    if unit == "%":
        return f"{number:,.12g} point{'s' * (number != 1)}"
    return f"{number:,.12g}" if unit in RATIOS else f"{number:,.12g} {unit}".strip()


def call_of(question: Question, *arguments: str) -> str:
    key = [f"key={question.key!r}"] if question.key else []
    return f"{type(question).__name__}({', '.join([repr(question.text), *arguments, *key])})"


def part_of(values: Sequence[float], limits: Sequence[float], is_log: bool) -> np.ndarray:
    """Tell where values lie on an axis: 0 at the first of the limits, 1 at the last."""
    values, low, high = ((np.log if is_log else np.asarray)(each) for each in (values, limits[0], limits[-1]))
    return (values - low) / (high - low)


def ticks_of(low: float, high: float, is_log: bool) -> list[list]:
    """Choose round numbers along an axis: where they lie, and their texts."""
    locator = MaxNLocator(5, steps=[1, 2, 5, 10])
    if is_log:  # powers of two between two of them, else 1, 3, 10
        is_binary = all(float(np.log2(end)).is_integer() for end in (low, high))
        locator = LogLocator(2, numticks=12) if is_binary else LogLocator(10, subs=(1, 3), numticks=12)
    values = np.array([value for value in locator.tick_values(low, high) if low <= value <= high])
    return [[float(part), f"{value:,.12g}"] for part, value in zip(part_of(values, (low, high), is_log), values)]
