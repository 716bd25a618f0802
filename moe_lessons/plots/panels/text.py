"""Held-out text in the colours of the experts that serve it."""

from collections.abc import Iterator

import numpy as np

from moe_lessons.plots.marks import Panel, Text
from moe_lessons.plots.panels._history import num_experts, of_layer

TITLE = "Text, coloured by the first choice"
LINES, WIDTH = 3, 36  # of each domain: how much is shown at most, in lines of letters


def text(view) -> Panel:
    """A passage of each domain, from the beginning of a line; each letter has the colour of its first choice."""
    num_experts(view)  # refuses a model without experts
    table = view.traced[view.traced["layer"] == view.layer]
    ids, experts = (table[name].to_numpy().reshape(table["sequence"].nunique(), -1) for name in ("byte", "expert0"))
    domain = table["domain"].to_numpy().reshape(ids.shape)[:, 0]  # (sequences,)
    passages = {}
    for name in dict.fromkeys(domain):
        rows = np.flatnonzero(domain == name)
        row, start = line_start(ids[rows], room=ids.shape[1] // 2)
        data = bytes(ids[rows[row], start:].tolist())
        passages[name] = data[: (end := first_lines(data))], experts[rows[row], start : start + end]
    return text_panel(list(passages.values()), tuple(passages), of_layer(TITLE, view))


def line_start(ids: np.ndarray, room: int) -> tuple[int, int]:
    """Of bytes (N, T) a row and the place in it where a line begins, with `room` more bytes; 0, 0 where none does."""
    rows, places = np.nonzero(ids[:, : max(ids.shape[1] - room, 0)] == ord("\n"))
    return (int(rows[0]), int(places[0]) + 1) if len(rows) else (0, 0)


def first_lines(data: bytes) -> int:
    """How many bytes fill the first `LINES` lines."""
    lines = column = 0
    for char, start, _ in characters(data):
        if lines == LINES:
            return start
        lines, column = (lines + 1, 0) if char == "\n" or column + 1 == WIDTH else (lines, column + 1)
    return len(data)


def text_panel(passages, names=(), title: str = TITLE, says=()) -> Panel:
    """passages: of each one its bytes and the expert of each byte (N,), -1 where there is none. says: see `Text`."""
    signs = [list(characters(data)) for data, _ in passages]
    texts = ["".join(char for char, _, _ in own) for own in signs]
    sizes = np.array([size for own in signs for _, _, size in own], "u1")
    experts = np.concatenate([served for _, served in passages]).astype("i2")
    return Panel(title, [Text(texts, names, experts, sizes, says)], width=6, height=40 + 85 * len(texts))


def characters(data: bytes) -> Iterator[tuple[str, int, int]]:
    """Each character of UTF-8 with the place of its first byte and how many it has. What is none, such as half a
    Greek letter, comes byte by byte as '�'.

    >>> list(characters("aα".encode() + b"\\xce"))
    [('a', 0, 1), ('α', 1, 2), ('�', 3, 1)]
    """
    start = 0
    while start < len(data):
        char, size = "�", 1
        for length in (1, 2, 3, 4):
            try:
                char, size = data[start : start + length].decode(), length
                break
            except UnicodeDecodeError:
                pass
        yield char, start, size
        start += size
