"""The stand-in of a live view of a lesson on the site: a view that trains, a recording, or its picture.

A stored lesson has of each live view its picture and its repr, a call that makes it. From these all is found.
"""

import ast
import functools
import hashlib
import json
import re
import subprocess
import sys
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from moe_lessons import widgets
from moe_lessons.training import PRESETS
from web.lesson_page import dark_of
from web.manifest import PAGE, STOPS, USUAL, graph_name, offered
from web.speedup import COURSE, SHAPE, models

ROOT = Path(__file__).resolve().parents[1]
LESSON_FILES = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
RECORDINGS = ROOT / "web" / "recordings"
RECORDED = widgets.LiveRun, widgets.RoutersView
VIEW_ONLY = ("panels", "controls", "play", "max_steps")  # arguments that change nothing of what trains


class View(NamedTuple):
    """A live view that a cell of a lesson shows. name: of its lesson, its class, and which of these it is.

    call, words: what its picture is of, and says. picture: the hash of that, by which the site names it.
    """

    name: str
    cell: int
    call: str
    words: str
    picture: str

    @property
    def is_recorded(self) -> bool:
        """Return whether it has a recording: it trains, but not as a state of the page; it is played; or it is one
        picture."""
        kind = getattr(widgets, view_class(self.call), object)
        return (issubclass(kind, RECORDED) or kind is widgets.Picture) and not self.state

    @property
    def state(self) -> str:
        """The state of the page's playground that trains the same; empty: there is none."""
        went_on = f"play={steps_of(self.words)}" not in self.call  # after it was made
        if not self.call.startswith("Playground(") or went_on:
            return ""
        try:
            given = arguments(self.call)
        except ValueError:  # it has what cannot be written in an address
            return ""
        if given.keys() - {"preset"} - {*sum(PAGE.groups.values(), ())}:
            return ""
        changes = {name: value for name, value in given.items() if hasattr(PRESETS["healthy"], name)}
        setting = replace(PRESETS[given["preset"]], **changes)
        is_offered = all(given[name] in STOPS[name] for name in given.keys() & STOPS)
        return urlencode(given) if is_offered and graph_name(setting) in offered(USUAL) else ""

    def on_the_site(self) -> tuple[str, str]:
        """Return what stands in its place: 'playground' or 'speedup' and its state, 'recording' and its name, or
        'picture'."""
        if self.state:
            return "playground", self.state
        if state := map_state(self.call):
            return "speedup", state
        is_there = self.is_recorded and (RECORDINGS / f"{self.name}.z").is_file()
        return ("recording", self.name) if is_there else ("picture", "")


def view_class(call: str) -> str:
    """The class of a view, by its repr."""
    return re.match(r"\w+", call)[0]


def arguments(call: str) -> dict[str, Any]:
    """Return what a call of Playground says of what trains. ValueError: it is not all literal."""
    node = ast.parse(call, mode="eval").body
    given = {"preset": node.args[0]} | {word.arg: word.value for word in node.keywords if word.arg not in VIEW_ONLY}
    return {name: ast.literal_eval(value) for name, value in given.items()}


def map_state(call: str) -> str:
    """Write the state of the page's speedup map for a call of SpeedupMap, that of the course's own model without what
    was measured on some machine; empty where the page does not have it."""
    if not call.startswith("SpeedupMap("):
        return ""
    node = ast.parse(call, mode="eval").body
    given = {word.arg: word.value for word in node.keywords}
    is_own = ast.unparse(node.args[0]).replace("tied_embedding=True", "tied_embedding=False") == repr(SHAPE)  # as fast
    if is_own:
        given = {name: given[name] for name in ("num_experts", "top_k", "width", "batch_size")}
    try:
        model = COURSE if is_own else ast.literal_eval(node.args[0])
        given = {"model": model} | {name: ast.literal_eval(value) for name, value in given.items()}
    except ValueError:  # a machine or a shape of one's own
        return ""
    return urlencode(given) if model in models() else ""


def steps_of(words: str) -> str:
    """The number of the step that the words of a picture say first."""
    found = re.match(r"Step ([\d,]+)", words)
    return found[1].replace(",", "") if found else ""


def views_of(path: Path) -> Iterator[View]:
    """Each live view that a stored lesson shows, in order."""
    counts = Counter()
    for place, cell in enumerate(json.loads(read_clean(path))["cells"]):
        for output in cell.get("outputs", []):
            said = output.get("metadata", {}).get("image/png")
            if said and "width" not in said:  # a figure says its width
                call, png = ("".join(output["data"][kind]) for kind in ("text/plain", "image/png"))
                picture = hashlib.sha256(b64decode(png)).hexdigest()
                yield View(next_name(path, call, counts), place, call, said["alt"], picture)


def dark_pictures(path: Path) -> set[str]:
    """Give the dark versions of the pictures of a stored lesson, as `View.picture` names one."""
    outputs = [output for cell in json.loads(read_clean(path))["cells"] for output in cell.get("outputs", [])]
    return {hashlib.sha256(b64decode(dark)).hexdigest() for dark in map(dark_of, outputs) if dark}


@functools.cache
def read_clean(path: Path) -> str:
    """Return the text of a stored notebook as `make render` leaves it: where somebody has run it since, as it was
    committed. Ends the program where that was not rendered either."""
    text = path.read_text(encoding="utf-8")
    if is_rendered(text):
        return text
    git = ["git", "-C", str(path.parent), "show", f"HEAD:./{path.name}"]
    with suppress(OSError):  # no git
        found = subprocess.run(git, capture_output=True, encoding="utf-8")
        if found.returncode == 0 and is_rendered(found.stdout):
            print(f"{path.name} was run since it was rendered: the site shows it as committed.", file=sys.stderr)
            return found.stdout
    raise SystemExit(f"{path.name} was run since it was rendered: `make render NOTEBOOKS=notebooks/{path.name}`.")


def is_rendered(text: str) -> bool:
    """Return whether a notebook is as `make render` stores it: an editor that runs it says more of the language."""
    return json.loads(text)["metadata"].get("language_info") == {"name": "python"}


def next_name(path: Path, call: str, counts: Counter) -> str:
    """Name the next view of a lesson, and count it."""
    name = f"{path.name.split('_')[0]}-{view_class(call)}"
    counts[name] += 1
    return name if counts[name] == 1 else f"{name}-{counts[name]}"
