"""The marks and axes of a panel. `still` makes a matplotlib figure of them (code hosts, nbval, print),
`widgets.canvas` sends them to the page, where pointing at an expert, a token or a model in one panel shows it in all.
Colours of lines are numbers, `ink`: see `theme.Theme.lines`; -1 is a pale ghost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

CLASSES = "ABCDEFGH"  # the names of classes: a number is an expert's


class Field(NamedTuple):
    """A plane divided among the experts by their scores z (rows, columns, E) on a grid, bottom row first, bilinear.
    classes (R, R): of a finer grid, pale."""

    z: Any
    classes: Any = None


class Drawn(NamedTuple):
    """Points that a user has drawn, as `tasks.plane.read_points` has them, each the letter of its class. pen: the class
    of those that are drawn by pointer or key in the page; None: they are not."""

    points: str
    pen: int | None = None


class Cells(NamedTuple):
    """A row for each token, layer or group (`rows`), a column for each expert: z (rows, E); NaN: empty. even: None: z
    is the strength of the expert's colour; else z departs from it, up to `most`. numbers: in percent. selected: the row
    in a frame; a click selects a token or layer."""

    z: Any
    even: float | None = None
    most: float = 1.0
    numbers: bool = False
    rows: str = "token"
    selected: int | None = None


class Bars(NamedTuple):
    """A bar for each expert: y (E,), pale above `limit`. second (E,): another reading, a tick, called second_name."""

    y: Any
    limit: float | None = None
    second: Any = None
    second_name: str = ""


class Stack(NamedTuple):
    """A band for each expert: x (N,), y (N, E), each row with the sum 1. second (E,): a strip at the right edge."""

    x: Any
    y: Any
    second: Any = None


class Heat(NamedTuple):
    """Values all over the panel: z (rows, columns), bottom row first, bilinear, in two directions of colour from 0 to
    ±`most`. contours (L, rows): x of each line in each row, with `names`. regions: what is said of those below 0 and
    above, where there is room. places (N, 2): x and y of what can be pointed at, the top row first, with `titles`; a
    click selects one. selected: x and y of a ring. legend: texts, and the values whose colours they have."""

    z: Any
    most: float
    contours: Any
    names: Sequence[str]
    regions: tuple[str, str]
    places: Any
    columns: int
    titles: Sequence[str]
    selected: Any = None
    legend: Sequence[tuple[str, float]] = ()


class Line(NamedTuple):
    """x, y (N,), in a pale band from low to high (N,). model: of which it is, where it is linked. strong: thicker. end:
    what stands at its last point in the page, and is short."""

    x: Any
    y: Any
    name: str = ""
    ink: int = 0
    model: int | None = None
    strong: bool = True
    low: Any = None
    high: Any = None
    end: str = ""


class Points(NamedTuple):
    """x, y (N,). symbol (N,): 0 a light disc, 1 a dark cross, 2 a red cross. expert (N,): whose they are. tokens: the
    i-th is token i; then selected is in a ring, and a tip says what symbols 0 and 1 are `named`. fill (N,): of larger
    discs, in the colour that a `Heat` with this `most` has for it."""

    x: Any
    y: Any
    symbol: Any = None
    expert: Any = None
    tokens: bool = False
    selected: int | None = None
    named: Sequence[str] = ("", "")
    fill: Any = None
    most: float = 1.0


class Spots(NamedTuple):
    """A spot for each model, with a cross: x, y (3, N), the mean, lowest and highest of its seeds."""

    x: Any
    y: Any
    ink: Any
    names: Sequence[str]


class Parts(NamedTuple):
    """A horizontal bar for each of `rows`, made of parts: values (rows, parts), with names and colors ('#rrggbb').
    texts: what stands at the end of each. The x axis says what is counted."""

    rows: Sequence[str]
    names: Sequence[str]
    values: Any
    colors: Sequence[str]
    texts: Sequence[str] = ()


class Rule(NamedTuple):
    """A line across the panel at x or at y. kind: 'dash', 'even' (fine dashes), 'limit' (red), 'mark' (thin),
    or 'end': of what is possible, with its name on it; what lies above fades."""

    x: float | None = None
    y: float | None = None
    kind: str = "dash"
    name: str = ""


class Boxes(NamedTuple):
    """Boxes with a text in each. places (N, 4): their middles x, y and sizes; where the width is 0 a text begins at x.
    fill (N,): 0 the text alone, 1 a frame, 2 grey, 3 the colour of its expert, 4 + i that of ink i. expert, token (N,):
    whose it is, -1: of none; a tip has the text and what it `says`, or there is none. selected: a token, framed in red.
    strong: bold."""

    places: Any
    texts: Sequence[str]
    fill: Any
    expert: Any
    token: Any
    says: Sequence[str]
    selected: int | None = None
    strong: bool = False


class Arrows(NamedTuple):
    """Arrows in the colour of their expert, pale unless their token is selected. ends (N, 4): x and y, from and to."""

    ends: Any
    expert: Any
    token: Any
    selected: int | None = None


class Route(NamedTuple):
    """A token's way through a mixture: the router's probs (E,), the weights (E,) of the experts that compute, 0 for
    those that are idle, and their sum. head: what the token is; foot: what comes of it."""

    probs: Any
    weights: Any
    head: str
    foot: str


class Lamps(NamedTuple):
    """A lamp for each entry, `columns` in a row from the top left, of one model: right (N,): how many digits of its
    answer are right, all of them in full colour. A tip has entries (N, length) and the answers (N, digits) of each
    model that has lamps, as bytes."""

    right: Any
    columns: int
    name: str
    ink: int
    entries: Any
    answers: Any


class Text(NamedTuple):
    """Passages under their names. experts (B,): whose colour each byte has, -1: none; sizes (N,): bytes of each letter;
    says: what a tip says of each byte. selected: the byte in a frame; then a click selects another."""

    texts: Sequence[str]
    names: Sequence[str] = ()
    experts: Any = None
    sizes: Any = None
    says: Sequence[str] = ()
    selected: int | None = None


class Table(NamedTuple):
    """Texts: a column for each model, in its ink, and a row for each quantity; columns beyond the inks have none."""

    columns: Sequence[str]
    rows: Sequence[str]
    cells: Sequence[Sequence[str]]
    inks: Sequence[int] = ()


class Axis(NamedTuple):
    """From `low` to `high` (low may be the larger). ticks: None for round numbers, () for none. link: x axes with the
    same one show the same vertical line under the pointer."""

    low: float = 0.0
    high: float = 1.0
    label: str = ""
    ticks: Sequence[tuple[float, str]] | None = None
    link: str = ""


@dataclass(frozen=True)
class Panel:
    """One picture: marks in the order in which they are drawn, and two axes (a `Text` or `Table` has none). width: of
    12 columns, and at least so many pixels; height: in pixels. model: a click selects it."""

    title: str
    marks: Sequence[Any]
    x: Axis = Axis()
    y: Axis = Axis()
    width: int = 4
    least_width: int = 0
    height: int = 250
    caption: str = ""
    model: int | None = None
    selected: bool = False


PAGE_TYPES = {"f8": "f4", "i8": "i4", "u8": "i4", "u4": "i4", "b1": "u1"}  # what a page has no array for, or no use


def encode_panel(panel: Panel, place: int) -> tuple[dict, dict[str, np.ndarray]]:
    """Split a panel into a header (what JSON can say) and its arrays by slot; in it an array is {"slot": name}."""
    said, arrays = [], {}
    for number, mark in enumerate(panel.marks):
        header = {name: value for name, value in mark._asdict().items() if value is not None}
        for name, value in header.items():
            if mark.__annotations__[name] is Any:
                slot = f"{place}.{number}.{name}"
                array = np.ascontiguousarray(value, "f4" if name == "values" else None)  # some are large
                arrays[slot] = array.astype(PAGE_TYPES.get(array.dtype.str[1:], array.dtype), copy=False)
                header[name] = {"slot": slot}
        said.append({"mark": type(mark).__name__} | header)
    return vars(panel) | {"marks": said, "x": panel.x._asdict(), "y": panel.y._asdict()}, arrays


def experts_axis(count: int) -> Axis:
    """Make a place for each expert, E0, E1, …; of more than eight every second, third, … is named."""
    every = -(-count // 8)
    return Axis(-0.5, count - 0.5, ticks=[(e, f"E{e}") for e in range(0, count, every)])


def roomy(value: float, first: float = 200, most: float = 0) -> float:
    """Find the end of an axis that has room for `value`, in steps of a half, so that it seldom moves; `most`, if the
    value goes no further."""
    while first < value:
        first *= 1.5
    return most if most and value <= most < first else first
