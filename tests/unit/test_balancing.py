"""The losses by hand, and capacity against a loop that hands out places."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import keep_within

from moe_lessons.nn import (
    Routing,
    TopKRouter,
    apply_capacity,
    expert_capacity,
    load_balancing_loss,
    router_z_loss,
)

F64 = torch.float64


def route(probs, top_k: int) -> Routing:
    """The routing of tokens whose router probabilities are the rows of `probs`."""
    probs = torch.as_tensor(probs, dtype=F64)
    weights, indices = probs.topk(top_k, dim=1)
    return Routing.from_topk(probs.log(), probs, indices, weights)


def random_routing(num_tokens: int, num_experts: int, top_k: int, seed: int = 0) -> Routing:
    torch.manual_seed(seed)
    return route(torch.randn(num_tokens, num_experts, dtype=F64).softmax(dim=1), top_k)


# --- load balancing loss -------------------------------------------------------------------------------------


def one_hot(experts: list[int], num_experts: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(experts), num_experts).to(F64)


@pytest.mark.parametrize(
    "probs, top_k, expected",
    [
        pytest.param(one_hot([0, 1, 2, 3], 4), 1, 1, id="uniform load"),
        pytest.param(torch.full((6, 4), 0.25), 2, 1, id="uniform probability"),
        pytest.param(one_hot([2, 2, 2], 4), 1, 4, id="collapsed: E"),
        # f = (1, 0), P = (.75, .25): 2·.75
        pytest.param([[0.9, 0.1], [0.6, 0.4]], 1, 1.5, id="both tokens to E0"),
        # f = (2, 1, 1)/4, P = (.55, .25, .2): 3·(.275 + .0625 + .05)
        pytest.param([[0.6, 0.3, 0.1], [0.5, 0.2, 0.3]], 2, 1.1625, id="two choices each"),
        # f = (1/3, 2/3), P = (.6, .4): 2·(.2 + .8/3), below 1
        pytest.param([[1.0, 0.0], [0.4, 0.6], [0.4, 0.6]], 1, 14 / 15, id="1 is not the least"),
    ],
)
def test_load_balancing_loss_by_hand(probs, top_k, expected):
    assert float(load_balancing_loss(route(probs, top_k))) == pytest.approx(expected)


def test_load_balancing_loss_counts_what_was_dropped():
    routing = route([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], 1)
    assert apply_capacity(routing, 1).tokens_per_expert.tolist() == [1, 1]  # of the (2, 1) that were wanted
    torch.testing.assert_close(load_balancing_loss(apply_capacity(routing, 1)), load_balancing_loss(routing))


def test_load_balancing_loss_flows_through_the_probabilities_alone():
    routing = random_routing(6, 4, 2)
    weight, probs = routing.weight.requires_grad_(), routing.router_probs.requires_grad_()
    load_balancing_loss(routing).backward()
    share = routing.tokens_per_expert / 12  # ∂/∂p of E · Σ_e f_e · mean_t p_te is E · f_e / T
    torch.testing.assert_close(probs.grad, (4 * share / 6).expand(6, 4).to(F64))
    assert weight.grad is None


def test_one_step_down_the_load_balancing_loss_evens_the_load():
    torch.manual_seed(0)
    router, x = TopKRouter(4, 4, 1), torch.randn(200, 4) + 1
    optimizer = torch.optim.SGD(router.parameters(), lr=1.0)
    before = router(x).tokens_per_expert.max()
    for _ in range(20):
        optimizer.zero_grad()
        load_balancing_loss(router(x)).backward()
        optimizer.step()
    assert router(x).tokens_per_expert.max() < before


# --- z-loss --------------------------------------------------------------------------------------------------


def test_router_z_loss_by_hand():
    def of(logits):
        logits = torch.tensor(logits, dtype=F64)
        weights, indices = logits.softmax(dim=1).topk(1)
        return float(router_z_loss(Routing.from_topk(logits, logits.softmax(dim=1), indices, weights)))

    assert of([[0.0, 0.0]]) == pytest.approx(math.log(2) ** 2)
    assert of([[0.0, 0.0], [5.0, -1000.0]]) == pytest.approx((math.log(2) ** 2 + 25) / 2)
    assert of([[-math.log(2), -math.log(2)]]) == pytest.approx(0)


def test_losses_of_no_tokens_are_zero_and_have_a_gradient():
    router = TopKRouter(4, 3, 2)
    for loss in (load_balancing_loss, router_z_loss):
        value = loss(router(torch.zeros(0, 4)))
        value.backward()
        assert value == 0 and not router.weight.grad.any()


# --- capacity ------------------------------------------------------------------------------------------------


@given(st.integers(0, 12), st.integers(1, 5), st.data(), st.integers(0, 99))
def test_capacity_equals_the_loop_that_hands_out_places(num_tokens, num_experts, data, seed):
    top_k = data.draw(st.integers(1, num_experts), label="top_k")
    routing = random_routing(num_tokens, num_experts, top_k, seed)
    carried_out = []
    for capacity in range(1, num_tokens + 2):
        limited = apply_capacity(routing, capacity)
        kept, dropped = keep_within(triples(routing), capacity, num_experts)
        assert triples(limited) == kept
        assert limited.dropped_per_expert.tolist() == dropped
        assert limited.dropped == sum(dropped) == num_tokens * top_k - len(kept)
        assert limited.dropped_share == pytest.approx(sum(dropped) / max(num_tokens * top_k, 1))
        assert torch.equal(limited.demand_per_expert, routing.demand_per_expert)
        carried_out.append(len(kept))
    assert carried_out == sorted(carried_out)  # more room never drops more
    assert carried_out[-1] == num_tokens * top_k


def triples(routing: Routing) -> list[tuple[int, int, float]]:
    return list(zip(routing.token_idx.tolist(), routing.expert_idx.tolist(), routing.weight.tolist()))


def test_first_choices_go_before_second_choices():
    """Token 0 has E1 as its second choice, token 1 as its first: with one place it is token 1 that gets it."""
    limited = apply_capacity(route([[0.6, 0.4], [0.2, 0.8]], 2), 1)
    assert [pair[:2] for pair in triples(limited)] == [(0, 0), (1, 1)]
    assert limited.dropped_per_expert.tolist() == [1, 1]


def test_twice_limited_is_limited_by_the_smaller():
    routing = random_routing(20, 3, 2)
    twice, once = apply_capacity(apply_capacity(routing, 9), 4), apply_capacity(routing, 4)
    assert triples(twice) == triples(once)
    assert torch.equal(twice.dropped_per_expert, once.dropped_per_expert)


def test_weights_that_remain_stay_as_they_are_and_keep_their_gradient():
    torch.manual_seed(0)
    router = TopKRouter(4, 3, 2)
    limited = apply_capacity(router(torch.randn(9, 4)), 3)
    assert limited.dropped > 0
    limited.weight[:1].sum().backward()
    assert router.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("twentieths", range(1, 41))
def test_expert_capacity(twentieths):
    """C = ⌈c·K·T/E⌉, exactly: 1.1·2·50/10 is 11 and not 12, though in floating point it is a little over 11."""
    for top_k, num_tokens, num_experts in itertools.product((1, 2, 3), (0, 1, 50, 64, 100, 256), (4, 10)):
        exact = math.ceil(Fraction(twentieths, 20) * top_k * num_tokens / num_experts)
        assert expert_capacity(twentieths / 20, top_k, num_tokens, num_experts) == exact


def test_a_tiny_capacity_factor_leaves_one_place():
    assert expert_capacity(1e-12, 1, 8, 4) == 1


def test_capacity_factor_1_is_enough_when_all_are_equally_busy():
    routing = route(one_hot([0, 1, 2, 3] * 5, 4), 1)
    assert apply_capacity(routing, expert_capacity(1.0, 1, 20, 4)).dropped == 0


@pytest.mark.parametrize("capacity", [0, -1, 2.5, math.inf])
def test_bad_capacity(capacity):
    with pytest.raises(ValueError, match=f"^capacity must be a whole number of at least 1, got {capacity}$"):
        apply_capacity(random_routing(3, 2, 1), capacity)


@pytest.mark.parametrize("factor", [0, -1.0, math.nan, math.inf, "1"])
def test_bad_capacity_factor(factor):
    with pytest.raises(ValueError, match=f"^capacity_factor must be a finite number above 0, got {factor!r}$"):
        expert_capacity(factor, 1, 8, 4)


def test_bad_top_k():
    with pytest.raises(ValueError, match=r"^top_k must be between 1 and num_experts \(4\), got 5$"):
        expert_capacity(1.0, 5, 8, 4)
