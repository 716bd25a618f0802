"""The lessons, in their order: one table, which the course page and the site read, and the README repeats."""

import csv
from pathlib import Path
from typing import NamedTuple


class Lesson(NamedTuple):
    number: str  # as the file's name begins, and the keys of its questions and exercises
    file: str
    title: str
    minutes: int
    predictions: int  # that it asks for
    goal: str  # afterwards you can say …

    @property
    def link(self) -> str:
        return f"[{self.number} · {self.title}]({self.file})"


with open(Path(__file__).with_name("lessons.csv"), encoding="utf-8", newline="") as table:
    rows = [row | {name: int(row[name]) for name in ("minutes", "predictions")} for row in csv.DictReader(table)]
LESSONS = tuple(Lesson(**row) for row in rows)
