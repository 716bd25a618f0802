"""A picture inside a widget, and the static form of a widget for pages where nothing runs."""

from typing import Any

import ipywidgets as W
import traitlets

from moe_lessons.plots.theme import static_mode


class FigureImage(W.Image):
    """An image that can have a tooltip: with one, a plain `Image` of ipywidgets 8.1 cannot be shown."""

    description = traitlets.Unicode("").tag(sync=True)


def mimebundle(widget: W.Widget, png: bytes, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `_repr_mimebundle_` returns: the picture and the text and, unless static, the live view."""
    data: dict[str, Any] = {"text/plain": text, "image/png": png}
    if not static_mode():
        data = W.Widget._repr_mimebundle_(widget) | data
    return data, {"image/png": {"alt": text}}
