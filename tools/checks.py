"""What a cell says, against the variables of its lesson: `tools.render` refuses a lesson that contradicts itself.

A cell says it by a tag. Its expressions are evaluated when the code cell that has the tag, or the last one before the
text that has it, has run. A tag has no comma.

    number:EXPRESSION=15±2    the text has the number 15, and the expression is at most 2 away from it
    parts:EXPRESSION=WHOLE    the values of the expression sum to the whole, within 5 %
    bound:EXPRESSION<=BOUND   a measured value does not exceed what bounds it
"""

import re
from dataclasses import dataclass

from nbformat import NotebookNode

FORMS = {
    "number": r"(.+)=([-−]?[\d.]+)±([\d.]+)",
    "parts": r"(.+?)=(?!=)(.+)()",
    "bound": r"(.+?)<=(.+)()",
}
ASKED = {"number": "{0}", "parts": "sum({0}) / ({1})", "bound": "({0}) / ({1})"}
MISSED = 0.05  # so much the parts may miss the whole


@dataclass(frozen=True)
class Check:
    """A tag of cell `cell`. expression: what the kernel is asked, one number."""

    cell: int
    kind: str
    parts: tuple[str, str, str]

    @property
    def expression(self) -> str:
        return f"float({ASKED[self.kind].format(*self.parts)})"

    def complaint(self, found: float) -> str:
        """Say in one sentence what is wrong with the number that was found; nothing where it is right."""
        formula, other, tolerance = self.parts
        if self.kind == "number":
            off = abs(found - number(other)) <= float(tolerance)  # nan is off, too
            said = f"cell [{self.cell}] says {other}, and {formula} is {found:.4g}, not within {tolerance}"
            return "" if off else said
        if self.kind == "parts":
            said = f"the parts of cell [{self.cell}], {formula}, are {found:.3g} times the whole, {other}"
            return "" if abs(found - 1) <= MISSED else said
        return "" if found <= 1 else f"in cell [{self.cell}] {formula} is {found:.3g} times its bound, {other}"


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def checks_after(notebook: NotebookNode) -> dict[int, list[Check]]:
    """Read the checks of a notebook, by the place of the code cell after which they are due.

    ValueError for a tag of another form, for a number that its text does not have, and before any code."""
    due, last = {}, None
    for place, cell in enumerate(notebook.cells):
        last = place if cell.cell_type == "code" else last
        for tag in cell.metadata.get("tags", []):
            kind, _, body = tag.partition(":")
            if kind not in FORMS:
                continue
            match = re.fullmatch(FORMS[kind], body)
            if not match or last is None:
                raise ValueError(f"cell [{place}] must have a tag {kind}: as tools/checks.py says, got {tag!r}")
            text = cell.source.replace(",", "")  # 1,024
            if kind == "number" and not re.search(rf"(?<![\d.]){re.escape(match[2])}(?!\.?\d)", text):
                raise ValueError(f"cell [{place}] must say the number of its tag, {match[2]}, got {tag!r}")
            due.setdefault(last, []).append(Check(place, kind, match.groups()))
    return due
