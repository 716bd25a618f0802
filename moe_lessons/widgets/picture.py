"""Panels of which nothing trains: live on a page, still elsewhere."""

from collections.abc import Iterator, Sequence
from typing import Any

import ipywidgets as W
from torch import Tensor, nn

from moe_lessons.plots import still
from moe_lessons.plots.marks import Panel
from moe_lessons.plots.panels.block import block_of
from moe_lessons.support.static import static_mode
from moe_lessons.widgets.canvas import LiveCanvas


class Picture(W.VBox):
    """Show panels. A subclass has rows of controls over them, says other panels, and a line that says the same.

    >>> from moe_lessons.plots.panels.shares import load_panel
    >>> Picture(load_panel([0.25, 0.75]))
    Picture of 'Load of each expert'
    """

    status: dict[str, Any] = {"state": "paused"}  # and, of what trains, `step` and `until`
    of_still = ""  # what stands under its still besides

    def __init__(self, panels: Panel | Sequence[Panel] = (), rows: Sequence[W.Widget] = ()):
        self._panels = [panels] if isinstance(panels, Panel) else list(panels)
        self.canvas = LiveCanvas()
        super().__init__([*rows, self.body()])
        self.add_class("moe-view")
        self.show()

    def body(self) -> W.Widget:
        """The canvas, and what stands beside it."""
        return self.canvas

    def panels(self) -> list[Panel]:
        return self._panels

    def sentence(self) -> str:
        return ""

    def show(self, words: str | None = None) -> None:
        panels = dict(enumerate(self.panels()))
        words = words or self.sentence()
        self.canvas.show(panels, count=len(panels), words=words, tips=tips(self), **self.status)

    def picture(self, words: str = "") -> still.LessonFigure:
        return still.figure(self.panels(), caption=self.sentence() + words)

    def close(self) -> None:
        """Remove it with all its widgets."""
        for child in descendants(self):
            for part in (child, child.layout, getattr(child, "style", child)):
                part.close()
        self.layout.close()
        super().close()

    def __repr__(self) -> str:
        return f"Picture of {', '.join(repr(panel.title) for panel in self.panels())}"

    def _repr_mimebundle_(self, include=None, exclude=None, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The picture, the repr and, unless the page is static, the live view."""
        picture, said = self.picture(self.of_still), {"alt": self.sentence() or repr(self)}
        data: dict[str, Any] = {"text/plain": repr(self), "image/png": picture.png()}
        if static_mode():
            said["dark"] = picture.dark_png()
        else:
            data = super()._repr_mimebundle_() | data
        return data, {"image/png": said}


def draw_block(moe: nn.Module, x: Tensor, token: int = 0) -> Picture:
    """Draw an `MoE`, or a class that works as it does, of at most 16 experts, with the numbers of one of the tokens x
    (T, D), T at most 16, in eval mode. ValueError for a router whose weights are no softmax of its logits."""
    return Picture(block_of(moe, x, token))


def descendants(widget: W.Widget) -> Iterator[W.Widget]:
    for child in getattr(widget, "children", ()):
        yield from descendants(child)
        yield child


def tips(widget: W.Widget) -> dict[str, str]:
    """Return what the controls inside a widget do, by their labels, of a box to tick after a ☐; buttons show it
    themselves."""
    parts = [part for part in descendants(widget) if hasattr(part, "description") and not isinstance(part, W.Button)]
    controls = [part for part in parts if getattr(part, "tooltip", None)]
    said = {("☐ " if isinstance(c, W.Checkbox) else "") + c.description: c.tooltip for c in controls}
    return {sendable(label): sendable(tip) for label, tip in said.items()}


def sendable(text: str) -> str:
    """A text that a page may have set, without what no message can carry."""
    return text.encode("utf-8", "replace").decode("utf-8")
