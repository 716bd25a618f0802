"""What the lessons ask, and which of the learner's figures they keep: predictions, a quiz at the end, and keys."""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import nbformat
import pytest

from moe_lessons.course import CurvePrediction, NumberPrediction, Prediction
from moe_lessons.course.lessons import LESSONS as TABLE
from moe_lessons.course.quiz import QUIZZES, read_quiz

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
LESSONS = {lesson.number: lesson.file for lesson in TABLE if (FOLDER / lesson.file).exists()}
KINDS = [kind.__name__ for kind in (Prediction, NumberPrediction, CurvePrediction)]
FEWEST = {"NumberPrediction": 4, "CurvePrediction": 3}  # in the whole course
KEY = re.compile(r"\d\d[a-z]?\.[a-z0-9_]+")


@cache
def cells(number: str) -> list:
    return nbformat.read(FOLDER / LESSONS[number], as_version=4).cells


@cache
def calls(number: str) -> list[ast.Call]:
    """All calls in a lesson's code."""
    trees = [ast.parse(re.sub("^ *[%!].*", "", cell.source, flags=re.M) or "0") for cell in cells(number)
             if cell.cell_type == "code" and "find_spec(" not in cell.source]  # fmt: skip
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]


def name_of(call: ast.Call) -> str:
    return ast.unparse(call.func)


def predictions(number: str) -> list[tuple[str, str | None]]:
    """The kind and the key of each prediction in a lesson."""
    return [(name_of(call), key_of(call)) for call in calls(number) if name_of(call) in KINDS]


def key_of(call: ast.Call) -> str | None:
    return next((ast.literal_eval(word.value) for word in call.keywords if word.arg == "key"), None)


def figures(number: str) -> list[str]:
    """The keys of the figures that a lesson keeps: all that look like one in a cell that records figures.

    Lesson 12 has none of its own: it measures what a learner skipped.
    """
    if number == "12":
        return []
    recording = [cell.source for cell in cells(number) if 'record("figures"' in cell.source]
    return [text for source in recording for text in re.findall(r'"([^"]*)"', source) if KEY.fullmatch(text)]


@pytest.mark.parametrize("number", LESSONS)
def test_keys_begin_with_the_number_of_their_lesson(number):
    keys = [key for _, key in predictions(number)] + figures(number)
    assert all(key and KEY.fullmatch(key) and key.startswith(f"{number}.") for key in keys), keys


@pytest.mark.parametrize("kept", [lambda number: [key for _, key in predictions(number)], figures])
def test_no_key_is_used_twice(kept):
    counts = Counter(key for number in LESSONS for key in kept(number))
    assert counts and not [key for key, count in counts.items() if count > 1]


def test_the_course_asks_for_numbers_and_for_curves():
    counts = Counter(kind for number in LESSONS for kind, _ in predictions(number))
    assert all(counts[kind] >= fewest for kind, fewest in FEWEST.items()), counts


@pytest.mark.parametrize("number", LESSONS)
def test_each_prediction_is_set_against_what_happened(number):
    compared = [call for call in calls(number) if name_of(call).endswith(".compare")]
    assert len(compared) == len(predictions(number))


@pytest.mark.parametrize("number", LESSONS)
def test_a_lesson_ends_with_its_quiz(number):
    """Only what is for the curious comes after it."""
    sources = [cell.source for cell in cells(number)]
    place = next((i for i, source in enumerate(sources) if source.endswith(f'Quiz("{number}")')), None)
    assert place and sources[place - 1].startswith("## Check yourself") and len(read_quiz(QUIZZES[number])) >= 3
    assert not sources[place + 1 :] or re.match("## (Going further|Where)", sources[place + 1])


@pytest.mark.parametrize("path", QUIZZES.values(), ids=QUIZZES)
def test_neither_length_nor_place_gives_the_answer_away(path):
    items = read_quiz(path)
    for item in items:
        right, *others = sorted(item.options, key=lambda option: not option.is_right)
        longest = max(len(option.text) for option in others)
        assert len(right.text) <= 1.2 * longest + 2, f"{item.name}: the right option stands out by its length"
    places = Counter([option.is_right for option in item.options].index(True) for item in items)
    assert max(places.values()) <= 2, f"{path.name}: the right option stands too often in one place"
