"""``python -m tools.tables``: write anew what the documents repeat of the course. ``make render`` does, too.

The table of `moe_lessons.course.lessons` stands between `<!-- lessons -->` and `<!-- /lessons -->`, the answer in one
sentence and when it holds between `<!-- sentence -->` and `<!-- /sentence -->`.
"""

import re
import textwrap
from pathlib import Path

from moe_lessons.course.interview import CONDITIONS, SENTENCE
from moe_lessons.course.lessons import LESSONS, Lesson

ROOT = Path(__file__).resolve().parents[1]


def readme_row(lesson: Lesson) -> str:
    return f"| {lesson.number} | [{lesson.title}](notebooks/{lesson.file}) | {lesson.goal} |"


def instructors_row(lesson: Lesson) -> str:
    link = f"[{lesson.title}](../notebooks/{lesson.file})"
    return f"| {lesson.number} | {link} | {lesson.minutes} | {lesson.goal} |"


ROWS = {"README.md": readme_row, "docs/instructors.md": instructors_row}


def with_table(name: str) -> str:
    """Return the text of a document, its rows of lessons and the sentence as the course has them; all else stays."""
    text, rows = (ROOT / name).read_text("utf-8"), "\n".join(map(ROWS[name], LESSONS))
    table = re.compile(r"(<!-- lessons -->\n\n[^\n]*\n\|[-|]+\|\n).*?(\n\n<!-- /lessons -->)", re.S)
    text = table.sub(lambda found: found[1] + rows + found[2], text)
    answer = "\n\n".join(textwrap.fill(part, 120) for part in (f"**{SENTENCE}**", CONDITIONS))
    return re.sub(r"(?<=<!-- sentence -->\n\n).*?(?=\n\n<!-- /sentence -->)", lambda _: answer, text, flags=re.S)


def main() -> None:
    for name in ROWS:
        (ROOT / name).write_text(with_table(name), "utf-8")


if __name__ == "__main__":
    main()
