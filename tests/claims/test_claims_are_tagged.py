"""Each claim that a lesson makes has a test of its name, and each such test a lesson that makes the claim."""

import ast
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]


def claims_of_the_lessons() -> set[str]:
    """The NAMEs of all cell tags `claim:NAME` in the lessons."""
    cells = [cell for path in (ROOT / "notebooks").glob("*.ipynb") for cell in nbformat.read(path, 4).cells]
    tags = [tag for cell in cells for tag in cell.metadata.get("tags", [])]
    return {tag.removeprefix("claim:") for tag in tags if tag.startswith("claim:")}


def claims_in(source: str) -> list[str]:
    """The names in all `@pytest.mark.claim('name')` above the functions of a test file."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    calls = [call for function in functions for call in function.decorator_list if isinstance(call, ast.Call)]
    return [call.args[0].value for call in calls if ast.unparse(call.func) == "pytest.mark.claim"]


def claims_with_a_test() -> list[str]:
    files = Path(__file__).parent.glob("test_*.py")
    return [name for file in files for name in claims_in(file.read_text(encoding="utf-8"))]


def test_there_are_claims():
    assert claims_of_the_lessons() and claims_with_a_test()


def test_every_tagged_claim_has_a_test():
    missing = claims_of_the_lessons() - set(claims_with_a_test())
    assert not missing, f"no test is marked @pytest.mark.claim(...) with {sorted(missing)}"


def test_every_claim_test_has_a_tagged_cell():
    unused = set(claims_with_a_test()) - claims_of_the_lessons()
    assert not unused, f"no cell is tagged claim: with {sorted(unused)}"


def test_a_claim_has_one_test():
    names = claims_with_a_test()
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, f"tested twice: {sorted(twice)}"


def test_the_marks_are_found():
    source = "@pytest.mark.claim('a')\n@pytest.mark.parametrize('x', [1])\ndef test_a(x): ...\n"
    assert claims_in(source) == ["a"]
