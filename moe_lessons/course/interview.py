"""Lesson 12: the answer of the course with the learner's own figures, and the questions that an engineer would ask."""

import html
import re
from typing import NamedTuple

import ipywidgets as W

from moe_lessons.course.lessons import LESSONS
from moe_lessons.course.question import HERE, Sheet, as_words
from moe_lessons.support import progress
from moe_lessons.support.errors import check_choice, is_number
from moe_lessons.support.keeper import Keeper
from moe_lessons.support.show import Markdown, read_parts, split_points

SOURCE = re.compile(r"\s*\[(\d\d\w?)(?:: ([\w-]+))?\]")  # [07: claim] or [07]
FIGURE = re.compile(r"\{([\w.]+)\}")
ANSWERS, QUESTIONS = (dict(read_parts(HERE / name)) for name in ("answer.md", "interview.md"))
SENTENCES = dict(re.findall(r"^- (\S+): (.+)$", (HERE / "figures.md").read_text("utf-8"), re.MULTILINE))
NO_FIGURES = "You have measured no figure yet: the lessons keep them here while you run them."
BUSY = "*(measured on a busy machine)*"
AGAIN = f"In lesson 12 `measure_missing(busy_too=True)` measures again what was {BUSY[2:-2]}."
# The answer of the course as one says it, what follows from it, and when it holds: the same words wherever they stand.
SHORT, SENTENCE, CONDITIONS = (
    " ".join(SOURCE.sub("", part).replace("**", "").split())
    for part in (ANSWERS["ten seconds"], *ANSWERS["one sentence"].split("\n\n")[:2])
)
SENTENCE = SENTENCE.partition(". ")[2]  # what stands before says the same as the short answer


def link_to(lesson: str, claim: str | None) -> str:
    """Link a lesson, with the name of the claim, where one is given, under the pointer."""
    (file,) = (entry.file for entry in LESSONS if entry.number == lesson)
    return f'[{lesson}]({file} "{claim}")' if claim else f"[{lesson}]({file})"


def sources(text: str) -> str:
    """Turn each [07: claim] in the text into links."""
    return SOURCE.sub(lambda found: f" <sup>{link_to(*found.groups())}</sup>", text)


def lacking(*keys: str) -> list[str]:
    """Return those of these figures that the learner has not measured yet."""
    found = measured()
    return [key for key in keys if key not in found]


def measured() -> dict[str, dict]:
    """Read what the progress has of each figure; but for those that are no numbers, as in a file edited by hand."""
    return {key: entry for key, entry in progress.read()["figures"].items() if is_number(entry.get("value"))}


def busy_ones(*keys: str) -> list[str]:
    """Return those of these figures that were measured while other programs were busy."""
    found = measured()
    return [key for key in keys if key in found and found[key].get("is_busy")]


def figures() -> Markdown:
    """Say each figure that the learner has measured in a sentence, as a table that a notebook shows. Beside one that
    was measured on a busy machine it says so, and below how it is measured again."""
    rows = ["| lesson | what you measured |", "|---|---|"]
    found = measured()
    busy = busy_ones(*SENTENCES)
    for key in filter(found.__contains__, SENTENCES):  # in the order of the sentences, which speak of those before
        sentence = SENTENCES[key].format(f"**{figure_sentence(found[key])}**")
        rows.append(f"| {key.split('.')[0]} | {sentence}{f' {BUSY}' * (key in busy)} |")
    if not rows[2:]:
        return Markdown(NO_FIGURES)
    return Markdown("\n".join([*rows, "", AGAIN] if busy else rows))


class Answer(Markdown):
    """The answer at one of three lengths, with the learner's figures, folded until they have said theirs.

    Raises ValueError where a figure is missing.

    length: 'ten seconds', 'one sentence' or 'one minute'."""

    def __new__(cls, length: str):
        text = ANSWERS[check_choice("length", length, ANSWERS)]
        found = measured()
        if missing := lacking(*(keys := FIGURE.findall(text))):
            raise ValueError(f"the answer needs figures that are not measured yet, got none for {', '.join(missing)}")
        said = sources(FIGURE.sub(lambda key: figure_sentence(found[key[1]]), text))
        lessons = sorted({key.split(".")[0] for key in busy_ones(*keys)})
        said += "".join(f"\n\nThe figure of lesson {lesson}: {BUSY}." for lesson in lessons)
        return super().__new__(cls, f"<details><summary>Our answer: {length}</summary>\n\n{said}\n\n</details>")


def figure_sentence(figure: dict) -> str:
    """Write a figure with its unit, unless the sentence has it.

    >>> [figure_sentence({"value": value, "unit": "%"}) for value in (79.64, 1.6345, 12345.6, 1e308)]
    ['80 %', '1.6 %', '12,346 %', '1e+308 %']
    """
    value, unit = figure["value"], figure.get("unit", "")
    places = 1 if abs(value) < 20 or unit == "billion" else 0
    number = f"{value:.2g}" if abs(value) < 1 else f"{round(value, places):,.12g}"
    return number if unit in ("", "times", "experts") else f"{number} {as_words(unit)}"


class Asked(NamedTuple):
    key: str
    question: str
    points: list[str]  # of a good answer
    later: str  # questions that are asked next, each with its answer folded


def read_question(key: str, text: str) -> Asked:
    first, *later = re.split(r"^\+ ", text, flags=re.MULTILINE)
    pairs = (" ".join(part.split()).split("? ", 1) for part in later)
    folded = (f"<details><summary>{ask}?</summary>\n\n{sources(answer)}\n\n</details>" for ask, answer in pairs)
    return Asked(key, *split_points(first), "\n\n".join(folded))


class Interview(Sheet):
    """The questions: you write your answer, then ours stands beside it, point by point, and you tick what you said.
    Below stands what is asked next, each with its answer folded. Each letter and each tick is kept
    in the learner's progress."""

    def __init__(self):
        self.questions = [read_question(*part) for part in QUESTIONS.items()]
        self.place = 0
        self.ticks = []
        self.title, self.note = W.HTML(), W.HTML()
        hint = "Your answer, in two or three sentences. Where you do not know, a ? will do."
        self.answer = W.Textarea(placeholder=hint, layout={"width": "auto", "height": "9em"})
        self.show = W.Button(description="Show our answer")
        self.back, self.next = W.Button(description="Back"), W.Button(description="Next question")
        self.ours = W.VBox(layout={"flex": "1 1 300px", "padding": "0 0 0 12px"})
        left = [self.answer, W.HBox([self.show, self.back, self.next]), self.note]
        parts = [W.VBox(left, layout={"flex": "1 1 300px"}), self.ours]
        super().__init__([self.title, W.HBox(parts, layout={"flex_flow": "row wrap"}), Keeper()])
        self.add_class("moe-view").add_class("moe-interview")
        self.answer.observe(lambda _: self._keep(), "value")
        self.show.on_click(lambda _: self.ticks or self._reveal())
        self.back.on_click(lambda _: self.go(self.place - 1))
        self.next.on_click(lambda _: self.go(self.place + 1))
        self.go(0)

    def go(self, place: int) -> None:
        now = self.questions[place]
        self.place = place
        kept = progress.read()["quiz"].get(f"12.{now.key}", {})
        self.ours.children = ()
        self.ticks = []
        self.answer.value = str(kept.get("answer", ""))
        self.answer.tooltip = f"Your answer to: {now.question}"
        self._keep()
        self.back.disabled, self.next.disabled = place == 0, place == len(self.questions) - 1
        if isinstance(kept.get("said"), list):  # else it is none of ours: the file may be edited by hand
            self._reveal(kept["said"])
        number = f"Question {place + 1} of {len(self.questions)}."
        self.title.value = f"<h4 style='margin: 0'>{number} {now.question}</h4>"  # last: by then all stands

    def _reveal(self, said: list[bool] = ()) -> None:
        now = self.questions[self.place]
        self.ticks = []
        for point, is_said in zip(now.points, [*said, *[False] * len(now.points)]):
            words = SOURCE.sub("", point)
            tick = W.Checkbox(value=bool(is_said), description=words, indent=False, layout={"width": "auto"})
            tick.add_class("moe-point").observe(lambda _: self._keep(), "value")
            self.ticks.append(tick)
        lessons = dict.fromkeys(lesson for point in now.points for lesson, _ in SOURCE.findall(point))
        links = "; ".join(link_to(lesson, None) for lesson in lessons)
        where = W.Output()
        where.append_display_data(Markdown(f"Lessons: {links}\n\n**And then?**\n\n{now.later}"))
        self.ours.children = [W.HTML("<b>Ours.</b> Tick what you said."), *self.ticks, where]
        self._keep()

    def _keep(self) -> None:
        self.show.disabled = not self.answer.value.strip()
        self.show.button_style, self.next.button_style = ("", "primary") if self.ticks else ("primary", "")
        key = f"12.{self.questions[self.place].key}"
        now = {"answer": self.answer.value}
        now |= {"said": [tick.value for tick in self.ticks]} if self.ticks else {}
        kept = {"answer": ""} | progress.read()["quiz"].get(key, {})
        if {**kept, **now} != kept:
            trouble = progress.record("quiz", key, **now)
            self.note.value = f'<div class="moe-words" role="status">{html.escape(trouble)}</div>' if trouble else ""

    def still(self) -> str:
        parts = []
        for one in self.questions:
            ours = "\n".join(f"- {sources(point)}" for point in one.points)
            folded = f"<details><summary>Our answer</summary>\n\n{ours}\n\n</details>"
            parts.append(f"**{one.question}**\n\n{folded}\n\n*And then?*\n\n{one.later}")
        return "\n\n".join(parts)
