"""Reading the package from inside a lesson."""

import inspect
import textwrap
from collections.abc import Callable


class Source(str):
    """Python source that a notebook shows in the colours of its own theme."""

    def _repr_markdown_(self) -> str:
        return f"```python\n{self}\n```"

    __repr__ = str.__str__


def show_source(thing: Callable | type) -> Source:
    """Return the source of a function, a method or a class, as it stands in the package.

    >>> show_source(show_source).splitlines()[0]
    'def show_source(thing: Callable | type) -> Source:'
    """
    return Source(textwrap.dedent(inspect.getsource(thing)).strip())
