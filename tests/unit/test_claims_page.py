"""What `make claims` writes of an assert: its numbers, and how near it came to failing."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

SPEC = importlib.util.spec_from_file_location("measure", Path(__file__).parents[2] / "tools" / "claims.py")


@pytest.fixture(scope="module")
def measure():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.pycache_prefix", None)  # it sets it
        module = importlib.util.module_from_spec(SPEC)
        SPEC.loader.exec_module(module)
        yield module


@pytest.mark.parametrize(
    "source, said",
    [
        ("a > b + 0.02", "`a` 0.87 > `b + 0.02` 0.81; margin 0.06"),
        ("b < 0.8 < 0.8 + 1e-9 < 2 * a", "`b` 0.79 < 0.8 < 0.8 < `2 * a` 1.74; margin 0.01"),
        ("len(names) == 2", "`len(names)` 2 = 2"),
        ("a == approx(0.871)", "`a` 0.87 = `approx(0.871)` 0.871"),
        ("1 < 2", None),
    ],
)
def test_a_comparison_is_said_with_its_numbers(measure, source, said):
    (node,) = measure.parts(source)
    found = measure.say(node, {"a": 0.87, "b": 0.79, "names": ["x", "y"], "approx": pytest.approx})
    assert said is None if found is None else found[1] == said


def test_the_nearest_of_several_runs_counts(measure):
    marks = [SimpleNamespace(args=("small",))]
    item = SimpleNamespace(path=Path(__file__), name="test", originalname="test", iter_markers=lambda name: marks)
    measured = measure.Measured()
    for value in (0.5, 0.9, 0.1):
        assert value  # where this frame has it, it is read
        measured.pytest_assertion_pass(item, 1, "value < 1 and value > 0")
    said = [text for _, text in measured.claims["small"][2].values()]
    assert said == ["`value` 0.9 < 1; margin 0.1", "`value` 0.1 > 0; margin 0.1"]


def test_claims_that_were_not_measured_keep_what_is_written(measure):
    stored = (measure.ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert measure.page({}, stored) == stored
    file, test = "test_lesson_00.py", "test_every_expert_keeps_work"
    anew = measure.page({"healthy-keeps-every-expert": (file, test, {(1, 0): (0.5, "`x` 2 > 1; margin 1")})}, stored)
    changed = set(anew.splitlines()) ^ set(stored.splitlines())
    assert len(changed) == 2 and "- `x` 2 > 1; margin 1" in changed
