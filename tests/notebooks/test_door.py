"""Every lesson can be opened where the course is not installed."""

import re
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import unquote

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement

from moe_lessons.support.data import repository

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

OURS = repository().removeprefix("https://github.com/")
ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FROM_THE_NOTEBOOK = {"jupyterlab", "ipykernel", "ipywidgets", "numpy", "psutil"}  # or these come along


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def lesson(request):
    return request.param, nbformat.read(request.param, as_version=4).cells


def installing(cells) -> str:
    return next(cell.source for cell in cells if cell.cell_type == "code")


def test_its_badges_open_this_very_file(lesson):
    path, cells = lesson
    links = dict(re.findall(r"\[!\[Open in (\w+)\]\([^)]+\)\]\(([^)]+)\)", cells[0].source))
    assert links["Colab"].startswith(f"https://colab.research.google.com/github/{OURS}/blob/main/")
    assert links["Binder"].startswith(f"https://mybinder.org/v2/gh/{OURS}/HEAD?urlpath=doc%2Ftree%2F")
    assert all(unquote(link).endswith(f"/notebooks/{path.name}") for link in links.values()) and len(links) == 2
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", cells[0].source)
    assert pictures and all((path.parent / picture).is_file() for picture in pictures)


@pytest.mark.parametrize("missing", [True, False])
def test_its_first_code_installs_where_the_course_is_missing(lesson, missing, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if missing else object())
    shell = Mock()
    exec(TransformerManager().transform_cell(installing(lesson[1])), {"get_ipython": lambda: shell})
    lines = [call.args[1] for call in shell.run_line_magic.call_args_list]
    assert [line.split()[0] for line in lines] == ["install"] * len(lines) and len(lines) == 2 * missing
    assert capsys.readouterr().out == ""


def test_the_cell_begins_in_the_same_way_everywhere_and_names_what_the_course_needs():
    first = [installing(nbformat.read(path, as_version=4).cells).splitlines() for path in LESSONS]
    cells = {"\n".join(lines[:5]) for lines in first}  # imports may follow
    assert len(cells) == 1 and max(map(len, first)) <= 15
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {Requirement(line).name for line in project["dependencies"]} - FROM_THE_NOTEBOOK
    assert needed == set(re.search(r"install -q (\w.*)", min(cells))[1].split())
    assert f"install -q --no-deps git+https://github.com/{OURS}\n" in min(cells) + "\n"
