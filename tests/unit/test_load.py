"""Load statistics at the loads whose answer is known, and the sentences that say what a load shows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_lessons.analysis.load import LoadStatistics, balance_by_layer, describe_load, load_statistics
from moe_lessons.nn import MoE, Routing, TopKRouter, apply_capacity
from moe_lessons.training import load_share


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=12).filter(any))
def test_the_formulas(counts):
    mean = sum(counts) / len(counts)
    shares = [count / sum(counts) for count in counts]
    statistics = load_statistics(counts)
    entropy = -sum(p * math.log(p) for p in shares if p > 0)
    variance = sum((count - mean) ** 2 for count in counts) / len(counts)
    assert statistics.max_over_mean == pytest.approx(max(counts) / mean)
    assert statistics.entropy == pytest.approx(entropy / math.log(len(counts)))
    assert statistics.coefficient_of_variation == pytest.approx(math.sqrt(variance) / mean, abs=1e-9)
    assert statistics.dead == sum(share < 0.01 for share in shares)


def test_counts_shares_tensors_and_a_routing_say_the_same_and_no_tokens_are_even():
    assert load_statistics([12]) == load_statistics([0, 0, 0, 0]) == LoadStatistics(1.0, 1.0, 0.0, 0)
    assert load_statistics(TopKRouter(4, 3, 2)(torch.zeros(0, 4))).dead == 0
    routing = MoE(8, 4, 6, top_k=2)(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)))[1]
    counts = routing.demand_per_expert
    expected = load_statistics(routing)
    for load in (counts, counts.tolist(), load_share(routing), load_share(routing).tolist(), counts.numpy()):
        statistics = load_statistics(load, top_k=2)
        assert statistics.dead == expected.dead
        assert statistics.entropy == pytest.approx(expected.entropy)
        assert statistics.coefficient_of_variation == pytest.approx(expected.coefficient_of_variation, rel=1e-5)
    assert load_statistics(apply_capacity(routing, 3)) == expected  # what is dropped counts as wanted


@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("num_tokens", [1, 100, 256, 300, 700])
@pytest.mark.parametrize("wanted", [0, 1, 2, 3, 4, 7, 8])  # by so many tokens; from 1 % on alive
def test_an_expert_is_dead_by_shares_exactly_where_it_is_by_tokens(num_tokens, top_k, wanted):
    wanted = min(wanted, num_tokens)
    counts = torch.tensor([wanted, *[(num_tokens * top_k - wanted) / 4] * 4], dtype=torch.float64)
    expected = sum(100 * count < num_tokens for count in counts.tolist())
    for load in (counts, (counts / counts.sum()).float().tolist()):
        assert load_statistics(load, top_k).dead == expected


UNDER, EVEN = "under 1 % of the tokens. The busiest, E3, has", "times the even share."
DROPPED = "of the assignments are dropped: their experts are full."


@pytest.mark.parametrize(
    "load, options, sentence",
    [
        ([1] * 8, {}, "All 8 experts work; each has about the even share."),
        ([1, 1, 2, 1, 1, 1, 1, 1], {}, "All 8 experts work; the busiest, E2, has 1.8 times the even share."),
        ([0, 1, 0, 3, 0, 1, 1, 1], {"top_k": 2}, f"3 of 8 experts are dead: they receive {UNDER} 3.4 {EVEN}"),
        ([1, 0, 1, 2], {}, f"1 of 4 experts is dead: it receives {UNDER} 2.0 {EVEN}"),
        ([1], {}, "Every token goes to its one expert: this mixture is dense."),
        ([1] * 8, {"top_k": 8}, "Every token goes to all 8 experts: this mixture is dense."),
        ([1] * 8, {"dropped_share": 0.4}, f"All 8 experts work; each has about the even share. 40.0 % {DROPPED}"),
        ([1], {"dropped_share": 0.9}, f"Every token asks for its one expert: this mixture is dense. 90.0 % {DROPPED}"),
    ],
)
def test_what_a_load_shows_in_words(load, options, sentence):
    assert describe_load(load, **options) == sentence
    assert describe_load([x / sum(load) for x in load], **options) == sentence
    assert describe_load(torch.tensor(load), **options) == sentence


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
    with pytest.raises(ValueError, match="^routings must be a list with one Routing for each MoE layer, got a Routing"):
        balance_by_layer(routings[0])
