"""Parts of the package that a lesson shows: source, and texts, which are files of Markdown."""

import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path


class Markdown(str):  # which a notebook shows as such
    _repr_markdown_ = __repr__ = str.__str__


class Source(Markdown):
    """Python source that a notebook shows in the colours of its own theme."""

    def _repr_markdown_(self) -> str:
        return f"```python\n{self}\n```"


def show_source(thing: Callable | type) -> Source:
    """Return the source of a function, a method or a class, as it stands in the package.

    >>> show_source(show_source).splitlines()[0]
    'def show_source(thing: Callable | type) -> Source:'
    """
    return Source(textwrap.dedent(inspect.getsource(thing)).strip())


def read_parts(path: Path) -> list[tuple[str, str]]:
    """Read the parts '## name' of a file: (name, text) each. What stands before the first is left out."""
    parts = re.split(r"^## (.+)\n", path.read_text("utf-8"), flags=re.MULTILINE)
    return list(zip(parts[1::2], map(str.strip, parts[2::2])))


def split_points(text: str) -> tuple[str, list[str]]:
    """Tell a text from the points '- …' that follow it; each on one line."""
    first, *points = (" ".join(part.split()) for part in re.split(r"^- ", text, flags=re.MULTILINE))
    return first, points
