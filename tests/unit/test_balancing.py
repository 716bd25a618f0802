"""The losses by hand, capacity against a loop that hands out places, and the bias against its two lines of text."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import keep_within, surest_first

from moe_lessons.nn import ExpertChoiceRouter, HashRouter, Routing, SigmoidRouter, TopKRouter, apply_capacity
from moe_lessons.nn.balancing import expert_capacity, load_balancing_loss, router_z_loss, update_expert_bias

F64 = torch.float64
priorities = pytest.mark.parametrize("priority", ["order", "weight"])


def route(probs, top_k: int) -> Routing:
    """The routing of tokens whose router probabilities are the rows of `probs`."""
    probs = torch.as_tensor(probs, dtype=F64)
    weights, indices = probs.topk(top_k, dim=1)
    return Routing.from_topk(probs.log(), probs, indices, weights)


def random_routing(num_tokens: int, num_experts: int, top_k: int, seed: int = 0) -> Routing:
    torch.manual_seed(seed)
    return route(torch.randn(num_tokens, num_experts, dtype=F64).softmax(dim=1), top_k)


@st.composite
def routings(draw):
    """By tokens that choose their experts, or by experts that choose their tokens."""
    num_experts = draw(st.integers(1, 5))
    top_k, num_tokens, seed = draw(st.integers(1, num_experts)), draw(st.integers(0, 12)), draw(st.integers(0, 99))
    if draw(st.booleans()):
        return random_routing(num_tokens, num_experts, top_k, seed)
    torch.manual_seed(seed)
    return ExpertChoiceRouter(3, num_experts, top_k).double()(torch.randn(num_tokens, 3, dtype=F64))


def one_hot(experts: list[int], num_experts: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(experts), num_experts).to(F64)


def triples(routing: Routing) -> list[tuple[int, int, float]]:
    return list(zip(routing.token_idx.tolist(), routing.expert_idx.tolist(), routing.weight.tolist()))


def pairs(routing: Routing) -> list[tuple[int, int]]:
    return [triple[:2] for triple in triples(routing)]


def dropped_pairs(routing: Routing) -> list[tuple[int, int]]:
    return list(zip(routing.dropped_token_idx.tolist(), routing.dropped_expert_idx.tolist()))


@given(routings(), st.sampled_from([None, 1, 2]))
def test_load_balancing_loss_equals_its_formula_in_loops(routing, capacity):
    num_tokens, num_experts, chosen = routing.num_tokens, routing.num_experts, [expert for _, expert in pairs(routing)]
    loss = load_balancing_loss(routing if capacity is None else apply_capacity(routing, capacity))
    share = [chosen.count(expert) / max(len(chosen), 1) for expert in range(num_experts)]
    mean = [sum(probs) / max(num_tokens, 1) for probs in routing.router_probs.T.tolist()]
    assert loss.item() == pytest.approx(num_experts * sum(f * p for f, p in zip(share, mean)))


def test_router_z_loss_by_hand():
    logits = torch.tensor([[0.0, 0.0], [5.0, -1000.0], [-math.log(2), -math.log(2)]], dtype=F64)
    weights, indices = logits.softmax(dim=1).topk(1)
    routing = Routing.from_topk(logits, logits.softmax(dim=1), indices, weights)
    assert float(router_z_loss(routing)) == pytest.approx((math.log(2) ** 2 + 25 + 0) / 3)


@pytest.mark.parametrize("loss", [load_balancing_loss, router_z_loss])
def test_losses_of_no_tokens_are_zero_and_of_every_router_finite(loss):
    torch.manual_seed(0)
    router, x = TopKRouter(4, 6, 2), torch.randn(12, 4)
    nothing = loss(router(x[:0]))
    nothing.backward()
    assert nothing == 0 and not router.weight.grad.any()
    hashed = HashRouter(6, 9, 2)(x, torch.arange(12) % 9)
    assert torch.isfinite(loss(hashed)) and torch.isfinite(loss(router(x)))


@priorities
@given(routings())
def test_capacity_equals_the_loop_that_hands_out_places(priority, routing):
    queue = triples(routing) if priority == "order" else surest_first(triples(routing), routing.router_probs)
    carried_out = []
    for capacity in range(1, routing.num_tokens + 2):
        limited = apply_capacity(routing, capacity, priority)
        kept, dropped = keep_within(queue, capacity, routing.num_experts)
        assert triples(limited) == [triple for triple in triples(routing) if triple in kept]  # in their old order
        assert limited.dropped_per_expert.tolist() == dropped and limited.dropped == sum(dropped)
        assert limited.dropped_share == pytest.approx(sum(dropped) / max(len(queue), 1))
        assert torch.equal(limited.demand_per_expert, routing.demand_per_expert)
        for each in (limited, apply_capacity(limited, 1, priority)):  # what is dropped is on record, also in two times
            assert sorted(pairs(each) + dropped_pairs(each)) == sorted(pairs(routing))
        carried_out.append(len(kept))
    assert carried_out == sorted(carried_out) and carried_out[-1] == len(queue)  # more room never drops more


@pytest.mark.parametrize(
    "factor, top_k, num_tokens, num_experts, capacity",
    [(1, 2, 12, 4, 6), (1.25, 1, 9, 4, 3), (1.1, 2, 50, 10, 11), (0.5, 1, 0, 4, 0), (1e-12, 1, 8, 4, 1)],
)
def test_expert_capacity(factor, top_k, num_tokens, num_experts, capacity):
    """C = ⌈c·K·T/E⌉, exactly: 1.1·2·50/10 is 11 and not 12, though in floating point it is a little over 11."""
    assert expert_capacity(factor, top_k, num_tokens, num_experts) == capacity
    huge = expert_capacity(1e30, 2, 9, 4)  # over 64 bits
    assert apply_capacity(random_routing(9, 4, 2), huge).dropped == 0


@given(routings(), st.sampled_from([None, 1, 2]))
def test_bias_moves_against_the_demand_as_in_the_loop(routing, capacity):
    num_experts, wanted = routing.num_experts, [expert for _, expert in pairs(routing)]
    router = SigmoidRouter(3, num_experts, 1).double()
    router.expert_bias.copy_(torch.randn(num_experts))
    expected = router.expert_bias.tolist()
    for expert in range(num_experts):
        above = wanted.count(expert) * num_experts - len(wanted)  # E · (load - mean load), in whole numbers
        expected[expert] -= 0.01 * (above > 0) - 0.01 * (above < 0)
    limited = routing if capacity is None else apply_capacity(routing, capacity)
    update_expert_bias(router, limited, rate=0.01)  # what was dropped was wanted too
    assert router.expert_bias.tolist() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("each", [1, 257, 5001])
def test_an_even_load_moves_nothing_and_one_more_does(each, dtype):
    router = SigmoidRouter(4, 3, 1)
    router.expert_bias = router.expert_bias.to(dtype)
    experts = [0, 1, 2] * each
    update_expert_bias(router, route(one_hot(experts, 3), 1), rate=0.25)
    assert router.expert_bias.tolist() == [0, 0, 0]
    update_expert_bias(router, route(one_hot([*experts, 2], 3), 1), rate=0.25)
    assert router.expert_bias.tolist() == [0.25, 0.25, -0.25]
