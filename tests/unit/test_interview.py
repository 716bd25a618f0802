"""Lesson 12: each statement of the answer has its lesson and its test; the questions remember what was answered."""

import re
from pathlib import Path

import nbformat
import pytest

from moe_lessons.course import Answer, Interview, figures, lacking, progress
from moe_lessons.course.interview import ANSWERS, FIGURE, QUESTIONS, SOURCE, figure_sentence
from moe_lessons.course.lessons import LESSONS
from moe_lessons.support.show import split_points

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ANSWERS | QUESTIONS
LENGTHS = ("one sentence", "one minute", "five minutes")
FIGURES = sorted({key for text in TEXTS.values() for key in FIGURE.findall(text)})


@pytest.fixture
def measured(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_LESSONS_PROGRESS", str(tmp_path / "progress.json"))
    for place, key in enumerate(FIGURES):
        progress.record("figures", key, value=place + 0.25, unit="%", what=f"what {key} is")


@pytest.mark.parametrize("name", TEXTS)
def test_each_source_is_a_lesson_and_a_claim_that_is_tested_there(name):
    for lesson, claim in SOURCE.findall(TEXTS[name]):
        (path,) = (ROOT / "notebooks").glob(f"{lesson}_*.ipynb")
        tags = {tag for cell in nbformat.read(path, as_version=4).cells for tag in cell.metadata.get("tags", [])}
        tests = (ROOT / "tests" / "claims" / f"test_lesson_{lesson[:2]}.py").read_text()
        assert not claim or (f"claim:{claim}" in tags and f'claim("{claim}")' in tests), f"{name}: {lesson}: {claim}"


def test_each_statement_has_a_source_and_the_lesson_measures_every_figure_that_the_answer_needs():
    for length in LENGTHS:
        assert all(SOURCE.search(paragraph) for paragraph in TEXTS[length].split("\n\n")), length
    for name in QUESTIONS:
        question, points = split_points(TEXTS[name])
        assert "?" in question and 2 <= len(points) <= 4 and all(map(SOURCE.search, points)), name
    cells = nbformat.read(ROOT / "notebooks" / LESSONS[-1].file, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert FIGURES and set(FIGURES) <= set(re.findall(r'"(\d\d\w?\.\w+)"', code))


@pytest.mark.parametrize("length", LENGTHS)
def test_the_answer_has_the_learners_own_figures(length, measured):
    answer = Answer(length)
    needed = FIGURE.findall(TEXTS[length])
    assert needed and not FIGURE.search(answer) and not re.search(r"\[\d\d\w?: ", answer)
    for key in needed:
        assert figure_sentence(progress.read()["figures"][key]) in answer
    files = {lesson.file for lesson in LESSONS}
    assert {file for file in re.findall(r"\]\((\w+\.ipynb)\)", answer)} <= files


def test_a_missing_figure_and_one_that_is_no_number_is_named(measured):
    assert list(figures().index) == FIGURES and list(figures().columns) == ["what", "value", "unit", "when"]
    progress.record("figures", "08.writing_speed", value="fast")
    assert lacking("08.writing_speed") == ["08.writing_speed"] and "08.writing_speed" not in figures().index
    with pytest.raises(ValueError, match=r"figures .*got none for 08\.writing_speed"):
        Answer("one sentence")
    with pytest.raises(ValueError, match="length must be one of 'one sentence', .*got 'one hour'"):
        Answer("one hour")


def test_an_answer_comes_first_and_all_is_remembered(measured):
    interview = Interview()
    assert interview.show.disabled and interview.back.disabled and not interview.ours.children
    interview.answer.value = "Because."
    interview.show.click()
    _, points = interview.questions[interview.key]
    ticks = interview.ticks
    assert len(ticks) == len(points) and set(ticks) < set(interview.ours.children)
    assert not any(SOURCE.search(tick.description) for tick in ticks)
    ticks[1].value = True
    interview.next.click()
    assert interview.place == 1 and not interview.answer.value and not interview.ours.children
    interview.back.click()
    assert interview.answer.value == "Because."
    again = Interview()
    assert again.answer.value == "Because." and [tick.value for tick in again.ticks[:2]] == [False, True]
    assert progress.read()["quiz"][f"12.{again.key}"]["said"][:2] == [False, True]


def test_what_is_only_written_is_kept_too_and_trouble_with_the_file_is_said(measured, monkeypatch):
    interview = Interview()
    interview.answer.value = "Half an answ"  # and the tab is closed
    assert Interview().answer.value == "Half an answ"
    interview.next.click()
    assert len(progress.read()["quiz"]) == 1  # nothing is kept of what was only looked at
    interview.back.click()
    interview.show.click()
    interview.answer.value = "A better one"
    again = Interview()
    assert again.answer.value == "A better one" and len(again.ticks) == len(again.questions[again.key][1])
    monkeypatch.setattr(progress, "record", lambda *_, **__: "Not saved yet: <it> is full.")
    again.ticks[0].value = True
    assert "Not saved yet: &lt;it&gt; is full." in again.note.value


def test_a_static_page_has_the_questions_and_folded_answers(monkeypatch):
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1")
    data = Interview()._repr_mimebundle_()
    assert set(data) == {"text/plain", "text/markdown"}
    assert data["text/markdown"].count("<details>") == len(QUESTIONS)
