"""The check of lesson 02 tells right from wrong, says what is wrong, and never raises."""

import re
from pathlib import Path

import nbformat
import pytest
import torch

from moe_lessons.exercises.exercise import MISTAKES, check_moe, moe_by_loops
from moe_lessons.nn import MoE


def right(x, router_weight, experts, top_k):
    weights, indices = (x @ router_weight.T).softmax(dim=-1).topk(top_k, dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    y = torch.zeros_like(x)
    for token in range(len(x)):
        for choice in range(top_k):
            y[token] += weights[token, choice] * experts[indices[token, choice]](x[token])
    return y


def not_written(*_):
    raise NotImplementedError


def changes_x(x, *rest):
    y = right(x, *rest)
    x.zero_()
    return y


def test_right():
    check = check_moe(right)
    assert check.status == "right"
    assert repr(check) == "✔ Right: your block equals the loop over tokens and experts, at 4 different sizes."


def test_the_solution_in_the_lesson_is_right():
    lesson = Path(__file__).resolve().parents[2] / "notebooks" / "02_the_moe_block.ipynb"
    (cell,) = [cell for cell in nbformat.read(lesson, as_version=4).cells if "<b>Solution</b>" in cell.source]
    solution = re.search(r"```python\n(.*?)```", cell.source, re.DOTALL)[1]
    names = {"torch": torch}
    exec(solution, names)
    assert check_moe(names["my_moe"]).status == "right"


def test_right_in_double_precision():
    assert check_moe(lambda x, *rest: right(x, *rest).double()).status == "right"


@pytest.mark.parametrize("answer", [lambda *_: None, lambda *_: ..., not_written])
def test_not_attempted(answer):
    check = check_moe(answer)
    assert check.status == "not attempted"
    assert repr(check).startswith("… Not attempted yet")


@pytest.mark.parametrize(
    "answer, advice",
    [
        (lambda *arguments: right(*arguments)[0], r"must have the shape of x, \(4, 6\), not \(6,\)"),
        (lambda *arguments: right(*arguments).T, r"must have the shape of x, \(4, 6\), not \(6, 4\)"),
        (lambda *arguments: (right(*arguments), None), "return a tensor y like x, not a tuple"),
        (lambda *arguments: right(*arguments) + 0.01, "differs from the loop"),
        (lambda *arguments: right(*arguments) * torch.nan, "differs from the loop"),
        (lambda *arguments: right(*arguments[:3], 2), "with 9 tokens of 4 numbers, 5 experts and top_k = 3, y differs"),
        (lambda x, w, experts, k: right(x, w, experts, len(experts)), "Every expert ran"),
        (changes_x, "your function changed x"),
    ],
)
def test_wrong(answer, advice):
    check = check_moe(answer)
    assert check.status == "wrong"
    assert re.search(advice, check.message), check.message


@pytest.mark.parametrize("mistake", MISTAKES)
def test_frequent_mistakes_are_known(mistake):
    assert check_moe(mistake).message == f"Not yet. {MISTAKES[mistake]}"


def test_an_error_is_told_and_not_raised():
    check = check_moe(lambda x, router_weight, experts, top_k: x @ router_weight)
    assert check.status == "raised"
    assert "with 4 tokens of 6 numbers, 3 experts and top_k = 2: RuntimeError: " in check.message


def test_a_function_with_other_arguments():
    assert "TypeError" in check_moe(lambda x: x).message


def test_checking_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    check_moe(right)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_loops_equal_the_package():
    moe, x = MoE(4, 8, 5, 2), torch.randn(7, 4)
    experts = [MoE(4, 8, 1, 1, norm_topk_prob=True) for _ in range(5)]
    for e, expert in enumerate(experts):
        expert.experts.load_state_dict({name: w[[e]] for name, w in moe.experts.state_dict().items()})
    y = moe_by_loops(x, moe.router.weight, [lambda row, expert=expert: expert(row)[0] for expert in experts], 2)
    torch.testing.assert_close(y, moe(x)[0])
