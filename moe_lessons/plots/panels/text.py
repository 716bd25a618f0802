"""Who serves which letter of a text, which domain and which kind of bytes."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_lessons.analysis.traces import expert_shares
from moe_lessons.plots.marks import Axis, Cells, Panel, Text, experts_axis
from moe_lessons.plots.panels._history import num_experts, of_layer
from moe_lessons.plots.still import plot

TITLE = "Text, coloured by the first choice"
LINES, WIDTH = 3, 36  # of each domain: how much is shown at most, in lines of letters
LONGEST_NAME = 22  # characters that the name of a group has room for


def text(view) -> Panel:
    """A passage of each domain, from the beginning of a line; each letter has the colour of its first choice."""
    num_experts(view)  # refuses a model without experts
    table = view.traced[view.traced["layer"] == view.layer]
    ids, experts = (table[name].to_numpy().reshape(table["sequence"].nunique(), -1) for name in ("byte", "expert0"))
    domain = table["domain"].to_numpy().reshape(ids.shape)[:, 0]  # (sequences,)
    passages = {}
    for name in dict.fromkeys(domain):
        own = domain == name
        row, start = line_start(ids[own], room=ids.shape[1] // 2)
        data, served = bytes(ids[own][row, start:].tolist()), experts[own][row, start:]
        end = first_lines(data)
        passages[name] = data[:end], served[:end]
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
    for char in data.decode(errors="surrogateescape"):  # which makes a surrogate of each byte that fits nowhere
        size = len(char.encode(errors="surrogateescape"))
        yield "�" if "\ud800" <= char <= "\udfff" else char, start, size
        start += size


def shares_panel(shares: pd.DataFrame, title: str) -> Panel:
    """Show a row for each group of tokens, a column for each expert: its share of the group's assignments, in percent.
    Coloured in two directions from 1/E, where all experts serve the group alike."""
    if not isinstance(shares, pd.DataFrame) or shares.empty:
        raise ValueError(f"shares must be a DataFrame with a row for each group of tokens, got {shares!r}")
    values, experts = shares.to_numpy(dtype=np.float32), shares.shape[1]
    sums = values.sum(axis=1)
    if (values < 0).any() or not np.allclose(sums[~np.isnan(sums)], 1, atol=1e-4):
        raise ValueError(f"shares must be at least 0 and sum to 1 in each row, got the sums {sums.round(3).tolist()}")
    names = [f"layer {name}" if shares.index.name == "layer" else str(name) for name in shares.index]
    cells = Cells(values, even=1 / experts, most=min(1, 4 / experts), numbers=True, rows="group")
    y = Axis(len(names) - 0.5, -0.5, ticks=[(row, name[:LONGEST_NAME]) for row, name in enumerate(names)])
    return Panel(title, [cells], experts_axis(experts), y, width=6)


def shares_of(view, by: str, title: str) -> Panel:
    """The shares of each 'domain' or 'byte_class' in the text that the view has traced; NaN where one had no expert."""
    num_experts(view)  # refuses a model without experts
    groups = view.traced[by].cat.remove_unused_categories().cat.categories
    return shares_panel(expert_shares(view.traced, by, view.layer).reindex(groups), of_layer(title, view))


def domains(view) -> Panel:
    """A row for each domain of the held-out text."""
    return shares_of(view, "domain", "Domains, % of each row")


def classes(view) -> Panel:
    """A row for each kind of bytes in the held-out text."""
    return shares_of(view, "byte_class", "Kinds of bytes, % of each row")


def expert_shares_heatmap(shares: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Draw the shares of `analysis.expert_shares`: a row for each group, a column for each expert: `shares_panel`."""
    return plot(
        shares_panel(shares, title), ax, "light", max(2.8 + 0.42 * shares.shape[1], 4.4), 1.1 + 0.3 * len(shares)
    )
