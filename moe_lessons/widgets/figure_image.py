"""A picture inside a widget, and the static form of a widget for pages where nothing runs."""

import os
from typing import Any

import ipywidgets as W
import traitlets


class FigureImage(W.Image):
    """An image that can have a tooltip: with one, a plain `Image` of ipywidgets 8.1 cannot be shown."""

    description = traitlets.Unicode("").tag(sync=True)


def static_mode() -> bool:
    """Whether MOE_LESSONS_STATIC=1 asks for pictures in the place of widgets, as a static page needs."""
    return os.environ.get("MOE_LESSONS_STATIC", "") not in ("", "0")


def mimebundle(widget: W.Widget, png: bytes, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `_repr_mimebundle_` returns: the picture and the text and, unless static, the live view."""
    data: dict[str, Any] = {"text/plain": text, "image/png": png}
    if not static_mode():
        data = W.Widget._repr_mimebundle_(widget) | data
    return data, {"image/png": {"alt": text}}
