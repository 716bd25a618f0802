"""Each claim that a lesson makes has a test of its name, and each such test a lesson that makes the claim."""

import re
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
CELLS = [cell for path in (HERE.parents[1] / "notebooks").glob("*.ipynb") for cell in nbformat.read(path, 4).cells]
TAGS = [tag for cell in CELLS for tag in cell.metadata.get("tags", [])]
TAGGED = {tag.removeprefix("claim:") for tag in TAGS if tag.startswith("claim:")}
SOURCES = [path.read_text(encoding="utf-8") for path in HERE.glob("test_lesson_*.py")]
TESTED = [name for source in SOURCES for name in re.findall(r'^@pytest\.mark\.claim\("(.+)"\)', source, re.M)]


def test_every_tagged_claim_has_a_test():
    assert TAGGED and TAGGED - set(TESTED) == set()


def test_every_claim_test_has_a_tagged_cell():
    assert set(TESTED) - TAGGED == set()


def test_a_claim_has_one_test():
    assert [name for name in TESTED if TESTED.count(name) > 1] == []
