"""What is measured on a collapse: gradients, pushes, and a head start, each against a way to compute it by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from moe_lessons.analysis.collapse import LEARNS, gradient_norms, make_alike, practise, score_pushes, watched_run
from moe_lessons.tasks import PRESETS, PlaneSetting
from moe_lessons.training import plane_runs

COLLAPSE = PRESETS["collapse"]


def weights_of(run) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in run.model.block.experts.parameters()]


# --- gradients -------------------------------------------------------------------------------------------


def test_the_norm_of_each_expert():
    first, second = torch.zeros(3, 2, 4), torch.zeros(3, 5)
    first.grad, second.grad = torch.randn(3, 2, 4), torch.randn(3, 5)
    for e, norm in enumerate(gradient_norms([first, second])):
        everything = [*first.grad[e].flatten().tolist(), *second.grad[e].tolist()]
        assert norm == pytest.approx(sum(value**2 for value in everything) ** 0.5, rel=1e-6)


def test_without_a_gradient_the_norm_is_zero():
    weight, other = torch.zeros(3, 2), torch.zeros(3, 2)
    other.grad = torch.ones(3, 2)
    assert gradient_norms([weight]).tolist() == [0, 0, 0]
    assert gradient_norms([weight, other]) == pytest.approx(np.full(3, 2**0.5))


def test_a_watched_run_trains_as_a_plain_one():
    watched, plain = watched_run(COLLAPSE, seed=3), plane_runs(COLLAPSE, seed=3)["MoE"]
    for _ in range(5):
        assert watched.step()[:-1] == plain.step()[:-1]  # all but the time
    assert len(watched.expert_gradients) == len(watched.router_gradients) == 5
    assert watched.expert_gradients[0].shape == watched.router_gradients[0].shape == (8,)


@pytest.mark.parametrize("learns", LEARNS)
def test_what_does_not_learn_stands_still(learns):
    run = watched_run(COLLAPSE, learns=learns)
    experts, router = weights_of(run), run.model.block.router.weight.detach().clone()
    for _ in range(3):
        run.step()
    same_experts = all(torch.equal(a, b) for a, b in zip(experts, weights_of(run), strict=True))
    assert same_experts == (learns == "router only") == (np.max(run.expert_gradients) == 0)
    same_router = torch.equal(router, run.model.block.router.weight)
    assert same_router == (learns == "experts only") == (np.max(run.router_gradients) == 0)


def test_an_unknown_learner_is_refused():
    with pytest.raises(ValueError, match="learns must be .*'router only', got 'nobody'"):
        watched_run(COLLAPSE, learns="nobody")


# --- pushes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [COLLAPSE, PlaneSetting()], ids=["K = 1", "K = 2"])
def test_pushes_against_finite_differences(setting):
    run = watched_run(setting)
    run.step()
    pushes = score_pushes(run, num=64)
    model, router = run.model.double(), run.model.block.router
    x, y = run.task.batch(64, torch.Generator().manual_seed(run.seed + 1_000_003))
    plain = router.choice_logits
    with torch.no_grad():
        _, (routing,) = model(x.double())
        served = torch.zeros(64, 8, dtype=torch.bool)
        served[routing.token_idx, routing.expert_idx] = True

        def loss(shift):
            router.choice_logits = lambda hidden: plain(hidden) + shift
            return F.cross_entropy(model(x.double())[0], y).item()

        for expert in range(8):
            for push, tokens in ((pushes.own, served[:, expert]), (pushes.others, ~served[:, expert])):
                shift = torch.zeros(64, 8, dtype=torch.float64)
                shift[tokens, expert] = 1e-6
                slope = (loss(shift) - loss(-shift)) / 2e-6
                assert push[expert] == pytest.approx(-slope, abs=1e-5)


def test_pushes_cancel_and_train_nothing():
    run = watched_run(COLLAPSE)
    before = [weight.detach().clone() for weight in run.model.parameters()]
    own, others = score_pushes(run)
    assert (own + others).sum() == pytest.approx(0, abs=1e-6)  # a shift of all scores changes no probability
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    with pytest.raises(ValueError, match="num must be"):
        score_pushes(run, num=0)


def test_pushes_of_a_noisy_router_are_the_same_twice_and_leave_the_random_numbers_alone():
    run = watched_run(PRESETS["noise"])
    run.step()
    before = torch.get_rng_state()
    first, again = score_pushes(run, 256), score_pushes(run, 256)
    assert np.array_equal(first.own, again.own) and np.array_equal(first.others, again.others)
    assert torch.equal(torch.get_rng_state(), before) and run.model.training


# --- a head start ----------------------------------------------------------------------------------------


def test_practice_changes_one_expert_and_makes_it_better():
    run, untouched = watched_run(COLLAPSE), watched_run(COLLAPSE)
    kept = [weight.detach().clone() for weight in run.model.parameters()]
    losses = []
    for steps in (1, 40):
        practise(run, 2, steps)
        routed_to_2 = run.model.block.router.weight.detach().clone()
        with torch.no_grad():  # everything to E2, and with certainty
            run.model.block.router.weight.zero_()
            bias = torch.full((8,), -50.0).index_fill(0, torch.tensor([2]), 50.0)
            run.model.block.router.choice_logits = lambda hidden, bias=bias: bias.expand(len(hidden), 8)
        losses.append(run.evaluate()["loss"])
        del run.model.block.router.choice_logits
        run.model.block.router.weight.data.copy_(routed_to_2)
    assert losses[1] < losses[0] - 0.1
    experts = {id(weight) for weight in run.model.block.experts.parameters()}
    for before, after in zip(kept, run.model.parameters(), strict=True):
        if id(after) in experts:
            same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
            assert same == [expert != 2 for expert in range(8)]
        else:
            assert torch.equal(before, after)
    assert not run.records and run.expert_gradients == []
    x, _ = run._batch(4, run._data)
    assert torch.equal(x, untouched._batch(4, untouched._data)[0])  # the data to come are as they were


@pytest.mark.parametrize("expert", [-1, 8])
def test_practice_of_an_expert_that_is_not_there(expert):
    with pytest.raises(ValueError, match=f"expert must be between 0 and 7, got {expert}"):
        practise(watched_run(COLLAPSE), expert)
    with pytest.raises(ValueError, match="steps must be"):
        practise(watched_run(COLLAPSE), 0, steps=0)


def test_alike():
    run = watched_run(COLLAPSE)
    first = [weight[0] for weight in weights_of(run)]
    make_alike(run.model.block.experts)
    for weight, of_first in zip(weights_of(run), first, strict=True):
        assert all(torch.equal(of_expert, of_first) for of_expert in weight)
