"""A question in the page; what is answered is kept."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as W
import traitlets as T

from moe_lessons.course import progress
from moe_lessons.support.static import static_mode

HERE = Path(__file__).parent
KEY = r"\d\d[a-z]?\.[a-z0-9_-]+"


class Sheet(W.VBox):
    """A view of several parts; a subclass says in `still` what a static page shows of it, as Markdown."""

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        data = {"text/plain": repr(self), "text/markdown": self.still()}
        return data if static_mode() else super()._repr_mimebundle_(**kwargs) | data


class Question(anywidget.AnyWidget):
    """A question with options, drawn by question.js, or one that a subclass asks in another way.

    `answer` is None until one is given. With a `key` it is kept in the learner's progress, and is there when the cell
    is run again.
    """

    _esm: Any = (HERE / "question.js").read_text("utf-8")  # the text: see LiveCanvas
    _css = (HERE.parent / "widgets" / "canvas.css").read_text("utf-8")
    section = "predictions"

    kind = T.Unicode("Predict.").tag(sync=True)  # stands before the question
    text = T.Unicode().tag(sync=True)
    choices = T.List().tag(sync=True)  # of [text, explanation, whether it is right]
    unit = T.Unicode().tag(sync=True)
    limits = T.List().tag(sync=True)  # of a number: the lowest and the highest
    answer = T.Any(None).tag(sync=True)
    note = T.Unicode().tag(sync=True)  # what is wrong with the learner's progress file

    def __init__(self, text: str, key: str | None, **traits: Any):
        if key is not None and not (isinstance(key, str) and re.fullmatch(KEY, key)):
            raise ValueError(f"key must be lesson, dot and name, such as '05.survivors', got {key!r}")
        super().__init__(text=text, **traits)
        self.key = key
        self.add_class("moe-view")
        with suppress(T.TraitError):  # what is no longer offered counts as not answered
            self.answer = self.earlier()
        self.observe(lambda change: change["new"] is None or self.keep(), "answer")

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
        """Read what the progress keeps of this question so far; empty where it keeps nothing."""
        return progress.read()[self.section].get(self.key, {}) if self.key else {}

    def earlier(self) -> Any:
        """Return the answer that was given before this cell was run."""
        return self.entry().get("answer")

    def keep(self) -> None:
        if self.key:
            self.note = progress.record(self.section, self.key, question=self.text, answer=self.answer)

    def still(self) -> str:
        """Write the question for a static page, as Markdown."""
        return f"**{self.kind}** {self.text}\n\n" + "\n".join(f"- {option}" for option in self.options)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = ({}, {}) if static_mode() else super()._repr_mimebundle_(**kwargs)
        return data | {"text/plain": repr(self), "text/markdown": self.still()}, metadata
