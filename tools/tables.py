"""``python -m tools.tables``: write anew what is said of the lessons elsewhere. ``make render`` does, too.
``python -m tools.tables --address URL``: and how to get the course from there, at the tag of this version; ``--address
none``: from nowhere, as long as the course has no address of its own.

`moe_lessons/course/lessons.csv` has of each lesson what the lesson says of itself; its goal, once there, is edited
there. From the table come the rows between `<!-- lessons -->` and `<!-- /lessons -->` of the documents, from
`moe_lessons/course/answer.md` the sentence of the course between `<!-- sentence -->` and `<!-- /sentence -->`. The
address stands in pyproject.toml alone; from it come badges, the cells that install the course on Colab, what README.md
has between `<!-- get -->` and `<!-- /get -->`, and the lines of the citation.
"""

import argparse
import csv
import io
import json
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

from moe_lessons import __version__
from moe_lessons.course.interview import CONDITIONS, SENTENCE, SHORT
from moe_lessons.course.lessons import LESSONS, Lesson

ROOT = Path(__file__).resolve().parents[1]
TABLE, PROJECT = "moe_lessons/course/lessons.csv", "pyproject.toml"
HOST, TAG = "https://github.com/", f"v{__version__}"
ON_COLAB = {"jupyterlab", "ipykernel", "ipywidgets", "numpy", "psutil"}  # or these come along
BADGES = """\
[![Open in Colab](badges/colab.svg)](https://colab.research.google.com/github/{owner}/blob/{tag}/notebooks/{file})
[![Open in Binder](badges/binder.svg)](https://mybinder.org/v2/gh/{owner}/{tag}?urlpath=doc%2Ftree%2Fnotebooks%2F{file})

"""
INSTALL = """\
from importlib.util import find_spec

if not find_spec("moe_lessons"):  # as on Colab; elsewhere this cell installs nothing
    %pip install -q {needed}
    %pip install -q --no-deps git+{address}@{tag}
"""
GET = """\
No such folder yet? Get it, and go into it:

```
git clone --branch {tag} {address} moe_lessons && cd moe_lessons
```

Or install the lessons alone, without the folder (the small build of PyTorch: add `--extra-index-url …` as above):

```
pip install git+{address}@{tag}
python -m moe_lessons lab
```

The lessons come with the package: the first start copies them to `moe_lessons_course` in the folder you are in
(`lab FOLDER`: to another one). What is there is never overwritten. To begin a lesson afresh, or to have the newer one
of a newer package, delete it: the next start brings it. On Colab, the first cell of each lesson installs the course."""
README_BADGES = """\
[![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/{owner}/{tag}?urlpath=doc%2Ftree%2Fnotebooks%2F00_welcome.ipynb)
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/{owner}/blob/{tag}/notebooks/00_welcome.ipynb)
[![test]({address}/actions/workflows/test.yml/badge.svg)]({address}/actions/workflows/test.yml)"""  # noqa: E501
LINES = {  # of other files: what stands before the line, and the line
    "CITATION.cff": ("  - name: The moe_lessons contributors\n", "repository-code: {address}\n"),
    "notebooks/LICENSE": ("Credit as: moe_lessons, The moe_lessons contributors", ",\n{address}"),
}


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


def with_address(text: str, address: str) -> str:
    """Put an address into the text of pyproject.toml, or take it out where it is empty. SystemExit for what is none."""
    if address and not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address):
        raise SystemExit(f"--address must be https://github.com/OWNER/NAME or none, got {address}")
    text = re.sub(r'\[project\.urls\]\nHomepage = ".*"\n\n', "", text)
    urls = f'[project.urls]\nHomepage = "{address}"\n\n' if address else ""
    return text.replace("[tool.hatch.build.targets.wheel]\n", f"{urls}[tool.hatch.build.targets.wheel]\n", 1)


def addressed() -> dict[str, str]:
    """Return what has the address of pyproject.toml where it has one, and else has none."""
    project = tomllib.loads((ROOT / PROJECT).read_text("utf-8"))["project"]
    address = project.get("urls", {}).get("Homepage", "")
    needed = [need for need in project["dependencies"] if Requirement(need).name not in ON_COLAB]
    said = {"address": address, "owner": address.removeprefix(HOST), "tag": TAG, "needed": " ".join(map(repr, needed))}

    def put(text: str, start: str, old: str, new: str, **more: str) -> str:
        """Put new behind start, where old may be; both are patterns."""
        new = new.format(**said, **more) if address else ""
        return re.sub(rf"\A({start})(?:{old})?", lambda found: found[1] + new, text, flags=re.S)

    texts = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        book = json.loads(path.read_text("utf-8"))
        first, code = book["cells"][0], next(cell for cell in book["cells"] if cell["cell_type"] == "code")
        title, badges = r"# [^\n]*\n\n", r"(?:\[!\[Open in [^\n]*\n)+\n"
        installing = r"from importlib\.util [^\n]*\n\nif [^\n]*\n(?:    %pip [^\n]*\n)+"
        source = put("".join(first["source"]), title, badges, BADGES, file=path.name)
        first["source"] = source.splitlines(keepends=True)
        code["source"] = put("".join(code["source"]), "", installing, INSTALL).splitlines(keepends=True)
        texts[f"notebooks/{path.name}"] = json.dumps(book, indent=1, ensure_ascii=False) + "\n"
    for name, (before, line) in LINES.items():
        old = re.escape(line).replace(re.escape("{address}"), "[^\n]*")
        texts[name] = put((ROOT / name).read_text("utf-8"), f".*{re.escape(before)}", old, line)
    fragments = {"badges": README_BADGES, "get": GET}
    text = (ROOT / "README.md").read_text("utf-8")
    for name, fragment in fragments.items():
        text = between(text, f"<!-- {name} -->\n\n", put("", "", "", fragment), f"<!-- /{name} -->")
    return texts | {"README.md": text}


def wanted() -> dict[str, str]:
    """Return what the table and the documents should be."""
    lessons = [read_lesson(path) for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([Lesson._fields, *lessons])
    texts = addressed() | {TABLE: table.getvalue()}
    answer = "\n\n".join(textwrap.fill(part, 120) for part in (f"**{SHORT}** {SENTENCE}", CONDITIONS))
    for name, row in ROWS.items():
        text = texts.get(name) or (ROOT / name).read_text("utf-8")
        head, rows = r"<!-- lessons -->\n\n[^\n]*\n\|[-|]+\|\n", "\n".join(map(row, lessons))
        text = between(text, head, rows, "<!-- /lessons -->")
        texts[name] = between(text, "<!-- sentence -->\n\n", answer, "<!-- /sentence -->")
    return texts


def stale() -> dict[str, str]:
    """Return those of them that are otherwise."""
    return {name: text for name, text in wanted().items() if text != (ROOT / name).read_text("utf-8")}


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser("python -m tools.tables", description=addressed.__doc__)
    parser.add_argument("--address", metavar="URL", help=f"{HOST}OWNER/NAME, or none")
    address = parser.parse_args(argv).address
    if address:
        text = with_address((ROOT / PROJECT).read_text("utf-8"), "" if address == "none" else address.rstrip("/"))
        (ROOT / PROJECT).write_text(text, "utf-8")
    for name, text in stale().items():
        (ROOT / name).write_text(text, "utf-8")
        print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
