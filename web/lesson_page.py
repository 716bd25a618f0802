"""A stored lesson as a page on which no cell runs: its code folded, its questions and exercises with their answers."""

import re
from html import escape
from typing import Any

from nbformat.v4 import new_markdown_cell

from moe_lessons.course.quiz import QUIZZES, read_quiz
from moe_lessons.exercises import FOUND
from moe_lessons.support.show import show_source

HAPPENED = "What happened"  # so begins what a prediction is compared with
SHOWN = '<details class="moe-happened"><summary>Show what happened</summary>'
CHECK = re.compile(r"(\w+)\.check\(")  # of an exercise
START = re.compile(r'<div class="alert.*?</div>\n\n', re.S)  # how to start in JupyterLab
TAKEN = re.compile(r"^\w+: the solution, until .*\n", re.M)  # what `take` prints
NO_CHECK = "In the notebook the next cell checks your code, and says what differs."


def as_page(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return it with folded code, dark pictures, descriptions of pictures, and answers at questions and exercises."""
    notebook["cells"][0]["source"] = START.sub("", "".join(notebook["cells"][0]["source"]))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        cell["metadata"]["tags"] = [*cell["metadata"].get("tags", []), *fold(cell)]
        cell["metadata"]["mystnb"] = describe(cell)
        cell["outputs"] = [one for output in cell["outputs"] for one in (output, *in_dark(output))]
    answer(notebook["cells"])
    gather(notebook["cells"])
    for cell in cells:
        if check := CHECK.match("".join(cell["source"])):
            data = {"text/markdown": help_with(check[1])}
            cell["outputs"] = [{"output_type": "display_data", "data": data, "metadata": {}}]
    return notebook


def fold(cell: dict[str, Any]) -> list[str]:
    """Give the tags by which myst-nb hides or folds code; in sight is what the reader writes, and what defines."""
    source, kinds = "".join(cell["source"]), [[*output.get("data", "")] for output in cell["outputs"]]
    defines = re.search(r"^(def|class) ", source, re.M)
    if CHECK.match(source) or (kinds == [["text/markdown", "text/plain"]] and not defines):
        return ["remove-input"]  # it asks
    is_exercise = any(tag.startswith("exercise:") for tag in cell["metadata"].get("tags", []))
    return [] if is_exercise or (defines and not kinds) else ["hide-input"]


def describe(cell: dict[str, Any]) -> dict[str, Any]:
    """Give what myst-nb is told of a cell: the words of its pictures."""
    pictures = [output.get("metadata", {}).get("image/png", {}) for output in cell["outputs"]]
    words = " ".join(picture["alt"] for picture in pictures if "alt" in picture)
    return {"image": {"alt": words}} if words else {}


def dark_of(output: dict[str, Any]) -> str | None:
    """Give the dark version of a picture, if it has one, in base64."""
    return output.get("metadata", {}).get("image/png", {}).get("dark")


def in_dark(output: dict[str, Any]) -> list[dict[str, Any]]:
    """Give it as an output of its own."""
    dark = dark_of(output)
    return [{"output_type": "display_data", "data": {"image/png": dark}, "metadata": {}}] if dark else []


def gather(cells: list[dict[str, Any]]) -> None:
    """Put folded code that shows nothing, as imports, before the next that is folded: under one summary."""
    before = ""
    for cell in list(cells):
        if "hide-input" in cell["metadata"].get("tags", []):
            cell["source"] = before + "".join(cell["source"])
            before = "" if cell["outputs"] else cell["source"] + "\n\n"
            if before:
                cells.remove(cell)


def answer(cells: list[dict[str, Any]]) -> None:
    """Put answers at the questions of a lesson, fold what shows them, and leave out what is for cells that run."""
    asked, shown = {}, {}  # the prediction that is not answered yet, and the beginning of what answers it
    for number, cell in enumerate(list(cells)):
        for output in list(cell.get("outputs", [])):
            data = output.get("data", {})
            said = "".join(data.get("text/plain", ""))
            if "Prediction(" in said:
                asked, shown = data, new_markdown_cell(SHOWN)
                cells.insert(cells.index(cell) + 1, shown)
            elif said.startswith(HAPPENED):
                question, *options = "".join(asked["text/markdown"]).split("\n- ")
                asked["text/markdown"] = answered(question, options, said, f"prediction-{number}")
                shown["source"] += "" if options else f"\n\n{said}"
                after = cells.index(cell) + 1
                noticed = "".join(cells[after]["source"]).startswith("**What to notice")
                cells.insert(after + noticed, new_markdown_cell("</details>"))
            elif quiz := re.fullmatch(r"Quiz\('(\d+)'\)", said):
                data["text/markdown"] = answered_quiz(quiz[1])
            if "text" in output:
                output["text"] = TAKEN.sub("", "".join(output["text"])).rstrip()
            if said.startswith(HAPPENED) or output.get("text") == "":
                cell["outputs"].remove(output)


def answered(question: str, options: list[str], happened: str, group: str) -> str:
    """Write a prediction as Markdown: each option opens on what happened; without options it is the question alone."""
    if not options:
        return question.partition("\n\n")[0]
    outcome, *measured = happened.removeprefix(f"{HAPPENED}: ").splitlines()
    right, said = outcome.removesuffix("."), " ".join([outcome, *measured])
    verdicts = (f"✔ That is what happened: {said}" if one == right else f"✘ {HAPPENED}: {said}" for one in options)
    return "\n\n".join([question, *map(folded, options, verdicts, [group] * len(options))])


def answered_quiz(lesson: str) -> str:
    """Write the quiz of a lesson as Markdown: each option opens on what is right or wrong with it."""
    parts = []
    for number, item in enumerate(read_quiz(QUIZZES[lesson]), 1):
        parts.append(f"**{number}.** {item.question}")
        for text, why, is_right in item.options:
            parts.append(folded(text, f"{'✔' if is_right else '✘'} {why}", f"quiz-{number}"))
    return "\n\n".join(parts)


def help_with(name: str) -> str:
    """Write the hints and the solution of an exercise as Markdown."""
    exercise = FOUND[name]
    hints = [folded(f"Hint {number}", hint) for number, hint in enumerate(exercise.hints, 1)]
    return "\n\n".join([NO_CHECK, *hints, folded("Solution", show_source(exercise.answer)._repr_markdown_())])


def folded(summary: str, text: str, group: str = "") -> str:
    """Fold Markdown; of a group one is open at a time."""
    option = f' class="moe-option{" moe-wrong" * text.startswith("✘")}" name="{group}"' if group else ""
    return f"<details{option}><summary>{escape(summary)}</summary>\n\n{text}\n\n</details>"
