"""``python -m tools.recorder [NAME ...]``: record live views of the lessons, or all of them, into web/recordings.

A recording has what the kernel sends to the canvas of a view while a real run trains: the lesson's own cells are
executed as `make render` does it, and what trains is shown on the way. Of a view of which nothing trains it has one
picture.
NAME: as `web.lesson_views` has it.

It is a line of JSON and, after it, the bytes of arrays; all compressed. A picture has what differs from the one
before: panels, words, arrays; of an array, the bytes that follow after those that are the same, as a history grows.
"""

import json
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import numpy as np
import torch

from moe_lessons import __version__
from moe_lessons.widgets import LiveRun, Picture
from moe_lessons.widgets.canvas import COLORS, LiveCanvas
from moe_lessons.widgets.recording import Player
from tools.render import execute
from web.lesson_views import LESSON_FILES, RECORDINGS, ROOT, next_name, views_of
from web.training_page import write_compressed

FIRST, MOST = 20, 120  # a picture for each of the first steps; pictures of a recording, at most
NOT_RECORDED = ("tips", "until")  # words of what has controls, or trains on
FINE = 1e-3  # parts of a value that nobody sees


class Shown(NamedTuple):
    """All that a canvas shows: headers of panels by place, arrays by slot, words."""

    panels: dict[int, dict]
    arrays: dict[str, np.ndarray]
    words: dict[str, Any]


def main(*names: str) -> None:
    """Make recordings, or all."""
    lessons = {path: [view for view in views_of(path) if view.is_recorded] for path in LESSON_FILES}
    every = [view.name for views in lessons.values() for view in views]
    if unknown := set(names) - set(every):
        raise SystemExit(f"NAME must be one of {', '.join(every)}, got {unknown.pop()}.")
    RECORDINGS.mkdir(exist_ok=True)
    for path, views in lessons.items():
        wanted = {view.name: view.cell for view in views if view.name in (names or every)}
        if wanted:
            notebook = nbformat.read(path, as_version=4)
            start = f"import sys\nsys.path.append({str(ROOT)!r})\nfrom tools.recorder import watch\n"
            start += f"watch({str(path)!r}, {list(wanted)})"
            cells = notebook.cells[: max(wanted.values()) + 1]
            notebook.cells = [nbformat.v4.new_code_cell(start), *cells]
            execute(notebook, path.parent, patience=1800)
            for name in wanted:
                print(f"{name}: {(RECORDINGS / f'{name}.z').stat().st_size / 1e6:.2f} MB", flush=True)


def watch(lesson: str, names: Collection[str]) -> None:
    """In the kernel of a lesson: show more pictures of what trains, and write recordings when cells show views."""
    seen: dict[LiveCanvas, list[Shown]] = {}
    counts, show = Counter(), LiveCanvas.show

    def shows(canvas: LiveCanvas, *panels: Any, **words: Any) -> None:
        show(canvas, *panels, **words)
        arrays = {slot: array.copy() for slot, array in canvas._arrays.items()}
        seen.setdefault(canvas, []).append(Shown(canvas._headers, arrays, canvas.words.copy()))

    def displayed(view: Picture, **_: Any) -> dict[str, str]:
        name = next_name(Path(lesson), repr(view), counts)
        if name in names:
            if isinstance(view, Player):
                play_through(view, seen)
            write_recording(RECORDINGS / f"{name}.z", repr(view), seen[view.canvas])
        return {"text/plain": repr(view)}

    LiveCanvas.show = shows
    LiveRun.play = play_in_pictures
    Picture._repr_mimebundle_ = displayed


def play_in_pictures(view: LiveRun, steps: int | None = None) -> None:
    """Train as many steps as `LiveRun.play` does, at once, and show the view on the way."""
    start, steps = view.step, steps or view.max_steps
    view.loop.until = start + steps
    if not view.canvas.frame:  # a static page has no picture before the training
        view.show()
    for step in pictured(steps):
        view.advance(start + step - view.step)


def play_through(view: Player, seen: dict[LiveCanvas, list[Shown]]) -> None:
    """Show each frame of what is played, and at last the one that the lesson shows."""
    last = view.slider.value
    for place in range(view.last + 1):
        view.slider.value = place
        if place == 0:
            del seen[view.canvas][:-1]
    view.slider.value = last


def pictured(steps: int) -> list[int]:
    """After which of so many steps there is a picture: of each at first, when most happens, and of the last."""
    every = -(-max(steps - FIRST, 1) // (MOST - 2 * FIRST))
    return sorted({*range(1, min(FIRST, steps) + 1), *range(steps, FIRST, -every)})


def write_recording(path: Path, title: str, shown: Sequence[Shown]) -> None:
    """Write what was shown, at most MOST pictures of it, of which the last is one."""
    shown = shown[::-1][:: -(-len(shown) // MOST)][::-1]
    half_slots = half_precision_slots(shown)
    before, arrays = Shown({}, {}, {}), {}
    frames, tail = [], bytearray()
    size = 0
    for now in shown:
        frame = {"panels": changed(before.panels, now.panels), "arrays": []}
        words = {name: value for name, value in now.words.items() if name not in NOT_RECORDED} | {"state": "paused"}
        frame["words"], now = changed(before.words, words), now._replace(words=words)
        for slot, array in now.arrays.items():
            array = array.astype("f2") if slot in half_slots else array
            kind, data = (array.dtype.str[1:], array.shape), np.frombuffer(array.tobytes(), "u1")
            old_kind, old = arrays.get(slot, (None, data[:0]))
            if old_kind != kind or not np.array_equal(old, data):
                same = shared(old, data)
                frame["arrays"].append([slot, *kind, same, len(data) - same])
                tail += data[same:].tobytes()
                size += len(data)
                arrays[slot] = kind, data
        frames.append(frame)
        before = now
    made_with = f"moe_lessons {__version__} and torch {torch.__version__}"
    about = f"{title} of lesson {path.stem.split('-')[0]}, made on {date.today()}"
    about += f" by python -m tools.recorder {path.stem}"
    head = {"about": f"{about} with {made_with}", "colors": COLORS, "size": size, "frames": frames}
    write_compressed(path, json.dumps(head, separators=(",", ":")).encode() + b"\n" + tail)


def changed(before: dict, now: dict) -> dict:
    """Return the entries that are new or another."""
    return {name: value for name, value in now.items() if name not in before or before[name] != value}


def shared(one: np.ndarray, other: np.ndarray) -> int:
    """Return how many bytes are the same from the first on."""
    most = min(len(one), len(other))
    differ = np.flatnonzero(one[:most] != other[:most])
    return int(differ[0]) if len(differ) else most


def half_precision_slots(shown: Sequence[Shown]) -> set[str]:
    """The slots of the arrays that are stored half as long: where nobody sees it in any picture."""
    arrays = [pair for each in shown for pair in each.arrays.items()]
    return {slot for slot, _ in arrays} - {slot for slot, array in arrays if not is_fine(array)}


def is_fine(array: np.ndarray) -> bool:
    """Return whether float16 says the same to the eye as a float32; whole numbers stay what they are."""
    if array.dtype != "f4":
        return False
    with np.errstate(over="ignore"):
        half = array.astype("f2").astype("f4")
    if np.array_equal(array, np.round(array)):
        return np.array_equal(half, array)
    most = np.abs(array[np.isfinite(array)]).max(initial=0)
    return np.allclose(half, array, FINE, FINE * most / 10, equal_nan=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
