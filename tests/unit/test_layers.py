"""Imports point downwards only: widgets → plots → analysis → bands, checkpoints → training → tasks → knobs → nn."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "moe_lessons"
# Each may import those before it.
LAYERS = ["nn", "knobs", "tasks", "training", "checkpoints", "bands", "analysis", "plots", "widgets"]
BELOW_ALL = {"errors", "datafiles"}  # whoever needs them
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
IN_LAYERS = [path for path in MODULES if path.parts[0].removesuffix(".py") in LAYERS]


def imported(source: str, package: str) -> set[str]:
    """The absolute dotted names of the modules that `source`, a module of `package`, imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*parent, *filter(None, [node.module])])
            if origin == "moe_lessons":  # `from moe_lessons import nn` imports moe_lessons.nn
                names |= {f"{origin}.{alias.name}" for alias in node.names}
            else:
                names.add(origin)
    return names


def imports_of(path: Path) -> set[str]:
    package = ".".join(["moe_lessons", *path.parent.parts])
    return imported((PACKAGE / path).read_text(encoding="utf-8"), package)


def parts_of_ours(names: set[str]) -> set[str]:
    """Of the names inside moe_lessons, the part that each belongs to: 'nn' for moe_lessons.nn.routing."""
    return {name.split(".")[1] for name in names if name.startswith("moe_lessons.")}


def test_the_package_was_found():
    assert any(path.parts[0] == "nn" for path in IN_LAYERS)


@pytest.mark.parametrize("path", IN_LAYERS, ids=str)
def test_imports_point_downwards(path):
    rank = LAYERS.index(path.parts[0].removesuffix(".py"))
    allowed = BELOW_ALL | set(LAYERS[: rank + 1])
    above = parts_of_ours(imports_of(path)) - allowed
    assert not above, f"moe_lessons/{path} imports {', '.join(sorted(above))}, which lies above or beside it"


@pytest.mark.parametrize("path", [path for path in IN_LAYERS if path.parts[0] == "nn"], ids=str)
def test_nn_imports_torch_alone(path):
    names = imports_of(path)
    assert parts_of_ours(names) <= {"nn", "errors"}
    outside = {name.split(".")[0] for name in names} - {"moe_lessons", "torch"} - set(sys.stdlib_module_names)
    assert not outside, f"moe_lessons/{path} imports {', '.join(sorted(outside))}"


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[0] == "exercises"], ids=str)
def test_exercises_know_no_widgets(path):
    assert parts_of_ours(imports_of(path)) <= {"exercises", "nn", "errors"}


@pytest.mark.parametrize("name", sorted(BELOW_ALL))
def test_what_lies_below_all_imports_nothing_of_ours(name):
    assert not parts_of_ours(imports_of(Path(f"{name}.py")))


@pytest.mark.parametrize(
    "source, found",
    [
        ("import moe_lessons.plots.load", {"moe_lessons.plots.load"}),
        ("from moe_lessons import plots", {"moe_lessons.plots"}),
        ("from moe_lessons.plots import theme", {"moe_lessons.plots"}),
        ("from .. import plots", {"moe_lessons.plots"}),
        ("from ..plots import theme", {"moe_lessons.plots"}),
        ("from .routing import Routing", {"moe_lessons.nn.routing"}),
        ("def f():\n    import pandas as pd", {"pandas"}),
    ],
)
def test_every_form_of_import_is_seen(source, found):
    assert imported(source, "moe_lessons.nn") == found
