"""``python -m tools.claims``: run the tests of all claims and write what they measured into build/claims.md.

``python -m tools.claims tests/claims/test_lesson_05.py``: only these.

Of each assert that compares numbers: what was measured, what was asked, and the margin between the two; where it ran
several times, the time with the smallest margin. With nothing else running it takes some minutes; some measure time.
"""

import ast
import inspect
import re
import sys
from numbers import Number
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.pycache_prefix = str(ROOT / "build" / "pycache")  # pytest compiles asserts otherwise than when it only tests

import nbformat  # noqa: E402
import pytest  # noqa: E402

SIGNS = {ast.Lt: "<", ast.LtE: "≤", ast.Gt: ">", ast.GtE: "≥", ast.Eq: "=", ast.NotEq: "≠"}
INTRO = """# Claims

Every statement under a 'What to notice' has a name and a test. Here is what each test measured and what it asked for,
written by `python -m tools.claims` on two cores (EPYC or Xeon). The margin is the distance between the two
at the nearest place: where a test asks the same of several seeds, of the seed that came nearest. What is not a
comparison of numbers is tested too; it is listed where a test has nothing else.
"""


class Measured:
    """A plugin of pytest; `claims`: name -> file and name of its test, and (margin, text) of its asserts by line."""

    def __init__(self):
        self.claims: dict[str, tuple[str, str, dict]] = {}

    def pytest_assertion_pass(self, item, lineno: int, orig: str) -> None:
        """An assert held: evaluate its parts again where it stands."""
        names, frame = [mark.args[0] for mark in item.iter_markers("claim")], inspect.currentframe()
        while frame and frame.f_code.co_filename != str(item.path):
            frame = frame.f_back
        if not names or frame is None:
            return
        test = item.originalname or item.name
        for place, node in enumerate(parts(orig)):
            said = say(node, frame.f_globals | frame.f_locals) or (float("inf"), f"`{ast.unparse(node)}`")
            for name in names:
                _, _, found = self.claims.setdefault(name, (item.path.name, test, {}))
                found[lineno, place] = min(found.get((lineno, place), said), said)


def parts(source: str) -> list[ast.expr]:
    """Return what an assert joins by 'and'."""
    node = ast.parse(f"({source}\n)", mode="eval").body
    return node.values if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And) else [node]


def say(node: ast.expr, names: dict) -> tuple[float, str] | None:
    """Return how near a comparison came to failing, relative to its numbers, and it with its numbers; None without
    any."""
    if not isinstance(node, ast.Compare) or not all(type(op) in SIGNS for op in node.ops):
        return None
    sides = [node.left, *node.comparators]
    values = [as_number(eval(compile(ast.Expression(side), "", "eval"), names)) for side in sides]
    if None in values or all(is_given(side) for side in sides):
        return None
    shown = [f"{v:.4g}" if is_given(s) else f"`{ast.unparse(s)}` {v:.4g}" for s, v in zip(sides, values)]
    text = shown[0] + "".join(f" {SIGNS[type(op)]} {side}" for op, side in zip(node.ops, shown[1:]))
    pairs = [pair for i, pair in enumerate(zip(values, values[1:])) if not all(map(is_given, sides[i : i + 2]))]
    nearness, gap = min((abs(a - b) / (max(abs(a), abs(b)) or 1), abs(a - b)) for a, b in pairs)
    is_exact = all(isinstance(op, ast.Eq) for op in node.ops)
    return nearness, text if is_exact else f"{text}; margin {gap:.2g}"


def as_number(value) -> float | None:
    """A number as Python has it, of `approx` the expected one; None for anything else."""
    value = getattr(value, "expected", value)
    value = value.item() if getattr(value, "shape", None) == () else value
    return value if isinstance(value, Number) and not isinstance(value, bool) else None


def is_given(node: ast.expr) -> bool:
    """Return whether an expression has numbers alone."""
    return not any(isinstance(part, ast.Name) for part in ast.walk(node))


def page(claims: dict) -> str:
    """Those claims that were measured, in the order of the lessons, as Markdown."""
    lines = [INTRO]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        title = re.match("# (.*)", cells[0].source)[1]
        lines += [f"## [{title}](../notebooks/{path.name})", ""]
        tags = [tag.removeprefix("claim:") for cell in cells for tag in cell.metadata.get("tags", [])]
        for name in filter(claims.__contains__, tags):
            file, test, found = claims[name]
            lines += [f"### {name}", "", f"[{file}](../tests/claims/{file}): `{test}`", ""]
            numbers = {place: said for place, said in found.items() if said[0] < float("inf")}
            lines += [*(f"- {text}" for _, (_, text) in sorted((numbers or found).items())), ""]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    measured, target = Measured(), ROOT / "build" / "claims.md"
    options = ["-q", "-p", "no:cacheprovider", "-o", "enable_assertion_pass_hook=true"]
    tests = arguments or sorted(map(str, (ROOT / "tests" / "claims").glob("test_lesson_*.py")))
    code = pytest.main([*options, *tests], plugins=[measured])
    if code == 0:
        target.parent.mkdir(exist_ok=True)
        target.write_text(page(measured.claims), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
