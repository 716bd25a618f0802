"""The exercises tell right from wrong, say what is wrong, and never raise."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from torch import nn

from moe_lessons.exercises.check_causality import NUM_TOKENS, causality_cases, check_causality, sees_the_future
from moe_lessons.exercises.check_router import check_router
from moe_lessons.exercises.exercise import MISTAKES, check_moe, check_numbers, moe_by_loops
from moe_lessons.nn import MoE, Routing, seeded

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def lesson_texts(lesson: str, solutions: bool = False) -> list[str]:
    """The cells of a lesson, or the code in its folded solutions."""
    (path,) = NOTEBOOKS.glob(f"{lesson}_*.ipynb")
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells]
    return re.findall(r"<b>Solution</b>.*?```python\n(.*?)```", "\n".join(cells), re.DOTALL) if solutions else cells


def define(name: str, texts: list[str], **names):
    """What the one text with `name` in it defines."""
    (code,) = [text for text in texts if name in text]
    names |= {"torch": torch, "nn": nn, "Routing": Routing, "check_router": check_router}
    exec(code, names)
    return names[name.split()[1].partition("(")[0]]


# --- right answers: the solutions in the lessons, and a router -----------------------------------------------------


my_moe = define("def my_moe", lesson_texts("02", solutions=True))


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


def variant(**methods) -> type:
    return type("Variant", (Mended,), methods)


# each check as a function of a function, and a right one
CHECKS = {
    "numbers": (lambda answer: check_numbers(answer, {(1, 2): 3, (20, 1500): 1520}, hint="Add."), lambda a, b: a + b),
    "moe": (check_moe, my_moe),
    "router": (lambda answer: check_router(variant(forward=answer)), Mended.forward),
    "causality": (check_causality, define("def sees_the_future", lesson_texts("06b", solutions=True))),
}


@pytest.fixture(params=CHECKS)
def exercise(request):
    return CHECKS[request.param]


# --- what holds for each exercise --------------------------------------------------------------------------------


def test_right_and_the_random_state_is_left_alone(exercise):
    check, answer = exercise
    before = torch.get_rng_state()
    assert repr(check(answer)).startswith("✔ Right: ")
    assert torch.equal(torch.get_rng_state(), before)


def not_written(*_):
    raise NotImplementedError


@pytest.mark.parametrize("answer", [lambda *_: None, lambda *_: ..., not_written])
def test_not_attempted(exercise, answer):
    said = exercise[0](answer)
    assert said.status == "not attempted" and repr(said).startswith("… Not attempted yet: ")


@pytest.mark.parametrize("answer", [lambda: 0, lambda *_: 1 / 0, lambda *_: unknown])  # noqa: F821
def test_an_error_is_said_and_not_raised(exercise, answer):
    said = exercise[0](answer)
    assert said.status == "raised" and re.search("(TypeError|ZeroDivisionError|NameError): ", repr(said))


def test_the_interrupt_of_a_user_passes(exercise):
    def endless(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exercise[0](endless)


def test_lesson_05_starts_with_a_wrong_router_and_its_solution_is_right():
    start = define("class NewRouter", lesson_texts("05"))
    unwritten = [text for text in lesson_texts("05") if "check_router(MyRouter)" in text]
    attempt = define("class MyRouter", unwritten, NewRouter=start)
    solution = define("class MyRouter", lesson_texts("05", solutions=True), NewRouter=start)
    assert [check_router(router).status for router in (start, attempt, solution)] == ["wrong", "not attempted", "right"]


# --- numbers -----------------------------------------------------------------------------------------------------


def test_a_wrong_number_names_the_first_case_and_gives_the_hint():
    check, _ = CHECKS["numbers"]
    wrong = "✘ Not yet: with (20, 1500) the answer is 1,520, yours is 3. Hint: Add."
    assert repr(check(lambda a, b: 3)) == wrong
    assert "cannot be read: ValueError" in repr(check(lambda a, b: np.zeros(3)))


# --- the block ---------------------------------------------------------------------------------------------------


def changes_x(x, *rest):
    y = my_moe(x, *rest)
    x.zero_()
    return y


@pytest.mark.parametrize(
    "answer, advice",
    [
        (lambda *arguments: my_moe(*arguments).T, r"must have the shape of x, \(4, 6\), not \(6, 4\)"),
        (lambda *arguments: (my_moe(*arguments), None), "return a tensor y like x, not a tuple"),
        (lambda x, *rest: my_moe(x, *rest) + 0.01 * torch.eye(len(x))[1:2].T, "differs.* most for token 1, by 0.01"),
        (lambda *arguments: my_moe(*arguments) * torch.nan, "differs from the loop.* for token 0, by inf"),
        (lambda *arguments: my_moe(*arguments[:3], 2), "with 7 tokens of 6 numbers, 4 experts and top_k = 1, y"),
        (changes_x, "your function changed x"),
    ],
)
def test_a_wrong_block(answer, advice):
    check = check_moe(answer)
    assert check.status == "wrong" and re.search(advice, check.message), check.message


@pytest.mark.parametrize("mistake", MISTAKES)
def test_frequent_mistakes_are_known(mistake):
    assert check_moe(mistake).message == f"Not yet. {MISTAKES[mistake]}"


def test_the_loops_equal_the_package():
    moe, x = MoE(4, 8, 5, 2), torch.randn(7, 4)
    experts = [MoE(4, 8, 1, 1, norm_topk_prob=True) for _ in range(5)]
    for e, expert in enumerate(experts):
        expert.experts.load_state_dict({name: w[[e]] for name, w in moe.experts.state_dict().items()})
    y = moe_by_loops(x, moe.router.weight, [lambda row, expert=expert: expert(row)[0] for expert in experts], 2)
    torch.testing.assert_close(y, moe(x)[0])


# --- the router --------------------------------------------------------------------------------------------------


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
        (variant(weights=lambda s, z, c: z.sigmoid().gather(1, c)), "not the ones that were asked for, most for token"),
        (variant(weights=lambda s, z, c: Mended.weights(s, z.detach(), c)), "does not reach the router"),
        (variant(weights=lambda s, z, c: Mended.weights(s, z, c).log().exp() * torch.nan), "not the ones"),
        (variant(probs=lambda s, z: z.sigmoid()), "router_probs must be the softmax"),
        (variant(forward=one_expert_less), r"K experts of the highest scores, best first: token \d to \[\d, \d\], not"),
        (variant(weights=lambda s, z, c: Mended.weights(s, z, c)[:, :1]), r"cannot be read.* must be \(T, K\)"),
        (variant(forward=lambda s, x: (x, x)), "must return a Routing, not a tuple"),
        (variant(weight=property(lambda s: torch.zeros(4, 6))), "stopped|keep the parameter weight"),
        (None, "stopped with 4 tokens, 3 experts and K = 2: TypeError"),
    ],
)
def test_a_wrong_router(router, advice):
    check = check_router(router)
    assert check.status in ("wrong", "raised") and re.search(advice, check.message), check.message


# --- who sees the future -----------------------------------------------------------------------------------------


LATER = range(1, NUM_TOKENS)


def same(a, b):
    return torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", causality_cases())
@pytest.mark.parametrize("seed", range(3))
def test_the_truth_is_true(name, seed):
    """Found by changing all that follows each place, six times."""
    case = causality_cases()[name]
    layer = case.layer.eval()
    with seeded(seed):
        x = torch.randn(NUM_TOKENS, 8)
        y, seen = layer(x), False
        torch.testing.assert_close(y, causality_cases()[name].layer.eval()(x))  # the same each time
        for t in LATER:
            for _ in range(6):
                other = torch.cat([x[:t], 2 * torch.randn_like(x[t:])])
                seen |= not same(layer(other)[:t], y[:t])
    assert seen == case.truth


def with_other(change, places=LATER):
    """An answer: change x at and after place t, and compare the tokens before."""

    def sees(layer, x):
        layer.eval()
        y = layer(x)
        return any(not same(layer(change(x.clone(), t))[:t], y[:t]) for t in places)

    return sees


def flip(x, t):
    x[t] = -x[t]
    return x


def draw(x, t):
    return torch.cat([x[:t], 3 * torch.randn_like(x[t:])])


@pytest.mark.parametrize("answer", [sees_the_future, with_other(flip), with_other(draw)])
@pytest.mark.parametrize("kind", [bool, np.bool_, torch.tensor])
def test_other_good_answers(answer, kind):
    assert repr(check_causality(lambda *given: kind(answer(*given)))) == "✔ Right: your check tells all 9 layers apart."


@pytest.mark.parametrize(
    "answer, advice",
    [
        (lambda f, x: any(not same(f(x[:t]), f(x)[:t]) for t in LATER), "'top-k with noise' does not.*Call layer.eval"),
        (lambda f, x: any(not torch.equal(f.eval()(x[:t]), f(x)[:t]) for t in LATER), "tiny differences are rounding:"),
        (lambda f, x: not same(f.eval()(torch.cat([x[:1] + 1, x[1:]]))[1:], f(x)[1:]), "It only looks back. Did you"),
        (lambda f, x: not same(f.eval()(torch.cat([x[:-1], x[-1:] + 1])), f(x)), "'top-k' does not.*only the tokens"),
        (lambda f, x: not same(f.eval()(x.add_(1))[:-1], f(x)[:-1]), "your function changed x itself.*Use x.clone"),
        (with_other(draw, [12] * 10), "'expert choice in groups of 4' sees the future.*the last of the 13 tokens"),
        (with_other(lambda x, t: torch.cat([x[:t], x[t:] + 0.01])), "'expert choice' sees.*Change more than a little"),
        (lambda f, x: True, "'top-k' does not see the future, and your function says otherwise"),
        (lambda f, x: False, "'Soft MoE' sees the future.*Change late tokens"),
        (lambda f, x: f(x) > 0, "return True or False, nothing of type Tensor"),
        (lambda f, x: "yes", "return True or False, nothing of type str"),
        (lambda f, x: 1, "return True or False, nothing of type int"),
    ],
)
def test_a_wrong_test_of_causality(answer, advice):
    check = check_causality(answer)
    assert check.status == "wrong" and re.search(advice, check.message, re.IGNORECASE), check.message


@pytest.mark.parametrize("name", causality_cases())
def test_each_layer_can_be_the_one_that_is_judged_wrongly(name):
    """Every layer counts: an answer that is wrong on this one alone is given this layer's advice."""
    cases = causality_cases()
    verdicts = iter([case.truth != (other == name) for other, case in cases.items()])
    check = check_causality(lambda layer, x: next(verdicts))
    assert check.status == "wrong"
    assert repr(name) in check.message and cases[name].advice in check.message
