"""The course page: what is done, what is next, and the figures that the learner has measured."""

import html
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets as W

from moe_lessons import exercises
from moe_lessons.course.interview import figures
from moe_lessons.course.lessons import LESSONS, Lesson
from moe_lessons.course.question import Sheet
from moe_lessons.course.quiz import QUIZZES, read_quiz
from moe_lessons.support import progress
from moe_lessons.support.keeper import Keeper
from moe_lessons.support.static import static_mode

STATIC = """*On a static page, as here, you see the table of somebody who has not begun. Run this notebook, and it is
yours: what you have done, what is next, the figures that you have measured, and buttons to export all that or to forget
it.*"""
STARS = "☆ is an open exercise, ★ one that you have solved. One star is the easiest kind, three are the hardest."


class Standing(NamedTuple):  # how far the learner is in a lesson
    lesson: Lesson
    predictions: int
    answers: list[dict]  # to each question of the quiz, as the progress has it
    solved: list[tuple[int, bool]]  # of each exercise its stars, and whether it is solved

    @property
    def left(self) -> tuple[int, int]:  # questions and exercises
        return sum("last" not in answer for answer in self.answers), sum(not solved for _, solved in self.solved)

    @property
    def is_done(self) -> bool:
        return self.left == (0, 0)

    @property
    def is_begun(self) -> bool:
        return self.predictions > 0 or self.left != (len(self.answers), len(self.solved))


def standings() -> list[Standing]:
    kept = progress.read()
    found = []
    made = [key.split(".")[0] for key, entry in kept["predictions"].items() if entry.get("answer") is not None]
    for lesson in LESSONS:
        number = lesson.number
        in_lesson = [exercise for exercise in exercises.EXERCISES if exercise.lesson == number]
        answers = [kept["quiz"].get(f"{number}.{item.name}", {}) for item in read_quiz(QUIZZES[number])]
        solved = [(e.stars, kept["exercises"].get(e.key, {}).get("status") == "right") for e in in_lesson]
        found.append(Standing(lesson, made.count(number), answers, solved))
    return found


def _row(standing: Standing) -> str:
    lesson, predictions, answers, solved = standing
    questions_left, exercises_left = standing.left
    state = "✔ done" if standing.is_done else "begun" if standing.is_begun else "open"
    quiz = f"{len(answers) - questions_left} of {len(answers)}"
    right_first = sum(answer.get("right_first") is True for answer in answers)
    quiz += f", {right_first} right at first" if questions_left < len(answers) else ""
    stars = " ".join(("★" if is_solved else "☆") * number for number, is_solved in solved)
    solved = f"{len(solved) - exercises_left} of {len(solved)} {stars}" if solved else "–"
    asked = f"{predictions} of {lesson.predictions}" if lesson.predictions else "–"
    cells = lesson.link, f"{lesson.minutes} min", asked, quiz, solved, state
    return f"| {' | '.join(cells)} |"


def _next(found: list[Standing]) -> str:
    left = next((standing for standing in found if not standing.is_done), None)
    if left is None:
        return "**You have done it all.**"
    parts = [f"{n} {what}" for n, what in zip(left.left, ("questions of the quiz", "exercises")) if n]
    after = f"Open there: {' and '.join(parts)}" if left.is_begun else f"Afterwards you can say {left.lesson.goal}"
    return f"**Next: {left.lesson.link}.** {after}."


def page() -> str:
    found = standings()
    done = f"{sum(standing.is_done for standing in found)} of {len(found)} lessons done."
    head = "| lesson | time | predictions | quiz | exercises | state |\n|---|---|---|---|---|---|"
    lessons = "\n".join([head, *map(_row, found)])
    return "\n\n".join([f"{_next(found)} {done}", lessons, STARS, "**Your own figures**", figures()])


class CoursePage(Sheet):
    """A page of what is done and what is next, with buttons to export the progress and to forget it."""

    def __init__(self):
        self.table, self.said = W.Output(), W.HTML()
        sure = "Forget all predictions, answers, solved exercises and figures?"
        self.ask = self._button(
            "Start over …", "Forget all answers; you are asked first", lambda: self._say(sure, True)
        )
        self.yes = self._button("Yes, forget everything", "A dated copy is kept", self._reset, "warning")
        self.no = self._button("No, keep it", "Nothing is changed", lambda: self._say(""))
        bar = [self._button("Refresh", "Read again what is kept", self.show)]
        bar += [self._button("Export", "Write your progress to a file here", self._export), self.ask, self.yes, self.no]
        super().__init__([self.table, W.HBox(bar).add_class("moe-bar"), self.said, Keeper()])
        self.add_class("moe-view")
        self._say(f"All this is kept in {progress.file()}." if progress.file() else "Nothing is kept: progress is off.")
        self.show()

    def _button(self, description: str, tooltip: str, do: Any, style: str = "") -> W.Button:
        button = W.Button(description=description, tooltip=tooltip, button_style=style)
        button.on_click(lambda _: do())
        return button

    def show(self) -> None:
        data = {"text/markdown": page(), "text/plain": repr(self)}
        self.table.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)

    def _say(self, words: str, asks: bool = False) -> None:
        self.said.value = f'<div class="moe-words" role="status">{html.escape(words)}</div>'
        self.ask.layout.display = "none" if asks else ""
        self.yes.layout.display = self.no.layout.display = "" if asks else "none"

    def _export(self) -> None:
        try:
            path = progress.export(Path(f"moe_lessons-progress-{datetime.now():%Y-%m-%dT%H-%M-%S}.json"))
            self._say(f"Your progress is in {path}.")
        except OSError as error:
            self._say(f"Nothing was exported: {error}.")

    def _reset(self) -> None:
        try:
            copy = progress.reset()
            self.show()
            self._say(f"Everything is forgotten. A copy is in {copy}." if copy else "Everything is forgotten.")
        except OSError as error:
            self._say(f"Nothing was forgotten: {error}.")

    def still(self) -> str:
        return f"{STATIC}\n\n{page()}" if static_mode() else page()
