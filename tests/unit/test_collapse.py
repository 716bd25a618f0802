"""What is measured on a collapse: gradients, pushes, and a head start, each against a way to compute it by hand."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from moe_lessons.analysis import collapse
from moe_lessons.analysis.collapse import LEARNS, make_alike, practise, score_pushes, watched_run
from moe_lessons.training import PRESETS, PlaneSetting, Run, plane_runs

COLLAPSE = PRESETS["collapse"]


def copies(module) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in module.parameters()]


def test_a_watched_run_trains_as_a_plain_one():
    watched, plain = watched_run(COLLAPSE, seed=3), plane_runs(COLLAPSE, seed=3)["MoE"]
    for _ in range(5):
        assert replace(watched.step(), ms_per_step=0) == replace(plain.step(), ms_per_step=0)
    assert len(watched.expert_gradients) == len(watched.router_gradients) == 5
    block = watched.model.block
    for e in range(8):
        everything = torch.cat([weight.grad[e].flatten() for weight in block.experts.parameters()])
        assert watched.expert_gradients[-1][e] == pytest.approx(everything.norm().item(), rel=1e-5)
        assert watched.router_gradients[-1][e] == pytest.approx(block.router.weight.grad[e].norm().item(), rel=1e-5)


@pytest.mark.parametrize("learns", LEARNS)
def test_what_does_not_learn_stands_still(learns):
    run = watched_run(COLLAPSE, learns=learns)
    experts, (router,) = copies(run.model.block.experts), copies(run.model.block.router)
    for _ in range(3):
        run.step()
    same_experts = all(torch.equal(a, b) for a, b in zip(experts, run.model.block.experts.parameters(), strict=True))
    assert same_experts == (learns == "router only") == (np.max(run.expert_gradients) == 0)
    same_router = torch.equal(router, run.model.block.router.weight)
    assert same_router == (learns == "experts only") == (np.max(run.router_gradients) == 0)


@pytest.mark.parametrize("setting", [COLLAPSE, PlaneSetting()], ids=["K = 1", "K = 2"])
def test_pushes_against_finite_differences(setting, monkeypatch):
    run = watched_run(setting)
    run.step()
    monkeypatch.setattr(collapse, "NUM_POINTS", 64)
    pushes = score_pushes(run)
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


def test_pushes_of_a_noisy_router_are_the_same_twice_and_leave_the_random_numbers_alone():
    run = watched_run(PRESETS["noise"])
    run.step()
    before = torch.get_rng_state()
    first, again = score_pushes(run), score_pushes(run)
    assert np.array_equal(first.own, again.own) and np.array_equal(first.others, again.others)
    assert torch.equal(torch.get_rng_state(), before) and run.model.training


def loss_with_one_expert(run, expert: int) -> float:
    """The loss of a copy whose router sends everything to one expert, and with certainty."""
    model = copy.deepcopy(run.model)
    scores = torch.full((8,), -50.0).index_fill(0, torch.tensor([expert]), 50.0)
    model.block.router.choice_logits = lambda hidden: scores.expand(len(hidden), 8)
    return Run(model, run.task).evaluate()["loss"]


def test_practice_changes_one_expert_and_makes_it_better_and_alike_makes_all_the_same():
    run, untouched = watched_run(COLLAPSE), watched_run(COLLAPSE)
    practise(run, 2, steps=1)
    before = loss_with_one_expert(run, 2)
    practise(run, 2, steps=40)
    assert loss_with_one_expert(run, 2) < before - 0.1
    experts = {name for name, _ in run.model.named_parameters() if ".experts." in name}
    assert len(experts) == 2
    for name, old in untouched.model.named_parameters():
        new = run.model.get_parameter(name)
        same = [torch.equal(a, b) for a, b in zip(old, new, strict=True)]
        assert same == [name not in experts or row != 2 for row in range(len(old))]
    assert not run.records and run.expert_gradients == []
    x, _ = run._batch(4, run._data)
    assert torch.equal(x, untouched._batch(4, untouched._data)[0])  # the data to come are as they were
    experts = watched_run(COLLAPSE).model.block.experts
    before = copies(experts)
    make_alike(experts)
    for weight, old in zip(experts.parameters(), before, strict=True):
        assert torch.equal(weight, old[:1].expand_as(old))
