"""Who serves which kind of bytes."""

from moe_lessons.plots.marks import Panel
from moe_lessons.plots.panels.domains import shares_of


def classes(view) -> Panel:
    """A row for each kind of bytes in the held-out text."""
    return shares_of(view, "byte_class", "Kinds of bytes, % of each row")
