"""What the lessons ask, and which of the learner's figures they keep: predictions, a quiz at the end, and keys."""

import ast
import re
from functools import cache
from pathlib import Path

import nbformat
import pytest

from moe_lessons.course import CurvePrediction, NumberPrediction, Prediction
from moe_lessons.course.interview import SENTENCES
from moe_lessons.course.lessons import LESSONS as TABLE
from moe_lessons.course.quiz import QUIZZES, read_quiz

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
LESSONS = {lesson.number: lesson.file for lesson in TABLE if (FOLDER / lesson.file).exists()}
NUMBERS = {lesson.number: lesson.predictions for lesson in TABLE}
KINDS = [kind.__name__ for kind in (Prediction, NumberPrediction, CurvePrediction)]
KEY = re.compile(r"\d\d[a-z]?\.[a-z0-9_]+")


@cache
def cells(number: str) -> list:
    return nbformat.read(FOLDER / LESSONS[number], as_version=4).cells


@cache
def calls(number: str) -> list[ast.Call]:
    trees = [ast.parse(re.sub("^ *[%!].*", "", cell.source, flags=re.M) or "0") for cell in cells(number)
             if cell.cell_type == "code" and "install" not in cell.metadata.get("tags", ())]  # fmt: skip
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]


def predictions(number: str) -> list[tuple[str, str | None]]:
    """Give the kind and the key of each prediction in a lesson."""
    made = [(ast.unparse(call.func), {word.arg: word.value for word in call.keywords}) for call in calls(number)]
    return [(name, ast.literal_eval(words["key"]) if "key" in words else None) for name, words in made if name in KINDS]


def figures(number: str) -> list[str]:
    """Give the keys of the figures that a lesson keeps. Lesson 12 has none: it measures what a learner skipped."""
    recording = [cell.source for cell in cells(number) if 'record("figures"' in cell.source and number != "12"]
    return [text for source in recording for text in re.findall(r'"([^"]*)"', source) if KEY.fullmatch(text)]


@pytest.mark.parametrize("number", LESSONS)
def test_each_prediction_has_a_key_of_its_lesson_and_is_set_against_what_happened(number):
    keys = [key for _, key in predictions(number)] + figures(number)
    assert all(key and KEY.fullmatch(key) and key.startswith(f"{number}.") for key in keys), keys
    compared = [call for call in calls(number) if ast.unparse(call.func).endswith(".compare")]
    assert len(compared) == len(predictions(number)) == NUMBERS[number]


def shown(cell) -> list[ast.AST]:
    """Give what a cell shows beside what it prints, where no `with` folds it."""
    body = ast.parse(cell.source).body
    said = [line.value for line in body if isinstance(line, ast.Expr) and isinstance(line.value, ast.Call)]
    given = [argument for call in said if ast.unparse(call.func) == "display" for argument in call.args]
    has_result = any(output.output_type == "execute_result" for output in cell.outputs)
    return given + ([body[-1].value] if has_result else [])


@pytest.mark.parametrize("number", LESSONS)
def test_nothing_answers_a_prediction_before_it_is_answered(number):
    """From a prediction on, up to its note, what is shown is folded, and the note stands right below a folded cell.
    What is stored is hidden, in JupyterLab, until its cell runs."""
    name, last, found = "", None, 0
    for cell in cells(number):
        asks = re.search(r"^(\w+) = \w*Prediction\(", cell.source, re.M) if cell.cell_type == "code" else None
        folds = re.compile(rf"\b{name}\.(reveal|compare)\(")
        if cell.cell_type == "markdown" and "What to notice" in cell.source and name:
            assert folds.search(last.source), cell.source
            name, found = "", found + 1
        elif cell.cell_type == "code" and ".reveal(" in cell.source:  # also before anything runs
            assert cell.metadata.jupyter.outputs_hidden, cell.source
        if cell.cell_type == "code" and name and not asks and ".check(" not in cell.source:
            assert all(folds.match(ast.unparse(part)) for part in shown(cell)), cell.source
        name = asks[1] if asks else name
        last = cell if cell.cell_type == "code" else last
    assert found == NUMBERS[number]


BARS = {"train", "bar", "decode_speed", "measure_speedups"}


@pytest.mark.parametrize("number", LESSONS)
def test_no_bar_is_shown_where_what_is_shown_waits(number):
    """There nobody would see it, and its end would not be noticed."""
    sources = [cell.source for cell in cells(number) if cell.cell_type == "code" and "%" not in cell.source[:1]]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    called = lambda tree: {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}  # noqa: E731
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef) and called(node) & BARS}
    folded = [node for node in nodes if isinstance(node, ast.With) and ".reveal()" in ast.unparse(node.items[0])]
    assert not [ast.unparse(node) for node in folded if called(node) & (BARS | own)]


def test_no_key_is_used_twice_and_each_figure_that_is_kept_has_a_sentence():
    keys = [key for number in LESSONS for _, key in predictions(number)]
    kept = [key for number in LESSONS for key in figures(number)]
    assert len(set(keys)) == len(keys) and kept and len(set(kept)) == len(kept)
    assert set(kept) <= set(SENTENCES) and all(sentence.count("{}") == 1 for sentence in SENTENCES.values())


@pytest.mark.parametrize("number", LESSONS)
def test_a_lesson_ends_with_its_quiz(number):
    """Only what is for the curious comes after it."""
    sources = [cell.source for cell in cells(number)]
    place = next((i for i, source in enumerate(sources) if source.endswith(f'Quiz("{number}")')), None)
    names = [item.name for item in read_quiz(QUIZZES[number])]
    assert place and sources[place - 1].startswith("## Check yourself") and 3 <= len(set(names)) == len(names) <= 5
    after = sources[place + 1 :]  # of a lesson that is added at the end, nothing
    assert all(re.match(r"## (Going further|If you want more|Where)|\*\*Next", source) for source in after[:1])
    assert number >= "12" or after[-1].startswith("**Next:** [lesson ")
