"""The exercises of lessons 04 and 05 that ask for numbers: information, chance, slowdown, push."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from moe_lessons.analysis import mutual_information
from moe_lessons.exercises import check_counts, check_load
from moe_lessons.exercises.check_values import agree, as_values, check_values

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def in_the_lesson(lesson: str, name: str) -> list:
    """The function of this name as the lesson asks for it, and as its folded solution has it."""
    (path,) = NOTEBOOKS.glob(f"{lesson}_*.ipynb")
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if f"def {name}(" in cell.source]
    assert [cell.cell_type for cell in cells] == ["code", "markdown"]
    found = []
    for code in (cells[0].source, cells[1].source.split("```python\n")[1].split("```")[0]):
        exec(code, names := {"torch": torch})
        found.append(names[name])
    return found


def information(counts):
    """With numpy, by entropies."""
    p = np.asarray(counts) / np.asarray(counts).sum()

    def entropy(q):
        return -sum(x * np.log2(x) for x in q.flatten() if x > 0)

    return entropy(p.sum(0)) + entropy(p.sum(1)) - entropy(p)


def chance(experts):
    return float((np.bincount(experts) ** 2).sum() / len(experts) ** 2)


def slowdown(loads, num_devices):
    work = [part.sum() for part in loads.chunk(num_devices)]
    return max(work) * num_devices / sum(work)


def push(probs, chosen, gain):
    return torch.tensor([gain * probs[chosen] * (float(e == chosen) - probs[e]) for e in range(len(probs))])


CHECKS = {  # the check, another right answer, what is known of wrong ones, and its name in the lesson
    "information": (check_counts.check_information, information, check_counts.INFORMATION_MISTAKES, "04"),
    "chance": (check_counts.check_chance, chance, check_counts.CHANCE_MISTAKES, "04"),
    "slowdown": (check_load.check_slowdown, slowdown, check_load.SLOWDOWN_MISTAKES, "05"),
    "push": (check_load.check_push, push, check_load.PUSH_MISTAKES, "05"),
}
MISTAKES = [(check, mistake, said) for check, _, mistakes, _ in CHECKS.values() for mistake, said in mistakes.items()]


@pytest.mark.parametrize("name", CHECKS)
def test_right_answers_and_none(name):
    check, other, _, lesson = CHECKS[name]
    before = torch.get_rng_state()
    unwritten, solution = in_the_lesson(lesson, f"my_{name}")
    answers = other, solution, unwritten, lambda *_: None
    assert [check(answer).status for answer in answers] == ["right", "right", "not attempted", "not attempted"]
    assert torch.equal(torch.get_rng_state(), before)


def test_the_formula_is_that_of_the_package():
    counts = torch.randint(0, 5, (4, 6), generator=torch.Generator().manual_seed(0))
    tokens = counts.nonzero().repeat_interleave(counts[counts > 0], dim=0)  # (T, 2): an expert and a byte
    expected = mutual_information(*tokens.T, corrected=False)
    assert check_counts.information_of(counts).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("check, mistake, said", MISTAKES)
def test_frequent_mistakes_are_known(check, mistake, said):
    assert repr(check(mistake)) == f"✘ Not yet. {said}"


@pytest.mark.parametrize("name", CHECKS)
def test_other_wrong_answers(name):
    check = CHECKS[name][0]
    assert check(lambda *_: 1 / 0).status == "raised"
    assert "Not yet: return numbers" in repr(check(lambda *_: "two"))
    assert re.search("Not yet: the .* is .*, yours is 7.25, for", repr(check(lambda *_: 7.25)))


def test_an_answer_may_change_its_arguments():
    assert check_values(lambda x: x.zero_().sum(), lambda x: 0, [(torch.ones(2),)] * 2, {}, "it").status == "right"


def test_values_agree_but_for_rounding():
    assert agree(as_values(1.0), as_values(np.float32(1.000001)))
    assert not agree(as_values(1.0), as_values([1.0])) and not agree(as_values(1.0), as_values(1.01))
