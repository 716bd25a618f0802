"""What has a notebook save what is seen in it."""

from pathlib import Path

import anywidget
import ipywidgets as W

from moe_lessons.support.modules import join_modules

WIDGETS = Path(__file__).parents[1] / "widgets"
KEEP = join_modules(WIDGETS / "canvas" / "keep.js")


class Keeper(anywidget.AnyWidget):
    """A widget that draws nothing: it has what is seen saved with the notebook, where no question does that."""

    _esm = f"{KEEP}\nexport default {{ initialize: keep, render() {{}} }};"
    _css = (WIDGETS / "canvas.css").read_text("utf-8")

    def __init__(self):
        super().__init__(layout=W.Layout(display="none"))
