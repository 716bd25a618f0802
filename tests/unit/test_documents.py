"""What the documents point at exists, and what they show runs."""

import inspect
import re
from pathlib import Path

import nbformat
import pytest

from moe_lessons.course.lessons import LESSONS
from moe_lessons.nn import MoE
from moe_lessons.support.data import data_path
from moe_lessons.support.show import show_source
from tools import tables

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "notebooks" / "GLOSSARY.md").read_text(encoding="utf-8")
ANCHORS = re.findall(r'^<a id="([a-z0-9-]+)"></a>\*\*', GLOSSARY, re.M)


DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "notebooks/GLOSSARY.md",
    *(ROOT / "docs").glob("*.md"),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_local_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8"))
    broken = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not broken


def test_the_example_in_the_readme_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["y"].shape == names["x"].shape
    assert names["routing"].topk_indices.shape == (16, 2)
    assert names["moe"].router.weight.grad is not None


def test_every_term_of_the_glossary_has_an_anchor_of_its_own():
    assert len(ANCHORS) == len(set(ANCHORS)) > 70
    assert re.findall(r"\n\n(\*\*[^*]+\*\*)", GLOSSARY) == []  # a term without one


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.number)
def test_each_lesson_links_its_terms_to_the_glossary(lesson):
    cells = nbformat.read(ROOT / "notebooks" / lesson.file, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(GLOSSARY\.md#([^)]+)\)", text)
    assert len(links) >= 5 and set(links) <= set(ANCHORS)


@pytest.mark.parametrize("name", tables.ROWS)
def test_the_documents_have_the_lessons_as_the_course_has_them(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert tables.with_table(name) == text, "python -m tools.tables writes it anew"
    assert all(tables.ROWS[name](lesson) in text for lesson in LESSONS)


def test_a_missing_data_file_lists_what_there_is_and_a_method_is_shown_without_the_indent_of_its_class():
    with pytest.raises(FileNotFoundError, match=r"no data file 'models.csv' in .*; there are: .*README.md"):
        data_path("models.csv")
    source = show_source(MoE.forward)
    lines = source.splitlines()
    assert lines[0].startswith("def forward(self, x") and lines[1].startswith("    ")
    assert [line.strip() for line in lines] == [line.strip() for line in inspect.getsource(MoE.forward).splitlines()]
    assert repr(source) == str(source)
    assert source._repr_markdown_() == f"```python\n{source}\n```"
