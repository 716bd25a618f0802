"""``python -m tools.tables``: write the table of lessons anew where the documents repeat it. ``make render`` does, too.

A table stands between `<!-- lessons -->` and `<!-- /lessons -->`; its words are those of `moe_lessons.course.lessons`.
"""

import re
from pathlib import Path

from moe_lessons.course.lessons import LESSONS, Lesson

ROOT = Path(__file__).resolve().parents[1]


def readme_row(lesson: Lesson) -> str:
    return f"| {lesson.number} | [{lesson.title}](notebooks/{lesson.file}) | {lesson.goal} |"


def instructors_row(lesson: Lesson) -> str:
    link = f"[{lesson.title}](../notebooks/{lesson.file})"
    return f"| {lesson.number} | {link} | {lesson.minutes} | {lesson.goal} |"


ROWS = {"README.md": readme_row, "docs/instructors.md": instructors_row}


def with_table(name: str) -> str:
    """Return the text of a document, its rows of lessons as the course has them; its head stays."""
    text, rows = (ROOT / name).read_text("utf-8"), "\n".join(map(ROWS[name], LESSONS))
    table = re.compile(r"(<!-- lessons -->\n\n[^\n]*\n\|[-|]+\|\n).*?(\n\n<!-- /lessons -->)", re.S)
    return table.sub(lambda found: found[1] + rows + found[2], text)


def main() -> None:
    for name in ROWS:
        (ROOT / name).write_text(with_table(name), "utf-8")


if __name__ == "__main__":
    main()
