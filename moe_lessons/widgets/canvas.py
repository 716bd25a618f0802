"""Panels in the page: a widget that draws marks on canvases, crisp at any size, with no build step and no network."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import numpy as np

from moe_lessons.plots.marks import Panel, encode_panel
from moe_lessons.plots.theme import DARK, LIGHT, PALETTE, RED
from moe_lessons.support.errors import is_whole
from moe_lessons.support.modules import join_modules
from moe_lessons.support.static import static_mode

HERE = Path(__file__).parent
COLORS = {"palette": PALETTE, "red": RED, "light": LIGHT.lines, "dark": DARK.lines}
IN_FLIGHT, EVERY = 8, 4  # pictures unanswered at most; every fourth asks for an answer, which costs as much
NONE = np.array(None)  # in the place of an array that no page has yet
FIRST_PATIENCE, LONGEST_PATIENCE = 0.25, 30.0  # seconds of silence before the next picture is tried


def pack(arrays: dict[str, np.ndarray]) -> tuple[list[list], bytes]:
    """Lay arrays, by slot, into one buffer as the canvas takes it; say of each its slot, type, shape and place."""
    slots, data = [], bytearray()
    for slot, array in arrays.items():
        slots.append([slot, array.dtype.str[1:], array.shape, len(data)])
        data += array.tobytes() + bytes(-array.nbytes % 8)  # every array begins at a multiple of 8
    return slots, bytes(data)


class LiveCanvas(anywidget.AnyWidget):
    """Draw `Panel`s in the page. `show(panels)` sends what has changed since the last picture, in one message: a
    header (of panels whose description has changed, the description; where each array lies) and one buffer with the
    arrays that have changed. A page that opens later (a second view, a reload) says hello and gets everything.

    `ready` is false while `IN_FLIGHT` pictures are unanswered: a page that is hidden, frozen or closed does not draw,
    so it does not answer, and then single pictures are tried, after 1/4, 1/2, 1, … 30 seconds. Nothing piles up.

    on_pick(kind, index), on the kernel's thread: an 'expert', 'token', 'layer' or 'model' was clicked. on_draw(points):
    these were drawn, see `marks.Drawn`."""

    # the text: of a file, anywidget would remember each widget for ever
    _esm = join_modules(HERE / "canvas" / "index.js")
    _css = (HERE / "canvas.css").read_text("utf-8")

    def __init__(self, on_pick: Callable[[str, int], None] = lambda kind, index: None):
        super().__init__()
        self.on_pick, self.on_draw = on_pick, lambda points: None
        self.frame = self.answered = 0  # numbers of pictures: the last one sent, the last one drawn
        self.behind = 1.0  # how many pictures the page gets for each that it draws
        self.panels: dict[int, Panel] = {}  # what was shown last, by place
        self.words: dict[str, Any] = {}
        self._patience, self._sent_at = FIRST_PATIENCE, 0.0
        self._headers: dict[int, dict] = {}  # what the pages have: the description of each panel, ...
        self._arrays: dict[str, np.ndarray] = {}  # ... and each array
        self._lock = threading.Lock()
        self.on_msg(self._hear)

    @property
    def ready(self) -> bool:
        """Return whether the page has kept up, or has been silent for so long that one more picture is worth a try."""
        return self.frame - self.answered < IN_FLIGHT or time.monotonic() - self._sent_at > self._patience

    def show(self, panels: dict[int, Panel], count: int, **words: Any) -> None:
        """Send panels by their place (the others stay), and texts. count: how many panels there are from now on."""
        with self._lock:
            headers, arrays = {}, {}
            for place, panel in panels.items():
                header, its_arrays = encode_panel(panel, place)
                if header != self._headers.get(place):
                    headers[place] = header
                for slot, array in its_arrays.items():
                    old = self._arrays.get(slot, NONE)
                    if old.dtype != array.dtype or not np.array_equal(old, array):
                        arrays[slot] = array
            words = {n: value for n, value in (words | {"count": count}).items() if self.words.get(n, self) != value}
            self.words |= words
            self.panels = {place: panel for place, panel in (self.panels | panels).items() if place < count}
            self._headers = {place: header for place, header in (self._headers | headers).items() if place < count}
            self._arrays = {s: a for s, a in (self._arrays | arrays).items() if int(s.split(".")[0]) < count}
            self._send_frame(headers, arrays, words)

    def copy(self, text: str, name: str) -> None:
        """Have the page put a text into its clipboard or, where that is not allowed, save it as a file of this name."""
        self.send({"copy": {"text": text, "name": name}})

    def _send_frame(self, headers: dict, arrays: dict[str, np.ndarray], words: dict, **more: Any) -> None:
        is_a_try = self.frame - self.answered >= IN_FLIGHT
        if is_a_try:  # after silence
            self._patience = min(2 * self._patience, LONGEST_PATIENCE)
        self.frame += 1
        self._sent_at = time.monotonic()
        slots, data = pack(arrays)
        content = {"frame": self.frame, "panels": headers, "slots": slots, "words": words, **more}
        if is_a_try or self.frame % EVERY == 0:
            content["answer"] = True
        if not static_mode():
            self.send(content, [data])

    def _hear(self, _, content: Any, buffers) -> None:
        """Return what a page says; anything else than it can say is ignored."""
        content = content if isinstance(content, dict) else {}
        drawn, behind = content.get("drawn"), content.get("behind", 1)
        if is_whole(drawn, self.answered + 1, self.frame):
            self.answered, self._patience = drawn, FIRST_PATIENCE
            self.behind = min(max(1.0, behind), 10.0) if isinstance(behind, int | float) else 1.0  # NaN: 1
        elif content.get("hello") is True:
            with self._lock:
                self._send_frame(self._headers, self._arrays, self.words, colors=COLORS, answer=True)
        elif isinstance(content.get("pick"), str) and is_whole(content.get("index"), 0):
            self.on_pick(content["pick"], content["index"])
        elif isinstance(content.get("points"), str):
            self.on_draw(content["points"])
