"""Imports point downwards only: widgets → plots → analysis → training → tasks → nn."""

import ast
import sys
from pathlib import Path

import pytest

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
