"""Imports point downwards only, and requirements and versions are stated alike everywhere."""

import ast
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import moe_lessons

PACKAGE = Path(__file__).resolve().parents[2] / "moe_lessons"
# Each may import those before it.
LAYERS = ["nn", "tasks", "training", "analysis", "plots", "widgets"]
BESIDE = {"course", "exercises", "hub", "parallel", "commands"}  # these use what they need; nothing below imports them
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
        return {"support", "course", part, "nn", "tasks", "training", "analysis"}
    return {"support"} if part == "support" else {"support", "__version__", *LAYERS, *BESIDE}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_downwards(path):
    names = imported((PACKAGE / path).read_text(encoding="utf-8"))
    above = {name.split(".")[1] for name in names if name.startswith("moe_lessons.")} - allowed_in(path)
    assert not above, f"moe_lessons/{path} imports {', '.join(sorted(above))}, which lies above or beside it"
    if path.parts[0] == "nn":
        outside = {name.split(".")[0] for name in names} - {"moe_lessons", "torch"} - set(sys.stdlib_module_names)
        assert not outside, f"moe_lessons/{path} imports {', '.join(sorted(outside))} beside torch"


def test_every_part_was_found_and_nothing_else():
    assert {path.parts[0] for path in MODULES} == {*LAYERS, *BESIDE, "support", "__init__.py", "__main__.py"}


try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
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
    assert moe_lessons.__version__ == PROJECT["version"] == citation["version"]
