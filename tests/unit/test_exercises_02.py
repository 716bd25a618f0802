"""The exercises of lesson 02 tell right from wrong: the weights by a mask, and the tokens sorted to their experts."""

import re
from pathlib import Path

import nbformat
import pytest
import torch

from moe_lessons.exercises.check_mask import MASK_MISTAKES, check_mask
from moe_lessons.exercises.check_sort import SORT_MISTAKES, check_sort, sort_by_loops

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def solution(name: str, lesson: str = "02"):
    """What the folded solution in a lesson defines."""
    (path,) = NOTEBOOKS.glob(f"{lesson}_*.ipynb")
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    (code,) = re.findall(rf"<b>Solution</b>(?:(?!</details>).)*?```python\n(def {name}\b.*?)```", text, re.DOTALL)
    exec(code, names := {"torch": torch})
    return names[name]


def divided_by_the_sum(logits, top_k):
    weights, chosen = logits.softmax(dim=-1).topk(top_k)
    return torch.zeros_like(logits).scatter(1, chosen, weights / weights.sum(dim=-1, keepdim=True))


def one_expert_after_the_other(topk_indices, num_experts):
    tokens = [(topk_indices == e).any(dim=1).nonzero().flatten() for e in range(num_experts)]
    return torch.cat(tokens).flip(0).flip(0), [len(own) for own in tokens]


RIGHT = {
    check_mask: (solution("my_weights"), divided_by_the_sum),
    check_sort: (solution("my_sort"), sort_by_loops, one_expert_after_the_other),
}
CASES = [(check, answer) for check, answers in RIGHT.items() for answer in answers]


@pytest.mark.parametrize("check, answer", CASES)
def test_right_and_the_random_state_is_left_alone(check, answer):
    before = torch.get_rng_state()
    assert check(answer).status == "right", check(answer)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("check", RIGHT)
def test_nothing_and_what_stops(check):
    for answer in (lambda *_: None, lambda *_: ...):
        assert repr(check(answer)).startswith("… Not attempted yet: ")
    for answer in (lambda: 0, lambda *_: 1 / 0):
        assert re.search("(TypeError|ZeroDivisionError): ", check(answer).message) and check(answer).status == "raised"
    assert check(lambda *_: 3).status == "wrong"


@pytest.mark.parametrize("check, mistakes", [(check_mask, MASK_MISTAKES), (check_sort, SORT_MISTAKES)])
def test_frequent_mistakes_are_known(check, mistakes):
    for mistake, advice in mistakes.items():
        assert check(mistake).message == f"Not yet. {advice}"


@pytest.mark.parametrize(
    "check, answer, advice",
    [
        (check_mask, lambda logits, k: divided_by_the_sum(logits, k) + 0.1, "differ from the router's, most for token"),
        (check_mask, lambda logits, k: divided_by_the_sum(logits, k).T, r"shape \(T, E\) = \(4, 3\), not \(3, 4\)"),
        (check_mask, lambda logits, k: divided_by_the_sum(logits.mul_(2), k), "changed logits"),
        (check_sort, lambda chosen, E: sort_by_loops(chosen.flip(0), E), "the tokens sorted by expert are"),
        (check_sort, lambda chosen, E: (sort_by_loops(chosen, E)[0], [0] * E), "the experts have .* your counts are"),
        (check_sort, lambda chosen, E: (chosen, chosen), "cannot be read|return two tensors"),
    ],
)
def test_what_is_wrong_is_said(check, answer, advice):
    said = check(answer)
    assert said.status == "wrong" and re.search(advice, said.message), said
