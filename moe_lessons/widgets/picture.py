"""Panels of which nothing trains: live on a page, still elsewhere."""

from collections.abc import Iterator, Sequence
from typing import Any

import ipywidgets as W

from moe_lessons.plots import still
from moe_lessons.plots.marks import Panel
from moe_lessons.plots.theme import THEMES, static_mode
from moe_lessons.widgets.canvas import LiveCanvas


class Picture(W.VBox):
    """Shows panels and a line that says the same. A subclass has rows of controls over them, and says other panels.

    >>> from moe_lessons.plots import colored_text
    >>> Picture(colored_text("ab", [0, 1], title="Two letters"))
    Picture of 'Two letters'
    """

    def __init__(self, panels: Panel | Sequence[Panel] = (), words: str = "", rows: Sequence[W.Widget] = ()):
        self._panels, self._words = [panels] if isinstance(panels, Panel) else list(panels), words
        self.canvas = LiveCanvas()
        super().__init__([*rows, self.canvas])
        self.add_class("moe-view")
        self.tips = {w.description: w.tooltip for w in descendants(self) if getattr(w, "tooltip", None)}
        self.show()

    def panels(self) -> list[Panel]:
        """What is to be seen."""
        return self._panels

    def sentence(self) -> str:
        """The same in words."""
        return self._words

    def show(self, words: str | None = None) -> None:
        """Send it all to the page."""
        panels = dict(enumerate(self.panels()))
        self.canvas.show(panels, count=len(panels), words=words or self.sentence(), tips=self.tips, state="paused")

    def picture(self, theme: str = "light") -> still.LessonFigure:
        """The same as a figure of matplotlib."""
        return still.figure(self.panels(), THEMES[theme], caption=self.sentence())

    def __repr__(self) -> str:
        return f"Picture of {', '.join(repr(panel.title) for panel in self.panels())}"

    def _repr_mimebundle_(self, include=None, exclude=None, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return mimebundle(self, self.picture().png(), self.sentence() or repr(self))


def mimebundle(widget: W.Widget, png: bytes, alt: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """For `_repr_mimebundle_`: the picture, the widget's repr and, unless the page is static, the live view."""
    data: dict[str, Any] = {"text/plain": repr(widget), "image/png": png}
    if not static_mode():
        data = W.Widget._repr_mimebundle_(widget) | data
    return data, {"image/png": {"alt": alt}}


def descendants(widget: W.Widget) -> Iterator[W.Widget]:
    """All widgets inside a widget."""
    for child in getattr(widget, "children", ()):
        yield from descendants(child)
        yield child
