"""Say what you expect before you look: one of several options, a number, or a curve."""

import html
from collections.abc import Sequence
from typing import Any

import traitlets as T

from moe_lessons.course.question import Question
from moe_lessons.support.errors import check_choice, is_number


class Prediction(Question):
    """A question with options, to answer before the experiment. Afterwards `compare` says how it went.

    >>> prediction = Prediction("How many experts will be left?", ("all", "some", "one"))
    >>> prediction.answer = "all"
    >>> prediction.compare("some")
    You predicted: all.
    What happened: some.
    """

    def __init__(self, question: str, options: Sequence[str], key: str | None = None):
        if isinstance(options, str) or len(set(options)) < max(2, len(options)):
            raise ValueError(f"options must be two or more different texts, got {options!r}")
        super().__init__(question, key, choices=[[option, "", False] for option in options])

    def compare(self, outcome: str) -> "Outcome":
        """Set what was predicted beside what happened: one of the options."""
        check_choice("outcome", outcome, self.options)
        if self.answer is None:
            return Folded(f"What happened: {outcome}.")
        verdict = "As you predicted" if self.answer == outcome else "What happened"
        return Outcome(f"You predicted: {self.answer}.\n{verdict}: {outcome}.")

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
        super().__init__(question, key, unit=unit, limits=checked_limits("low and high", (low, high)))

    def checked(self, answer: Any) -> float:
        low, high = self.limits
        if not is_number(answer, low, high):
            raise T.TraitError(f"answer must be a number from {low:g} to {high:g}, got {answer!r}")
        return answer

    def compare(self, value: float) -> "Outcome":
        if not is_number(value):
            raise ValueError(f"value must be a finite number, got {value!r}")
        happened = self.say(rounded(value))
        if self.answer is None:
            return Folded(f"What happened: {happened}.")
        off, words = value - self.answer, f"You predicted: {self.say(self.answer)}.\nWhat happened: {happened}. "
        if rounded(value) == rounded(self.answer):
            return Outcome(f"{words}As you predicted.")
        words += f"That is {self.say(rounded(abs(off)))} {'more' if off > 0 else 'less'} than you said"
        if self.unit != "%" and self.limits[0] >= 0 and self.answer > 0 and value > 0:
            words += f", {rounded(value / self.answer, 2):,.12g} times as much"
        return Outcome(f"{words}.")

    def say(self, number: float) -> str:
        return f"{number:,.12g} {self.unit}".strip()

    def still(self) -> str:
        low, high = map(self.say, self.limits)
        return f"**{self.kind}** {self.text}\n\nA number from {low} to {high}."

    def __repr__(self) -> str:
        return call_of(self, *map(repr, (self.unit, *self.limits)))


class Outcome(str):
    """What was predicted and what happened, as a notebook shows it: without quotes."""

    __repr__ = str.__str__


class Folded(Outcome):
    """What happened, folded away for a reader who has not predicted yet, as on a static page."""

    def _repr_mimebundle_(self, include=None, exclude=None):
        words = f"<details><summary>What happened</summary>\n\n{html.escape(self)}\n\n</details>"
        return {"text/plain": str(self), "text/markdown": words}


def rounded(value: float, digits: int = 3) -> float:
    return float(f"{value:.{digits}g}")


def checked_limits(name: str, limits: Sequence[float]) -> list[float]:
    """Return the lowest and the highest number, if they are that; else raise ValueError."""
    low, high = limits
    if not (is_number(low) and is_number(high) and low < high):
        raise ValueError(f"{name} must be two finite numbers, the lower one first, got {low!r} and {high!r}")
    return [low, high]


def call_of(question: Question, *arguments: str) -> str:
    """Write the call that makes the question again."""
    key = [f"key={question.key!r}"] if question.key else []
    return f"{type(question).__name__}({', '.join([repr(question.text), *arguments, *key])})"
