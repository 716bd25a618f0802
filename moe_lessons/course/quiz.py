"""The questions at the end of a lesson, read from quizzes/NN.md; each answer is explained at once.

A file has 3 to 5 questions such as this, each option with what is right or wrong about it:

    ## survivors
    Which experts are left after a collapse?

    - [ ] Those with the largest territories — Two of the three that die began above the even share.
    - [x] Those that the router liked early — Yes: what is chosen more is scored higher.
"""

import re
from pathlib import Path
from typing import NamedTuple

import ipywidgets as W

from moe_lessons.course.question import HERE, Question, Sheet
from moe_lessons.support import progress
from moe_lessons.support.errors import check_choice
from moe_lessons.support.show import read_parts, split_points

QUIZZES = {path.stem: path for path in sorted((HERE / "quizzes").glob("*.md"))}  # lesson -> file


class Option(NamedTuple):
    text: str
    why: str  # it is right, or what is wrong with it
    is_right: bool


class Item(NamedTuple):
    name: str  # in the learner's progress
    question: str
    options: list[Option]


def read_quiz(path: Path) -> list[Item]:
    """Read the questions of a file. Raises ValueError, with the name of the question, where one is malformed."""
    return [read_item(path.name, *part) for part in read_parts(path)]


def read_item(file: str, name: str, text: str) -> Item:
    question, points = split_points(text)
    found = [re.fullmatch(r"\[([ x])\] (.+?) — (.+)", point) for point in points]
    options = [Option(option[2], option[3], option[1] == "x") for option in found if option]
    if not (question and all(found) and sum(option.is_right for option in options) == 1):
        raise ValueError(
            f"{file}, {name}: a question has a text, options '- [ ] text — what is wrong', and one "
            f"'- [x] text — why it is right', got {text!r}"
        )
    return Item(name, question, options)


class QuizQuestion(Question):  # its first answer and its last one are kept
    section, kept_as = "quiz", "last"

    def __init__(self, item: Item, number: int, lesson: str):
        choices = [list(option) for option in item.options]
        super().__init__(item.question, f"{lesson}.{item.name}", kind=f"{number}.", choices=choices)

    def keep(self) -> None:
        right = next(text for text, _, is_right in self.choices if is_right)
        first = self.entry().get("first", self.answer)
        scores = {"right_first": first == right, "right": self.answer == right}
        self.note = progress.record(self.section, self.key, first=first, last=self.answer, **scores) or ""

    def solution(self) -> str:
        return "\n".join(f"- {'✔' if is_right else '✘'} {text} — {why}" for text, why, is_right in self.choices)


class Quiz(Sheet):
    """The quiz of a lesson: `Quiz("07")`. It blocks nothing; answers are kept, and may be changed."""

    def __init__(self, lesson: str):
        items = read_quiz(QUIZZES[check_choice("lesson", lesson, QUIZZES)])
        self.lesson, self.score = lesson, W.HTML()
        self.questions = [QuizQuestion(item, n, lesson) for n, item in enumerate(items, 1)]
        super().__init__([*self.questions, self.score])
        for question in self.questions:
            question.remove_class("moe-view")  # one frame around all
            question.observe(lambda change: self.show_score(), "answer")
        self.add_class("moe-view")
        self.show_score()

    def show_score(self) -> None:
        entries = [question.entry() for question in self.questions if question.answer is not None]
        right, first = (sum(bool(entry.get(name)) for entry in entries) for name in ("right", "right_first"))
        words = f"{len(entries)} of {len(self.questions)} answered, {right} right, {first} of them at the first try."
        self.score.value = f'<div class="moe-words" role="status">{words if entries else "Nothing answered yet."}</div>'

    def still(self) -> str:
        asked, answers = zip(*((q.still(), f"**{q.kind}**\n\n{q.solution()}") for q in self.questions))
        return "\n\n".join([*asked, "<details><summary>Answers</summary>", *answers, "</details>"])

    def __repr__(self) -> str:
        return f"Quiz({self.lesson!r})"
