"""Load statistics and their sentences where the answer is known; gradients of a collapse by hand."""

import copy
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from moe_lessons.analysis import balance_by_layer, collapse, load_statistics, replicate
from moe_lessons.analysis.collapse import (
    GRADIENTS,
    LEARNS,
    cut_gradient,
    practise,
    practised_band,
    watched_run,
    weight_gradients,
)
from moe_lessons.analysis.load import LoadStatistics, describe_load
from moe_lessons.exercises.lesson_07 import my_logit_gradient
from moe_lessons.nn import MoE, Routing, TopKRouter, apply_capacity
from moe_lessons.training import PRESETS, Run, SeedBand, load_share, plane_runs


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=12).filter(any))
def test_the_formulas(counts):
    mean = sum(counts) / len(counts)
    statistics = load_statistics(counts)
    assert statistics.max_over_mean == pytest.approx(max(counts) / mean)
    assert statistics.dead == sum(count / sum(counts) < 0.01 for count in counts)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=4), st.integers(0, 5))
def test_no_other_replicas_leave_the_busiest_slot_fewer_rows(counts, spare):
    rows, slots = torch.tensor(counts, dtype=torch.float64), len(counts) + spare
    ways = [way for way in product(range(1, spare + 2), repeat=len(counts)) if sum(way) == slots]
    chosen = replicate(rows, slots)
    assert tuple(chosen.tolist()) in ways
    assert (rows / chosen).max() == min((rows / torch.tensor(way)).max() for way in ways)


def test_counts_shares_tensors_and_a_routing_say_the_same_and_no_tokens_are_even():
    assert load_statistics([12]) == load_statistics([0, 0, 0, 0]) == LoadStatistics(1.0, 0)
    assert load_statistics(TopKRouter(4, 3, 2)(torch.zeros(0, 4))).dead == 0
    routing = MoE(8, 4, 6, top_k=2)(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)))[1]
    counts = routing.demand_per_expert
    expected = load_statistics(routing)
    for load in (counts, counts.tolist(), load_share(routing), load_share(routing).tolist(), counts.numpy()):
        statistics = load_statistics(load, top_k=2)
        assert statistics.dead == expected.dead
        assert statistics.max_over_mean == pytest.approx(expected.max_over_mean)
    assert load_statistics(apply_capacity(routing, 3)) == expected  # what is dropped counts as wanted


@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("num_tokens", [1, 100, 300])
@pytest.mark.parametrize("wanted", [0, 1, 2, 3, 4])  # by so many tokens; from 1 % on alive
def test_an_expert_is_dead_by_shares_exactly_where_it_is_by_tokens(num_tokens, top_k, wanted):
    wanted = min(wanted, num_tokens)
    counts = torch.tensor([wanted, *[(num_tokens * top_k - wanted) / 4] * 4], dtype=torch.float64)
    expected = sum(100 * count < num_tokens for count in counts.tolist())
    for load in (counts, (counts / counts.sum()).float().tolist()):
        assert load_statistics(load, top_k).dead == expected


@pytest.mark.parametrize(
    "load, options, said",
    [
        ([1] * 8, {}, ["All 8 experts", "uniform"]),
        ([1, 1, 2, 1, 1, 1, 1, 1], {}, ["All 8 experts", "E2", "1.8 times"]),
        ([0, 1, 0, 3, 0, 1, 1, 1], {"top_k": 2}, ["3 of 8 experts are dead", "E3", "3.4 times"]),
        ([1], {"dropped_share": 0.9}, ["dense", "90.0 %"]),
    ],
)
def test_what_a_load_shows_in_words(load, options, said):
    assert all(part in "".join(describe_load(load, **options)) for part in said)


def test_layers_are_not_pooled():
    routings = []
    for logits in 50 * torch.eye(4)[:, None].expand(4, 40, 4):  # each layer collapsed onto another expert
        probs = logits.softmax(dim=1)
        weight, index = probs.topk(1)
        routings.append(Routing.from_topk(logits, probs, index, weight))
    meter = balance_by_layer([apply_capacity(routings[0], 10), *routings[1:]])
    assert meter["dead"].tolist() == [3] * 4 and meter["dropped_share"].tolist() == [0.75, 0, 0, 0]
    assert meter["max_over_mean"].tolist() == pytest.approx([4] * 4)
    assert meter["load_balancing_loss"].tolist() == pytest.approx([4] * 4)
    pooled = sum(routing.demand_per_expert for routing in routings)
    assert load_statistics(pooled).dead == 0 and load_statistics(pooled).max_over_mean == 1


COLLAPSE = PRESETS["collapse"]


def copies(module) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in module.parameters()]


def test_a_watched_run_trains_as_a_plain_one():
    watched, plain = watched_run(COLLAPSE, seed=3), plane_runs(COLLAPSE, seed=3)["MoE"]
    for _ in range(5):
        assert replace(watched.step(), ms_per_step=0) == replace(plain.step(), ms_per_step=0)
    assert len(watched.expert_gradients) == 5
    block = watched.model.block
    for e in range(8):
        everything = torch.cat([weight.grad[e].flatten() for weight in block.experts.parameters()])
        assert watched.expert_gradients[-1][e] == pytest.approx(everything.norm().item(), rel=1e-5)


@pytest.mark.parametrize("learns", LEARNS)
def test_what_does_not_learn_stands_still(learns):
    run = watched_run(COLLAPSE, learns=learns)
    before = {name: weight.detach().clone() for name, weight in run.model.named_parameters()}
    for _ in range(3):
        run.step()
    changed = {name for name, weight in run.model.named_parameters() if not torch.equal(weight, before[name])}
    router = {"block.router.weight"}
    expected = {"all": set(before), "router only": router, "all but the router": set(before) - router}
    assert changed == expected[learns]
    assert (np.max(run.expert_gradients) == 0) == (learns == "router only")


def test_a_logit_keeps_the_gradient_of_its_own_tokens_or_of_the_others_and_together_they_are_all():
    found = {}
    for gradient in GRADIENTS:
        run, band = watched_run(COLLAPSE, gradient=gradient), SeedBand(COLLAPSE, [0])
        cut_gradient(band.model, gradient)
        run.step(), band.step()
        (weight,) = (w.grad for name, w in band.model.named_parameters() if "router" in name and w.grad is not None)
        assert torch.allclose(run.model.block.router.weight.grad, weight, atol=1e-6)
        found[gradient] = weight
    both, own, others = found.values()
    assert torch.allclose(own + others, both, atol=1e-6) and own.norm() > 0 < others.norm()
    with pytest.raises(ValueError, match="^gradient must be one of 'both terms', .*, got 'own'$"):
        cut_gradient(run.model, "own")


def test_gradients_on_the_logits_against_finite_differences(monkeypatch):
    """The gradient of each token, by that on its weight and the formula of lesson 07."""
    run = watched_run(COLLAPSE)
    run.step()
    monkeypatch.setattr(collapse, "NUM_POINTS", 64)
    probs, chosen, by_weight = weight_gradients(run)
    found = torch.stack([my_logit_gradient(*each) for each in zip(probs, chosen, by_weight, strict=True)])  # (T, E)
    model, router = run.model.double(), run.model.block.router
    x, y = run.task.batch(64, torch.Generator().manual_seed(run.seed + 1_000_003))
    plain = router.choice_logits
    with torch.no_grad():

        def loss_when_shifted(shift):
            router.choice_logits = lambda hidden: plain(hidden) + shift
            return F.cross_entropy(model(x.double())[0], y).item()

        for expert in range(8):
            for tokens in (chosen == expert, chosen != expert):
                shift = torch.zeros(64, 8, dtype=torch.float64)
                shift[tokens, expert] = 1e-6
                slope = (loss_when_shifted(shift) - loss_when_shifted(-shift)) / 2e-6
                assert found[tokens, expert].sum().item() == pytest.approx(slope, abs=1e-5)


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
    for name, old in untouched.model.named_parameters():
        same = [torch.equal(a, b) for a, b in zip(old, run.model.get_parameter(name), strict=True)]
        assert same == [".experts." not in name or row != 2 for row in range(len(old))]
    assert not run.records and run.expert_gradients == []
    x, _ = run.draw(4, run.generators)
    assert torch.equal(x, untouched.draw(4, untouched.generators)[0])  # the data to come are as they were
    band = practised_band(COLLAPSE, steps=2)
    practise(run := watched_run(COLLAPSE), 2, steps=2)
    for name, weight in band.model.block.experts.named_parameters():
        nobody, *own = weight.chunk(9)
        assert torch.equal(nobody, untouched.model.block.experts.get_parameter(name))
        assert torch.equal(own[2], run.model.block.experts.get_parameter(name))
        for expert, each in enumerate(own):
            changed = (each != nobody).flatten(1).any(dim=1).tolist()
            assert changed == [other == expert for other in range(8)]
