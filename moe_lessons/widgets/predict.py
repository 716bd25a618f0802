"""Say what you expect before you look."""

import html

import ipywidgets as W

from moe_lessons.errors import check_choice
from moe_lessons.plots.theme import static_mode

_answers: dict[str, str] = {}  # question -> what was chosen, so that running the cell again does not lose it


class Prediction(W.VBox):
    """A question with options, to answer before the experiment. Afterwards `compare` says how it went.

    >>> prediction = Prediction("How many experts will be left?", ("all", "some", "one"))
    >>> prediction.radio.value = "all"
    >>> prediction.compare("some")
    You predicted: all.
    What happened: some.
    """

    def __init__(self, question: str, options: tuple[str, ...]):
        self.question, self.options = question, tuple(options)
        earlier = _answers.get(question)
        value = earlier if earlier in self.options else None
        self.radio = W.RadioButtons(options=self.options, value=value, layout=W.Layout(width="auto"))
        self.radio.observe(lambda change: _answers.update({question: change["new"]}), "value")
        text = W.HTML(f'<div class="moe-words"><b>Predict.</b> {html.escape(question)}</div>')
        super().__init__([text, self.radio])
        self.add_class("moe-view")

    def compare(self, outcome: str) -> "Comparison":
        """Set what was predicted beside what happened: one of the options."""
        check_choice("outcome", outcome, self.options)
        predicted = self.radio.value
        if predicted is None:
            return Folded(f"What happened: {outcome}.")
        verdict = "As you predicted" if predicted == outcome else "What happened"
        return Comparison(f"You predicted: {predicted}.\n{verdict}: {outcome}.")

    def __repr__(self) -> str:
        return f"Prediction({self.question!r}, {self.options!r})"

    def _repr_mimebundle_(self, include=None, exclude=None, **kwargs):
        listed = "\n".join(f"- {option}" for option in self.options)
        data = {"text/plain": repr(self), "text/markdown": f"**Predict.** {self.question}\n\n{listed}"}
        return data if static_mode() else W.Widget._repr_mimebundle_(self) | data


class Comparison(str):
    """What was predicted and what happened, as a notebook shows it: without quotes."""

    __repr__ = str.__str__


class Folded(Comparison):
    """What happened, folded away for a reader who has not predicted yet, as on a static page."""

    def _repr_mimebundle_(self, include=None, exclude=None):
        words = f"<details><summary>What happened</summary>\n\n{html.escape(self)}\n\n</details>"
        return {"text/plain": str(self), "text/markdown": words}
