"""The controls beside a live view, in one style."""

from typing import Any

import ipywidgets as W


def heading(text: str) -> W.HTML:
    """What the controls under it have in common."""
    return W.HTML(f'<div class="moe-group">{text}</div>')


def choice(description: str, options: tuple[str, ...], tooltip: str) -> W.Dropdown:
    """A list to choose from."""
    return W.Dropdown(options=options, description=description, tooltip=tooltip)


def stops(description: str, values: tuple[float, ...], tooltip: str) -> W.SelectionSlider:
    """A slider over chosen numbers, written as plain decimals; 0 reads 'off'."""
    return W.SelectionSlider(options=_named(values), description=description, tooltip=tooltip)


def _named(stops: tuple[float, ...]) -> list[tuple[str, float]]:
    return [("off" if stop == 0 else f"{stop:g}", stop) for stop in stops]


def move(widget: W.Widget, value: Any) -> None:
    """Move a control to a value; a slider reaches further then if it has to. None is 'off'."""
    if isinstance(widget, W.SelectionSlider):
        value, stops = value or 0.0, [stop for _, stop in widget.options]
        if value not in stops:
            widget.options = _named(tuple(sorted({*stops, value})))
    elif hasattr(widget, "max"):
        widget.min, widget.max = min(widget.min, value), max(widget.max, value)
    widget.value = value
