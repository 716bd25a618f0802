"""Imports point downwards only; what the documents, the requirements and the versions say is so."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

import moe_lessons
from moe_lessons.course.lessons import LESSONS
from tools import tables

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "notebooks" / "GLOSSARY.md").read_text(encoding="utf-8")
ANCHORS = re.findall(r'^<a id="([a-z0-9-]+)"></a>\*\*', GLOSSARY, re.M)


DOCUMENTS = [*ROOT.glob("[A-Z]*.md"), ROOT / "notebooks/GLOSSARY.md", *(ROOT / "docs").glob("*.md")]


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
    assert ANCHORS and len(ANCHORS) == len(set(ANCHORS))
    assert re.findall(r"\n\n(\*\*[^*]+\*\*)", GLOSSARY) == []  # a term without one


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.number)
def test_each_lesson_links_its_terms_to_the_glossary(lesson):
    cells = nbformat.read(ROOT / "notebooks" / lesson.file, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(GLOSSARY\.md#([^)]+)\)", text)
    assert len(links) >= 5 and set(links) <= set(ANCHORS)


def test_the_documents_have_the_lessons_and_the_address_as_they_are():
    assert list(tables.stale()) == [], "python -m tools.tables writes them anew"


PACKAGE = ROOT / "moe_lessons"
# Each may import those before it.
LAYERS = ["nn", "tasks", "training", "analysis", "plots", "widgets"]
BESIDE = {"course", "exercises", "hub", "parallel", "commands"}  # use what they need; nothing imports them
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imported(source: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert not any(node.level for node in froms), "imports are absolute here: from moe_lessons.nn import …"
    return names | {f"{node.module}.{alias.name}" for node in froms for alias in node.names}


def allowed_in(path: Path) -> set[str]:
    part = path.parts[0].removesuffix(".py")
    if part in LAYERS:
        return {"support", *LAYERS[: LAYERS.index(part) + 1]}
    if part == "exercises":  # these record progress, and draw nothing
        return {"support", part, "nn", "tasks", "training", "analysis"}
    return {"support"} if part == "support" else {"support", "__version__", *LAYERS, *BESIDE}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_downwards(path):
    names = imported((PACKAGE / path).read_text(encoding="utf-8"))
    above = {name.split(".")[1] for name in names if name.startswith("moe_lessons.")} - allowed_in(path)
    assert not above, f"moe_lessons/{path} imports {', '.join(sorted(above))}, which lies above or beside it"
    assert not {name.split(".")[0] for name in names} & {"web", "tools", "tests"}, "these use the package"
    if path.parts[0] == "nn":
        outside = {name.split(".")[0] for name in names} - {"moe_lessons", "torch"} - set(sys.stdlib_module_names)
        assert not outside, f"moe_lessons/{path} imports {', '.join(sorted(outside))} beside torch"


def test_what_a_maintainer_runs_is_above_the_site():
    names = {name for path in (ROOT / "web").rglob("*.py") for name in imported(path.read_text(encoding="utf-8"))}
    assert "web.graphs.TrainedPlane" in names and not {name.split(".")[0] for name in names} & {"tools", "tests"}


LOADED = """
import importlib, sys
for layer, *modules in map(str.split, sys.argv[1:]):
    for module in modules:
        importlib.import_module(module)
    print(layer, *{name.split(".")[1] for name in sys.modules if name.startswith("moe_lessons.")})
"""


def test_no_layer_loads_what_lies_above_it_by_whatever_way():
    modules = [(path.parts[0], ".".join(("moe_lessons", *path.with_suffix("").parts))) for path in MODULES]
    parts = [" ".join([layer, *(module for part, module in modules if part == layer)]) for layer in LAYERS]
    printed = subprocess.run([sys.executable, "-c", LOADED, *parts], capture_output=True, text=True, check=True).stdout
    loaded = {layer: set(names) for layer, *names in map(str.split, printed.splitlines())}
    assert list(loaded) == LAYERS
    for place, layer in enumerate(LAYERS):
        assert loaded[layer] <= {"support", *LAYERS[: place + 1]}, layer


try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_conda_asks_for_the_same_packages_in_the_same_ranges_and_there_is_one_version():
    wanted = {r.name: str(r.specifier) for r in map(Requirement, PROJECT["dependencies"])}
    assert all(">=" in bounds and "+" not in bounds for bounds in wanted.values())  # '+': a build of one machine
    wanted = {CONDA_NAMES.get(name, name): bounds for name, bounds in wanted.items()}
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *packages, pip = environment["dependencies"]
    conda = {r.name: str(r.specifier) for r in map(Requirement, packages)}
    assert conda == wanted | {"python": PROJECT["requires-python"], "pip": ""}
    assert pip == {"pip": ["-e ."]} and environment["channels"] == ["conda-forge", "nodefaults"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = re.findall(r"^## (\S+),", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert moe_lessons.__version__ == citation["version"] == changes[0] and PROJECT["dynamic"] == ["version"]
