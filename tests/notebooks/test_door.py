"""The course has no address until somebody gives it one; then all that opens or installs it has that one."""

import re
import shutil
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import unquote

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from moe_lessons import __version__
from tools import tables

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
OURS, TAG = "someone/their_course", f"v{__version__}"
PLACES = ["pyproject.toml", "notebooks", "docs", *(name for name in tables.wanted() if "/" not in name)]
NEED_AN_ADDRESS = r"github\.com/[\w-]+/moe|colab\.research|mybinder\.org|git clone [^h]|git\+https|"
NEED_AN_ADDRESS += r"pip install ['\"]?moe_lessons"


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """course(address): the folder of a course that has an address, or none."""
    folder, patch = tmp_path_factory.mktemp("course"), pytest.MonkeyPatch()
    for name in PLACES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / tables.TABLE).parent.mkdir(parents=True)
    shutil.copy(ROOT / tables.TABLE, folder / tables.TABLE)
    patch.setattr(tables, "ROOT", folder)

    def addressed(address: str) -> Path:
        tables.main(["--address", address])
        return folder

    yield addressed
    patch.undo()


def texts(folder: Path) -> dict[str, str]:
    """Return the text of each file of the course below a folder, by name."""
    kinds, found = r".*\.(py|md|ipynb|toml|cff|ya?ml|js|html|json)|.*LICENSE|Makefile", {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if re.fullmatch(kinds, name) and not re.match(r"\.(?!github)|build/|dist/|tools/node_modules/", name):
            found[name] = path.read_text(encoding="utf-8")
    return found


def test_without_an_address_nothing_opens_clones_or_installs_it_by_name(course):
    found = texts(ROOT) | texts(course("none"))
    for here in ("tools/tables.py", "tests/notebooks/test_door.py"):
        del found[here]
    assert len(found) > 300
    assert [(name, said) for name, text in found.items() for said in re.findall(NEED_AN_ADDRESS, text)] == []


def test_setting_an_address_and_taking_it_back_is_a_round_trip(course):
    ours, other = f"https://github.com/{OURS}", "https://github.com/other/name"
    none = texts(course("none"))
    one = texts(course(ours))
    assert one == texts(course(ours)) != none and list(tables.stale()) == []
    assert sum(ours in text for text in one.values()) == 4 + len(LESSONS)  # pyproject, README, citation, licence
    assert not any(ours in text for text in texts(course(other)).values())
    assert texts(course("none")) == none
    with pytest.raises(SystemExit, match="--address must be https://github.com/OWNER/NAME or none, got http://a"):
        course("http://a")
    assert texts(course("none")) == none


@pytest.fixture(params=LESSONS)
def lesson(request, course):
    path = course(f"https://github.com/{OURS}") / "notebooks" / request.param
    return path, nbformat.read(path, as_version=4).cells


def installing(cells) -> str:
    return next(cell.source for cell in cells if cell.cell_type == "code")


def test_its_badges_open_this_very_file_at_the_tag_of_this_version(lesson):
    path, cells = lesson
    links = dict(re.findall(r"\[!\[Open in (\w+)\]\([^)]+\)\]\(([^)]+)\)", cells[0].source))
    assert links["Colab"].startswith(f"https://colab.research.google.com/github/{OURS}/blob/{TAG}/")
    assert links["Binder"].startswith(f"https://mybinder.org/v2/gh/{OURS}/{TAG}?urlpath=doc%2Ftree%2F")
    assert all(unquote(link).endswith(f"/notebooks/{path.name}") for link in links.values()) and len(links) == 2
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", cells[0].source)
    assert pictures and all((path.parent / picture).is_file() for picture in pictures)


@pytest.mark.parametrize("missing", [True, False])
def test_its_first_code_installs_what_pyproject_asks_for_where_the_course_is_missing(lesson, missing, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if missing else object())
    shell, code = Mock(), installing(lesson[1])
    exec(TransformerManager().transform_cell(code), {"get_ipython": lambda: shell})
    lines = [call.args[1] for call in shell.run_line_magic.call_args_list]
    assert len(code.splitlines()) <= 15 and len(lines) == 2 * missing
    if missing:
        project = tables.tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        asked = set(re.findall(r"'([^']+)'", lines[0]))
        assert asked < set(project["dependencies"]) and any(need.startswith("torch>=") for need in asked)
        assert lines[1] == f"install -q --no-deps git+https://github.com/{OURS}@{TAG}"
