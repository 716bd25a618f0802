"""The quiz, the table of lessons, the course page, and the interview, whose statements have their lessons and tests."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from traitlets import TraitError

from moe_lessons.analysis import busy
from moe_lessons.course import Answer, CoursePage, Interview, Quiz, figures, lacking, own_figures, page, progress
from moe_lessons.course.interview import (
    ANSWERS,
    FIGURE,
    QUESTIONS,
    SOURCE,
    figure_sentence,
)
from moe_lessons.course.lessons import LESSONS
from moe_lessons.course.quiz import QUIZZES, read_quiz
from moe_lessons.exercises import EXERCISES
from moe_lessons.nn import LanguageModel, TransformerConfig

pytestmark = pytest.mark.usefixtures("own_progress")
ROOT = Path(__file__).resolve().parents[2]
GOOD = """## first
Which one,
and why?

- [ ] this — No: it is that.
- [x] a - b — Yes — really.
"""


def quiz_of(tmp_path, text: str) -> list:
    (tmp_path / "07.md").write_text(text, "utf-8")
    return read_quiz(tmp_path / "07.md")


def test_a_file_is_read_and_a_malformed_one_refused_with_the_name_of_the_question(tmp_path):
    (item,) = quiz_of(tmp_path, GOOD)
    assert (item.name, item.question) == ("first", "Which one, and why?")
    assert item.options == [("this", "No: it is that.", False), ("a - b", "Yes — really.", True)]
    for old, new in (("- [ ] this — No: it is that.", "- [ ] this"), ("[ ]", "[x]"), ("Which one,\nand why?\n", "")):
        with pytest.raises(ValueError, match=r"07\.md, first"):
            quiz_of(tmp_path, GOOD.replace(old, new))


def test_the_first_and_the_last_answer_are_kept_and_shown_again(new_session):
    quiz = Quiz("07")
    question = quiz.questions[0]
    right = next(text for text, _, is_right in question.choices if is_right)
    wrong, other, *_ = (text for text, _, is_right in question.choices if not is_right)
    for answer in (wrong, right, other, right):
        question.answer = answer
    new_session()
    again = Quiz("07")
    assert again.questions[0].answer == right
    entry = progress.read()["quiz"][question.key]
    assert (entry["first"], entry["last"], entry["right_first"], entry["right"]) == (wrong, right, False, True)
    numbers = [int(number) for number in re.findall(r"\b\d+\b", again.score.value)]
    assert numbers == [1, len(quiz.questions), 1, 0]  # answered, of these, right, at the first try
    with pytest.raises(TraitError):
        question.answer = "something else"


def test_on_a_static_page_answers_are_folded_and_the_course_is_a_table(static):
    shown = [view._repr_mimebundle_() for view in (Quiz("07"), CoursePage(), Interview())]
    assert all(set(data) == {"text/plain", "text/markdown"} for data in shown)
    quiz, course, interview = (data["text/markdown"] for data in shown)
    asked, answers = quiz.split("<details>")
    for item in read_quiz(QUIZZES["07"]):
        assert all(option.text in asked and option.why not in asked for option in item.options)
        assert all(f"{option.text} — {option.why}" in answers for option in item.options)
    assert course.count("ipynb") == len(LESSONS) + 1 and interview.count("<details>") == 3 * len(QUESTIONS) <= 36


def do_everything(number: str) -> None:
    for question in Quiz(number).questions:
        question.answer = question.options[0]
    for exercise in EXERCISES:
        if exercise.lesson == number:
            progress.record("exercises", f"{number}.{exercise.name}", status="right")


def test_it_shows_what_is_done_and_what_is_next(monkeypatch):
    assert "**Next: [00 · Welcome](00_welcome.ipynb)." in page.page()
    do_everything("00")
    progress.record("predictions", "01.share", answer="all")
    progress.record("predictions", "09.share", answer="all")
    progress.record("predictions", "01.cleared", answer=None)
    first, second, *others = page.standings()
    assert first.is_done and not second.is_done and second.predictions == 1
    assert [other.lesson.number for other in others if other.is_begun] == ["09"]
    assert "**Next: [01 · The dense transformer]" in page.page()
    monkeypatch.setenv("MOE_LESSONS_PROGRESS", "off")  # no disk: it is quicker
    for lesson in LESSONS:
        do_everything(lesson.number)
    assert all(standing.is_done for standing in page.standings()) and "Next" not in page.page()


def test_a_solved_exercise_counts_and_the_learners_figures_are_there():
    mine = [exercise for exercise in EXERCISES if exercise.lesson == "08"]
    progress.record("exercises", mine[0].key, last="wrong")
    progress.record("exercises", mine[1].key, status="right", last="wrong")
    (row,) = (line for line in page.page().splitlines() if "08_balancing" in line and line.startswith("|"))
    assert f"1 of {len(mine)} {'☆' * mine[0].stars} {'★' * mine[1].stars}" in row
    progress.record("figures", "05.effective_width", value=2.7183, unit="times")
    progress.record("figures", "01.ffn_parameters", value=10**400)
    progress.record("figures", "00.accuracy_active", value=1, unit="<img src=x>\n\n# Heading | b [c](javascript:d) `e")
    text = page.page()
    assert "**2.7**×" in text and "10000000000" not in text
    row = next(line for line in text.splitlines() if "Its FLOP-matched baseline" in line)
    assert row.count("|") == 3 and not set("<[`#") & set(row.replace("&#", "")) and "Heading" in row


def test_the_view_exports_and_asks_before_it_forgets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    do_everything("00")
    view = CoursePage()
    next(button for button in view.children[1].children if button.description == "Export").click()
    (exported,) = tmp_path.glob("moe_lessons-progress-*.json")
    assert str(exported) in view.said.value and json.loads(exported.read_text())["quiz"]
    view.ask.click()
    assert progress.read()["quiz"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
        view.yes.click()
    assert progress.read()["quiz"]
    view.yes.click()
    assert not progress.read()["quiz"] and f"0 of {len(LESSONS)}" in view.table.outputs[0]["data"]["text/markdown"]


TEXTS = ANSWERS | QUESTIONS
LENGTHS = ("one sentence", "one minute")
FIGURES = sorted({key for text in TEXTS.values() for key in FIGURE.findall(text)})


@pytest.fixture
def measured():
    for place, key in enumerate(FIGURES):
        progress.record("figures", key, value=place + 0.25, unit="%")


def test_each_statement_has_a_source_a_lesson_and_a_claim_that_is_tested_there():
    for text in TEXTS.values():
        for lesson, claim in SOURCE.findall(text):
            (path,) = (ROOT / "notebooks").glob(f"{lesson}_*.ipynb")
            tests = (ROOT / "tests" / "claims" / f"test_lesson_{lesson}.py").read_text("utf-8")
            is_tagged = f'"claim:{claim}"' in path.read_text("utf-8") and f'claim("{claim}")' in tests
            assert not claim or is_tagged, f"{lesson}: {claim}"
    for length in LENGTHS:
        assert all(SOURCE.search(paragraph) for paragraph in TEXTS[length].split("\n\n")), length
    for one in Interview().questions:
        assert "?" in one.question and 2 <= len(one.points) <= 4 and all(map(SOURCE.search, one.points)), one.key
        assert one.later.count("<summary>") == 2 <= one.later.count("<sup>"), one.key


@pytest.mark.parametrize("length", LENGTHS)
def test_the_answer_has_the_learners_own_figures(length, measured):
    answer = Answer(length)
    assert answer.startswith("<details><summary>")  # not on the screen before the learner has said theirs
    needed = FIGURE.findall(TEXTS[length])
    assert needed and not FIGURE.search(answer) and not re.search(r"\[\d\d\w?: ", answer)
    for key in needed:
        assert figure_sentence(progress.read()["figures"][key]) in answer
    files = {lesson.file for lesson in LESSONS}
    assert {file for file in re.findall(r"\]\((\w+\.ipynb)\)", answer)} <= files


def test_the_answer_of_a_minute_is_said_in_one():
    assert len(SOURCE.sub("", ANSWERS["one minute"]).split()) <= 150  # as one speaks


def test_a_missing_figure_and_one_that_is_no_number_is_named(measured):
    rows = figures().splitlines()
    progress.record("figures", "12.over_matched", value="fast")
    assert lacking("12.over_matched") == ["12.over_matched"]
    assert len(FIGURES) + 2 == len(rows) == len(figures().splitlines()) + 1
    with pytest.raises(ValueError, match=r"12\.over_matched"):
        Answer("one sentence")


@pytest.fixture
def others(monkeypatch):
    """What other programs take of the machine, as it is told, and models of lesson 04 that are quickly measured."""
    seconds = SimpleNamespace(now=0.0, each=0.0)
    config = TransformerConfig(d_model=16, num_heads=2, num_layers=1, d_ff=8)

    def told():
        seconds.now += seconds.each
        return seconds.now

    made = {"MoE": LanguageModel(replace(config, num_experts=4, top_k=2))}
    made |= {f"dense, {w}×": LanguageModel(replace(config, moe_layers=(), d_ff=16 * w)) for w in (1, 4, 8)}
    monkeypatch.setattr(busy, "seconds_of_others", told)
    monkeypatch.setattr(busy, "SHORT", 0)
    monkeypatch.setattr(own_figures, "decoders", lambda: made)
    return seconds


def test_a_figure_of_a_busy_machine_is_marked_until_it_is_measured_again(measured, others, capsys):
    path = progress.file()
    for key in ("04.over_active", "04.over_good"):
        progress.record("figures", key, value=None)
    others.each = 1e6
    own_figures.measure_missing()
    kept = json.loads(path.read_text("utf-8"))["figures"]
    assert {key for key in kept if kept[key].get("is_busy")} == {"04.over_active", "04.over_good", "12.over_matched"}
    narrow, over, wide = (kept[key]["value"] for key in ("04.over_active", "12.over_matched", "04.over_good"))
    assert np.interp(kept["05.effective_width"]["value"], (1, 4), (narrow, wide)) == pytest.approx(over)
    *rows, _, last = figures().splitlines()
    assert [row[:6] for row in rows if "measured on a busy machine" in row] == ["| 04 |", "| 04 |", "| 12 |"]
    assert "measure_missing(busy_too=True)" in last and "busy machine" in Answer("one minute")
    others.each = 0.0
    own_figures.measure_missing()
    assert json.loads(path.read_text("utf-8"))["figures"]["04.over_good"] == kept["04.over_good"]  # only if asked
    own_figures.measure_missing(busy_too=True)
    assert progress.read()["figures"]["04.over_good"]["is_busy"] is False
    assert not any("busy" in text for text in (figures(), *map(Answer, LENGTHS)))


def test_what_is_only_written_is_kept_too_and_trouble_with_the_file_is_said(measured, monkeypatch):
    interview = Interview()
    interview.answer.value = "Half an answ"  # and the tab is closed
    assert Interview().answer.value == "Half an answ"
    interview.next.click()
    assert len(progress.read()["quiz"]) == 1  # nothing is kept of what was only looked at
    interview.back.click()
    assert (interview.show.button_style, interview.next.button_style) == ("primary", "")
    interview.show.click()
    assert (interview.show.button_style, interview.next.button_style) == ("", "primary")
    lessons = interview.ours.children[-1].outputs[0]["data"]["text/markdown"].split("\n")[0].split(": ")[1].split("; ")
    assert len(set(lessons)) == len(lessons)
    ticks = interview.ticks
    interview.show.click()
    assert interview.ticks is ticks  # what is ticked stays
    interview.answer.value = "A better one"
    again = Interview()
    assert again.answer.value == "A better one" and set(again.ticks) < set(again.ours.children)
    again.ticks[1].value = True
    assert progress.read()["quiz"]["12.memory"]["said"][:2] == [False, True] and Interview().ticks[1].value
    monkeypatch.setattr(progress, "record", lambda *_, **__: "Not saved yet: <it> is full.")
    again.ticks[0].value = True
    assert "Not saved yet: &lt;it&gt; is full." in again.note.value
