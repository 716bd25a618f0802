"""Lesson 12: the answer of the course with the learner's own figures, and the questions that an engineer would ask."""

import html
import re

import ipywidgets as W

from moe_lessons.course import progress
from moe_lessons.course.lessons import LESSONS
from moe_lessons.course.question import HERE, Keeper, Sheet, as_words
from moe_lessons.support.data import repository
from moe_lessons.support.errors import check_choice, is_number
from moe_lessons.support.show import Markdown, read_parts, split_points

SOURCE = re.compile(r"\s*\[(\d\d\w?)(?:: ([\w-]+))?\]")  # [05: claim] or [05]
FIGURE = re.compile(r"\{([\w.]+)\}")
ANSWERS, QUESTIONS = (dict(read_parts(HERE / name)) for name in ("answer.md", "interview.md"))
SENTENCES = dict(re.findall(r"^- (\S+): (.+)$", (HERE / "figures.md").read_text("utf-8"), re.MULTILINE))
NO_FIGURES = "You have measured no figure yet: the lessons keep them here while you run them."
# The answer of the course in one sentence, and when it holds: the same words wherever they stand.
SENTENCE, CONDITIONS = (
    " ".join(SOURCE.sub("", part).replace("**", "").split()) for part in ANSWERS["one sentence"].split("\n\n")[:2]
)


def sources(text: str) -> str:
    """Turn each [05: claim] in the text into links: to the lesson and to the file with the test of the claim."""
    files = {lesson.number: lesson.file for lesson in LESSONS}
    tests = f"{repository()}/blob/main/tests/claims/test_lesson_"

    def link(found: re.Match) -> str:
        lesson, claim = found.groups()
        test = f' [test]({tests}{lesson[:2]}.py "{claim}")' if claim else ""
        return f" <sup>[{lesson}]({files[lesson]}){test}</sup>"

    return SOURCE.sub(link, text)


def lacking(*keys: str) -> list[str]:
    """Return those of these figures that the learner has not measured yet."""
    found = measured()
    return [key for key in keys if key not in found]


def measured() -> dict[str, dict]:
    """Read what the progress has of each figure; but for those that are no numbers, as in a file edited by hand."""
    return {key: entry for key, entry in progress.read()["figures"].items() if is_number(entry.get("value"))}


def figures() -> Markdown:
    """Say each figure that the learner has measured in a sentence, as a table that a notebook shows."""
    rows = ["| lesson | what you measured |", "|---|---|"]
    for key, figure in sorted(measured().items()):
        sentence = SENTENCES.get(key) or f"{as_words(figure.get('what', key))}: {{}}"
        rows.append(f"| {as_words(key.split('.')[0])} | {sentence.replace('{}', f'**{figure_sentence(figure)}**')} |")
    return Markdown("\n".join(rows) if rows[2:] else NO_FIGURES)


class Answer(Markdown):
    """The answer at one of three lengths, with the learner's figures. Raises ValueError where one is missing.

    length: 'one sentence', 'one minute' or 'five minutes'."""

    def __new__(cls, length: str):
        text = ANSWERS[check_choice("length", length, ANSWERS)]
        found = measured()
        if missing := lacking(*FIGURE.findall(text)):
            raise ValueError(f"the answer needs figures that are not measured yet, got none for {', '.join(missing)}")
        return super().__new__(cls, sources(FIGURE.sub(lambda key: figure_sentence(found[key[1]]), text)))


def figure_sentence(figure: dict) -> str:
    """Write a figure with its unit, unless the sentence has it.

    >>> figure_sentence({"value": 79.64, "unit": "%"}), figure_sentence({"value": 1.6345, "unit": "times"})
    ('80 %', '1.6')
    """
    value, unit = figure["value"], figure.get("unit", "")
    number = f"{value:,.1f}" if abs(value) < 20 or unit == "billion" else f"{value:,.0f}"
    number = f"{value:.2g}" if abs(value) < 1 else number.removesuffix(".0")
    return number if unit in ("", "times", "experts") else f"{number} {as_words(unit)}"


class Interview(Sheet):
    """Asks: you write your answer, then ours stands beside it, point by point, and you tick what you said. Below stands
    what is asked next, each with its answer folded. Each letter and each tick is kept in the learner's progress."""

    def __init__(self):
        parts = {key: re.split(r"^\+ ", text, flags=re.MULTILINE) for key, text in QUESTIONS.items()}
        self.questions = {key: split_points(first) for key, (first, *_) in parts.items()}
        self.next_questions = {key: [" ".join(text.split()) for text in later] for key, (_, *later) in parts.items()}
        self.place, self.title = 0, W.HTML()
        hint = "Your answer, in two or three sentences. Where you do not know, a ? will do."
        self.answer = W.Textarea(placeholder=hint, layout=W.Layout(width="100%", height="9em"))
        self.show = W.Button(description="Show our answer", button_style="primary")
        self.back, self.next = W.Button(description="Back"), W.Button(description="Next question")
        self.ours = W.VBox(layout=W.Layout(flex="1 1 300px", padding="0 0 0 12px"))
        self.ticks, self.note = [], W.HTML()
        buttons = W.HBox([self.show, self.back, self.next])
        left = W.VBox([self.answer, buttons, self.note], layout=W.Layout(flex="1 1 300px"))
        parts = W.HBox([left, self.ours], layout=W.Layout(flex_flow="row wrap"))
        super().__init__([self.title, parts, Keeper()])
        self.add_class("moe-view").add_class("moe-interview")
        self.answer.observe(lambda _: self._keep(), "value")
        self.show.on_click(lambda _: self._reveal())
        self.back.on_click(lambda _: self.go(self.place - 1))
        self.next.on_click(lambda _: self.go(self.place + 1))
        self.go(0)

    @property
    def key(self) -> str:
        return list(self.questions)[self.place]

    def go(self, place: int) -> None:
        self.place = max(0, min(place, len(self.questions) - 1))
        question, _ = self.questions[self.key]
        kept = self.entry()
        self.ours.children, self.ticks = (), []
        self.answer.value = str(kept.get("answer", ""))
        self._keep()
        self.answer.tooltip = f"Your answer to: {question}"
        self.back.disabled, self.next.disabled = self.place == 0, self.place == len(self.questions) - 1
        if "said" in kept:
            self._reveal(kept["said"])
        number = f"Question {self.place + 1} of {len(self.questions)}."
        self.title.value = f"<h4 style='margin: 0'>{number} {question}</h4>"  # last: by then all stands

    def entry(self) -> dict:
        return progress.read()["quiz"].get(f"12.{self.key}", {})

    def _reveal(self, said: list[bool] = ()) -> None:
        _, points = self.questions[self.key]
        self.ticks = []
        for point, one in zip(points, [*said, *[False] * len(points)]):
            words, layout = SOURCE.sub("", point), W.Layout(width="auto")
            tick = W.Checkbox(value=bool(one), description=words, indent=False, layout=layout).add_class("moe-point")
            tick.observe(lambda _: self._keep(), "value")
            self.ticks.append(tick)
        where = W.Output()
        links = (sources("".join(found.group() for found in SOURCE.finditer(point))).strip()[5:-6] for point in points)
        asked = f"**And then?**\n\n{self._asked_next(self.key)}"
        where.append_display_data(Markdown(f"Lesson and test: {'; '.join(links)}\n\n{asked}"))
        self.ours.children = [W.HTML("<b>Ours.</b> Tick what you said."), *self.ticks, where]
        self._keep()

    def _asked_next(self, key: str) -> str:
        pairs = (text.split("? ", 1) for text in self.next_questions[key])
        return "\n\n".join(
            f"<details><summary>{question}?</summary>\n\n{sources(answer)}\n\n</details>" for question, answer in pairs
        )

    def _keep(self) -> None:
        self.show.disabled = not self.answer.value.strip()
        now = {"answer": self.answer.value} | ({"said": [tick.value for tick in self.ticks]} if self.ticks else {})
        kept = self.entry()
        if any(value != kept.get(name, "") for name, value in now.items()):
            trouble = progress.record("quiz", f"12.{self.key}", **now)
            self.note.value = f'<div class="moe-words" role="status">{html.escape(trouble)}</div>' if trouble else ""

    def still(self) -> str:
        parts = []
        for key, (question, points) in self.questions.items():
            ours = "\n".join(f"- {sources(point)}" for point in points)
            ours = f"<details><summary>Our answer</summary>\n\n{ours}\n\n</details>"
            parts.append(f"**{question}**\n\n{ours}\n\n*And then?*\n\n{self._asked_next(key)}")
        return "\n\n".join(parts)
