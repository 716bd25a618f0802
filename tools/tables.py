"""``python -m tools.tables``: write anew what the documents repeat of the course. ``make render`` does, too.

The table of `moe_lessons.course.lessons` stands between `<!-- lessons -->` and `<!-- /lessons -->`, the answer in one
sentence and when it holds between `<!-- sentence -->` and `<!-- /sentence -->`. In documents and in lessons, with what
they have stored, the address of the repository becomes that of pyproject.toml.
"""

import re
import textwrap
from pathlib import Path

from moe_lessons.course.interview import CONDITIONS, SENTENCE
from moe_lessons.course.lessons import LESSONS, Lesson

ROOT = Path(__file__).resolve().parents[1]
HAVE_ADDRESS = "*.md", "*.cff", "docs/*.md", "notebooks/*.ipynb", "notebooks/*.md", "notebooks/LICENSE"
# Where an address is ours, whatever it is: in the badge of each lesson and in CITATION.cff.
OURS = re.compile(r"(?:Open in Colab\S+google\.com/github/|repository-code: https://github\.com/)([\w.-]+/[\w.-]+)")


def readme_row(lesson: Lesson) -> str:
    return f"| {lesson.number} | [{lesson.title}](notebooks/{lesson.file}) | {lesson.goal} |"


def instructors_row(lesson: Lesson) -> str:
    link = f"[{lesson.title}](../notebooks/{lesson.file})"
    return f"| {lesson.number} | {link} | {lesson.minutes} | {lesson.goal} |"


ROWS = {"README.md": readme_row, "docs/instructors.md": instructors_row}


def with_table(name: str, text: str) -> str:
    """Return the text of a document, its rows of lessons and the sentence as the course has them; all else stays."""
    if name not in ROWS:
        return text
    rows = "\n".join(map(ROWS[name], LESSONS))
    table = re.compile(r"(<!-- lessons -->\n\n[^\n]*\n\|[-|]+\|\n).*?(\n\n<!-- /lessons -->)", re.S)
    text = table.sub(lambda found: found[1] + rows + found[2], text)
    answer = "\n\n".join(textwrap.fill(part, 120) for part in (f"**{SENTENCE}**", CONDITIONS))
    return re.sub(r"(?<=<!-- sentence -->\n\n).*?(?=\n\n<!-- /sentence -->)", lambda _: answer, text, flags=re.S)


def repository() -> str:
    """Return OWNER/NAME of the repository of the course. Ends the program where it is not on GitHub."""
    (address,) = re.findall(r'^Homepage = "(.*)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    if not (found := re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)(?<!\.git)", address)):
        raise SystemExit(f"Homepage in pyproject.toml must be https://github.com/OWNER/NAME, got {address}.")
    return found[1]


def stale() -> dict[str, str]:
    """Return what the documents and lessons should be that are not as the course and pyproject.toml have it."""
    paths = {path.relative_to(ROOT).as_posix(): path for pattern in HAVE_ADDRESS for path in ROOT.glob(pattern)}
    texts = {name: path.read_text("utf-8") for name, path in paths.items()}
    names = {re.escape(name) for text in texts.values() for name in OURS.findall(text)}
    old = re.compile(rf"((?:github\.com|/github|/gh)/)(?:{'|'.join(names)})(?![\w-])")
    wanted = {name: with_table(name, old.sub(rf"\g<1>{repository()}", text)) for name, text in texts.items()}
    return {name: text for name, text in wanted.items() if text != texts[name]}


def main() -> None:
    for name, text in stale().items():
        (ROOT / name).write_text(text, "utf-8")
        print(name)


if __name__ == "__main__":
    main()
