"""``python -m tools.tables``: write anew what is said of the lessons elsewhere. ``make render`` does, too.

`moe_lessons/course/lessons.csv` has of each lesson what the lesson says of itself; its goal, once there, is edited
there. From the table come the rows between `<!-- lessons -->` and `<!-- /lessons -->` of the documents, from
`moe_lessons/course/answer.md` the sentence of the course between `<!-- sentence -->` and `<!-- /sentence -->`.
"""

import csv
import io
import json
import re
import textwrap
from pathlib import Path

from moe_lessons.course.interview import CONDITIONS, SENTENCE
from moe_lessons.course.lessons import LESSONS, Lesson

ROOT = Path(__file__).resolve().parents[1]
TABLE = "moe_lessons/course/lessons.csv"


def readme_row(lesson: Lesson) -> str:
    return f"| {lesson.number} | [{lesson.title}](notebooks/{lesson.file}) | {lesson.goal} |"


def instructors_row(lesson: Lesson) -> str:
    link = f"[{lesson.title}](../notebooks/{lesson.file})"
    return f"| {lesson.number} | {link} | {lesson.minutes} | {lesson.goal} |"


ROWS = {"README.md": readme_row, "docs/instructors.md": instructors_row}


def read_lesson(path: Path) -> Lesson:
    """Read what a lesson says of itself. Raises SystemExit, with what is missing, where it does not."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    first, *_ = texts = ["".join(cell["source"]) for cell in cells]
    number, kept = path.name.split("_")[0], {lesson.number: lesson.goal for lesson in LESSONS}
    title = re.match(rf"# {number} · (.+)\n", first)
    time = re.search(r"\*\*How long\.\*\* (?:About (\d+) minutes|Half an hour)", first)
    says = re.search(r"\*\*At the end you can say\*\* (.+)\.", first)
    goal = kept.get(number) or (says and says[1])
    if not (title and time and goal):
        raise SystemExit(
            f"The first cell of {path.name} must begin with '# {number} · Title', and have '**How long.** About 30 "
            "minutes' and '**At the end you can say** what it was for.'"
        )
    code = "\n".join(text for text, cell in zip(texts, cells) if cell["cell_type"] == "code")
    predictions = len(re.findall(r"Prediction\(", code))
    return Lesson(number, path.name, title[1], int(time[1] or 30), predictions, goal)


def between(text: str, start: str, new: str, end: str) -> str:
    return re.sub(rf"({start}).*?(\n\n{end})", lambda found: found[1] + new + found[2], text, flags=re.S)


def wanted() -> dict[str, str]:
    """Return what the table and the documents should be."""
    lessons = [read_lesson(path) for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([Lesson._fields, *lessons])
    texts = {TABLE: table.getvalue()}
    answer = "\n\n".join(textwrap.fill(part, 120) for part in (f"**{SENTENCE}**", CONDITIONS))
    for name, row in ROWS.items():
        text = (ROOT / name).read_text("utf-8")
        head, rows = r"<!-- lessons -->\n\n[^\n]*\n\|[-|]+\|\n", "\n".join(map(row, lessons))
        text = between(text, head, rows, "<!-- /lessons -->")
        texts[name] = between(text, "<!-- sentence -->\n\n", answer, "<!-- /sentence -->")
    return texts


def stale() -> dict[str, str]:
    """Return those of them that are otherwise."""
    return {name: text for name, text in wanted().items() if text != (ROOT / name).read_text("utf-8")}


def main() -> None:
    for name, text in stale().items():
        (ROOT / name).write_text(text, "utf-8")
        print(name)


if __name__ == "__main__":
    main()
