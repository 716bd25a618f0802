"""The check of lesson 05 tells right from wrong, says what is wrong, and never raises."""

import re
from pathlib import Path

import nbformat
import pytest
import torch
from torch import nn

from moe_lessons.exercises.check_router import check_router
from moe_lessons.nn import Routing, TopKRouter


def lesson_cell(mark: str) -> str:
    lesson = Path(__file__).resolve().parents[2] / "notebooks" / "05_expert_collapse.ipynb"
    (cell,) = [cell for cell in nbformat.read(lesson, as_version=4).cells if mark in cell.source]
    return cell.source


class Buggy(nn.Module):
    """Its weights are always 1 where K is 1."""

    def __init__(self, d_model, num_experts, top_k):
        super().__init__()
        self.top_k, self.weight = top_k, nn.Parameter(torch.randn(num_experts, d_model))

    def weights(self, logits, chosen):
        return logits.gather(1, chosen).softmax(dim=-1)

    def forward(self, x):
        logits = x @ self.weight.T
        chosen = logits.topk(self.top_k, dim=-1).indices
        return Routing.from_topk(logits, self.probs(logits), chosen, self.weights(logits, chosen))

    def probs(self, logits):
        return logits.softmax(dim=-1)


class Mended(Buggy):
    def weights(self, logits, chosen):
        weights = logits.softmax(dim=-1).gather(1, chosen)
        return weights / weights.sum(dim=-1, keepdim=True) if self.top_k > 1 else weights


def variant(base=Mended, **methods) -> type:
    return type("Variant", (base,), methods)


def test_right():
    assert repr(check_router(Mended)) == "✔ Right: for K = 1 the router learns, and for K above 1 it does what it did."
    assert check_router(TopKRouter).status == "right"


def test_the_lesson_starts_unattempted_and_its_solution_is_right():
    names = {"torch": torch, "nn": nn, "Routing": Routing, "check_router": check_router}
    exec(lesson_cell("class NewRouter"), names)
    assert check_router(names["NewRouter"]).status == "wrong"
    exec(lesson_cell("class MyRouter(NewRouter):\n    def forward(self, x):\n        return None"), names)
    assert check_router(names["MyRouter"]).status == "not attempted"
    exec(re.search(r"```python\n(.*?)```", lesson_cell("<b>Solution</b>"), re.DOTALL)[1], names)
    assert check_router(names["MyRouter"]).status == "right"


def not_written(self, x):
    raise NotImplementedError


@pytest.mark.parametrize("forward", [lambda self, x: None, lambda self, x: ..., not_written])
def test_not_attempted(forward):
    check = check_router(variant(forward=forward))
    assert check.status == "not attempted" and repr(check).startswith("… Not attempted yet")


def one_expert_less(self, x):
    logits = x @ self.weight.T
    weights, chosen = logits[:, 1:].softmax(dim=-1).topk(self.top_k, dim=-1)
    return Routing.from_topk(logits, logits.softmax(dim=-1), chosen + 1, weights)


@pytest.mark.parametrize(
    "router, advice",
    [
        (Buggy, "always 1: no change of the router changes the output"),
        (variant(weights=lambda s, z, c: z.softmax(dim=-1).gather(1, c)), "must still sum to 1"),
        (variant(weights=lambda s, z, c: z.gather(1, c)), "may be negative"),
        (variant(weights=lambda s, z, c: z.sigmoid().gather(1, c)), "not the ones that were asked for"),
        (variant(weights=lambda s, z, c: Mended.weights(s, z.detach(), c)), "does not reach the router"),
        (variant(weights=lambda s, z, c: Mended.weights(s, z, c).log().exp() * torch.nan), "not the ones"),
        (variant(probs=lambda s, z: z.sigmoid()), "router_probs must be the softmax"),
        (variant(forward=one_expert_less), "K experts of the highest scores"),
        (variant(weights=lambda s, z, c: Mended.weights(s, z, c)[:, :1]), r"cannot be read.* must be \(T, K\)"),
        (variant(weights=lambda s, z, c: z.softmax(dim=-1)), r"cannot be read.* must be \(T, K\)"),
        (variant(forward=lambda s, x: (x, x)), "must return a Routing, not a tuple"),
        (variant(weight=property(lambda s: torch.zeros(4, 6))), "stopped|keep the parameter weight"),
    ],
)
def test_wrong(router, advice):
    check = check_router(router)
    assert check.status in ("wrong", "raised") and re.search(advice, check.message), check.message


@pytest.mark.parametrize(
    "router", [variant(forward=lambda self, x: x @ self.weight), variant(forward=lambda self: 0), None, lambda d: 0]
)
def test_an_error_is_told_and_not_raised(router):
    check = check_router(router)
    assert check.status == "raised" and "with 7 tokens, 4 experts and K = 1: " in check.message


def test_checking_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    check_router(Mended)
    assert torch.equal(torch.get_rng_state(), before)
