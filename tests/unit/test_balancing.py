"""The losses by hand, capacity against a loop that hands out places, and the bias against its two lines of text."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import keep_within, surest_first

from moe_lessons.nn import (
    ExpertChoiceRouter,
    HashRouter,
    MoE,
    Routing,
    SigmoidRouter,
    TopKRouter,
    apply_capacity,
    expert_capacity,
    load_balancing_loss,
    router_z_loss,
    update_expert_bias,
)
from moe_lessons.nn.balancing import rank_within

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


@given(st.integers(0, 10), st.integers(1, 5), st.data(), st.integers(0, 99))
def test_a_mask_leaves_the_loss_of_the_tokens_that_count(num_tokens, num_experts, data, seed):
    top_k = data.draw(st.integers(1, num_experts), label="top_k")
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=num_tokens, max_size=num_tokens)), dtype=torch.bool)
    capacity = data.draw(st.sampled_from([None, 1, 2]), label="capacity")
    routing = random_routing(num_tokens, num_experts, top_k, seed)
    alone = route(routing.router_probs[mask], top_k)
    if capacity is not None:  # the padding takes places from the others, and the demand is as it was
        routing = apply_capacity(routing, capacity)
    torch.testing.assert_close(load_balancing_loss(routing, mask), load_balancing_loss(alone))
    everyone = torch.ones(num_tokens, dtype=torch.bool)
    assert torch.equal(load_balancing_loss(routing, everyone), load_balancing_loss(routing))


def test_a_mask_by_hand():
    """Of the tokens that count, f = (1, 0) and P = (.75, .25); the padding goes to E1."""
    routing = route([[0.9, 0.1], [0.0, 1.0], [0.6, 0.4], [0.1, 0.9]], 1)
    assert float(load_balancing_loss(routing, torch.tensor([True, False, True, False]))) == pytest.approx(1.5)
    assert float(load_balancing_loss(routing)) == pytest.approx(2 * (0.5 * 0.4 + 0.5 * 0.6))


def test_masked_tokens_get_no_gradient(device):
    torch.manual_seed(0)
    router, x = TopKRouter(4, 3, 1, device=device), torch.randn(5, 4, device=device, requires_grad=True)
    mask = torch.tensor([True, False, True, True, False], device=device)
    load_balancing_loss(router(x), mask).backward()
    assert x.grad.any(dim=1).tolist() == mask.tolist()
    x.grad, router.weight.grad = None, None
    nothing = load_balancing_loss(router(x), torch.zeros_like(mask))
    nothing.backward()
    assert nothing == 0 and not x.grad.any() and not router.weight.grad.any()


def test_a_mask_works_where_tokens_have_different_numbers_of_experts():
    torch.manual_seed(0)
    routing = ExpertChoiceRouter(4, 3, 1, dtype=F64)(torch.randn(7, 4, dtype=F64))
    mask = torch.tensor([True, True, False, True, False, True, True])
    kept = [(t, e) for t, e in zip(routing.token_idx.tolist(), routing.expert_idx.tolist()) if mask[t]]
    share = [sum(e == expert for _, e in kept) / len(kept) for expert in range(3)]
    mean = [sum(routing.router_probs[t, e].item() for t in range(7) if mask[t]) / 5 for e in range(3)]
    expected = 3 * sum(f * p for f, p in zip(share, mean))
    assert load_balancing_loss(routing, mask).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "mask, got",
    [
        (torch.ones(5, dtype=torch.bool), r"torch.bool of shape \(5,\)"),
        (torch.ones(6, 1, dtype=torch.bool), r"torch.bool of shape \(6, 1\)"),
        (torch.ones(6), r"torch.float32 of shape \(6,\)"),
        (torch.ones(6, dtype=torch.int64), r"torch.int64 of shape \(6,\)"),
        ([True] * 6, "list"),
    ],
)
def test_bad_mask(mask, got):
    message = rf"^mask must be a bool tensor of shape \(6,\), got {got}$"
    with pytest.raises(ValueError, match=message):
        load_balancing_loss(random_routing(6, 3, 2), mask)


def test_two_collapsed_layers_look_even_when_pooled():
    """Why the loss is of one layer: each is at its worst, 2, and the two together look like 1."""
    layers = [route(one_hot([expert] * 6, 2), 1) for expert in (0, 1)]
    assert [float(load_balancing_loss(layer)) for layer in layers] == [2, 2]
    pooled = route(torch.cat([layer.router_probs for layer in layers]), 1)
    assert float(load_balancing_loss(pooled)) == 1


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


def test_losses_of_every_router_are_finite():
    torch.manual_seed(0)
    x, ids = torch.randn(12, 4), torch.randint(0, 9, (12,))
    routings = [make(4, 6, 2)(x) for make in (TopKRouter, SigmoidRouter, ExpertChoiceRouter)]
    for routing in (*routings, HashRouter(6, 9, 2)(x, ids)):
        assert load_balancing_loss(routing) > 0 and torch.isfinite(load_balancing_loss(routing))
        assert torch.isfinite(router_z_loss(routing))


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


@given(st.integers(0, 12), st.integers(1, 5), st.data(), st.integers(0, 99))
def test_capacity_by_weight_equals_the_loop_over_the_surest_tokens(num_tokens, num_experts, data, seed):
    top_k = data.draw(st.integers(1, num_experts), label="top_k")
    routing = random_routing(num_tokens, num_experts, top_k, seed)
    queue = surest_first(triples(routing), routing.router_probs)
    for capacity in range(1, num_tokens + 2):
        limited = apply_capacity(routing, capacity, "weight")
        kept, dropped = keep_within(queue, capacity, num_experts)
        assert triples(limited) == [triple for triple in triples(routing) if triple in kept]  # in their old order
        assert limited.dropped_per_expert.tolist() == dropped
        in_order = apply_capacity(routing, capacity)  # the same numbers of places, given to others
        assert torch.equal(limited.dropped_per_expert, in_order.dropped_per_expert)


@pytest.mark.parametrize("priority", ["order", "weight"])
@given(st.integers(0, 12), st.integers(1, 4), st.integers(0, 99))
def test_what_is_dropped_stays_on_record(priority, num_tokens, capacity, seed):
    routing = random_routing(num_tokens, 4, 2, seed)
    limited = apply_capacity(routing, capacity, priority)
    assert len(limited.dropped_token_idx) == len(limited.dropped_expert_idx) == limited.dropped
    dropped = zip(limited.dropped_token_idx.tolist(), limited.dropped_expert_idx.tolist())
    everyone = [pair[:2] for pair in triples(routing)]
    assert sorted([*(pair[:2] for pair in triples(limited)), *dropped]) == sorted(everyone)


def test_the_surest_token_is_served_first_by_hand():
    """All want E0 first and E1 second; token 2 is the surest, then token 0."""
    routing = route([[0.7, 0.3], [0.6, 0.4], [0.9, 0.1]], 2)
    assert [pair[:2] for pair in triples(apply_capacity(routing, 1, "weight"))] == [(2, 0), (2, 1)]
    assert [pair[:2] for pair in triples(apply_capacity(routing, 1, "order"))] == [(0, 0), (0, 1)]
    first_of_two = route([[0.6, 0.4], [0.1, 0.9]], 2)  # token 1 is surer, and first choices go before second ones
    assert [pair[:2] for pair in triples(apply_capacity(first_of_two, 1, "weight"))] == [(0, 0), (1, 1)]
    equal = route([[0.7, 0.3]] * 3, 1)  # as sure as each other: as they stand
    assert [pair[:2] for pair in triples(apply_capacity(equal, 2, "weight"))] == [(0, 0), (1, 0)]


@pytest.mark.parametrize("priority", ["order", "weight"])
def test_capacity_of_other_routers_gives_each_expert_its_places(priority):
    torch.manual_seed(0)
    x, ids = torch.randn(20, 4), torch.randint(0, 9, (20,))
    for routing in (ExpertChoiceRouter(4, 5, 2)(x), SigmoidRouter(4, 5, 2)(x), HashRouter(5, 9, 2)(x, ids)):
        limited = apply_capacity(routing, 3, priority)
        assert limited.tokens_per_expert.tolist() == routing.tokens_per_expert.clamp(max=3).tolist()
        assert torch.equal(limited.demand_per_expert, routing.demand_per_expert)


@pytest.mark.parametrize(
    "top_k, priority, grows, causal",
    [(1, "order", False, True), (1, "order", True, False), (2, "order", False, False), (1, "weight", False, False)],
)
def test_capacity_and_the_future(top_k, priority, grows, causal):
    """Is what the first tokens get changed by tokens that come after them? `grows`: C follows their number."""
    depends = False
    for seed in range(20):
        whole = random_routing(12, 4, top_k, seed)
        for length in range(1, 12):
            start = route(whole.router_probs[:length], top_k)
            size = {"start": length if grows else 12, "whole": 12}
            limits = {name: expert_capacity(0.5, top_k, num_tokens, 4) for name, num_tokens in size.items()}
            alone = triples(apply_capacity(start, limits["start"], priority))
            later = triples(apply_capacity(whole, limits["whole"], priority))
            depends |= sorted(alone) != sorted(triple for triple in later if triple[0] < length)
    assert causal == (not depends)


@given(st.lists(st.integers(0, 4), max_size=20))
def test_rank_within_counts_the_earlier_ones(group):
    expected = [sum(earlier == value for earlier in group[:place]) for place, value in enumerate(group)]
    assert rank_within(torch.tensor(group, dtype=torch.int64)).tolist() == expected


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
    for routing in (twice, once):
        assert len(routing.dropped_token_idx) == routing.dropped == 40 - 3 * 4
    both = [sorted(zip(r.dropped_token_idx.tolist(), r.dropped_expert_idx.tolist())) for r in (twice, once)]
    assert both[0] == both[1]


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


@pytest.mark.parametrize("num_tokens", [-1, 5.5, "8", True])
def test_bad_number_of_tokens(num_tokens):
    with pytest.raises(ValueError, match=f"^num_tokens must be a whole number of at least 0, got {num_tokens!r}$"):
        expert_capacity(1.0, 1, num_tokens, 4)


def test_a_capacity_over_64_bits_drops_nothing():
    assert apply_capacity(random_routing(9, 4, 2), expert_capacity(1e30, 2, 9, 4)).dropped == 0


def test_bad_top_k():
    with pytest.raises(ValueError, match=r"^top_k must be between 1 and num_experts \(4\), got 5$"):
        expert_capacity(1.0, 5, 8, 4)


def test_bad_priority():
    with pytest.raises(ValueError, match="^priority must be one of 'order', 'weight', got 'random'$"):
        apply_capacity(random_routing(3, 2, 1), 1, "random")


# --- the bias ------------------------------------------------------------------------------------------------


@given(st.integers(0, 12), st.integers(1, 5), st.data(), st.integers(0, 99), st.sampled_from([None, 1, 2]))
def test_bias_moves_against_the_demand_as_in_the_loop(num_tokens, num_experts, data, seed, capacity):
    top_k = data.draw(st.integers(1, num_experts), label="top_k")
    router = SigmoidRouter(3, num_experts, top_k, dtype=F64)
    router.expert_bias.copy_(torch.randn(num_experts))
    routing = random_routing(num_tokens, num_experts, top_k, seed)
    expected, wanted = router.expert_bias.tolist(), [expert for _, expert, _ in triples(routing)]
    for expert in range(num_experts):
        above = wanted.count(expert) * num_experts - len(wanted)  # E · (load - mean load), in whole numbers
        expected[expert] -= 0.01 * (above > 0) - 0.01 * (above < 0)
    limited = routing if capacity is None else apply_capacity(routing, capacity)
    update_expert_bias(router, limited, rate=0.01)  # what was dropped was wanted too
    assert router.expert_bias.tolist() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("each", [1, 257, 5001])
def test_an_even_load_moves_nothing_and_one_more_does(each, dtype):
    """Counts that bfloat16 cannot tell apart are still told apart."""
    router = SigmoidRouter(4, 3, 1)
    router.expert_bias = router.expert_bias.to(dtype)
    experts = [0, 1, 2] * each
    update_expert_bias(router, route(one_hot(experts, 3), 1), rate=0.25)
    assert router.expert_bias.tolist() == [0, 0, 0]
    update_expert_bias(router, route(one_hot([*experts, 2], 3), 1), rate=0.25)
    assert router.expert_bias.tolist() == [0.25, 0.25, -0.25]


def test_bias_update_needs_no_gradient_and_leaves_none(device):
    router, x = SigmoidRouter(4, 6, 2, device=device), torch.randn(9, 4, device=device)
    routing, before = router(x), router.expert_bias
    update_expert_bias(router, routing)
    assert router.expert_bias is before and not before.requires_grad and before.grad_fn is None
    assert set(before.abs().tolist()) <= {0.0, float(torch.tensor(1e-3))}
    routing.weight.sum().backward()  # the graph of the step before the update still holds
    update_expert_bias(router, router(x), rate=0)
    assert torch.equal(router.expert_bias, before)


def test_the_bias_may_be_a_parameter_of_ones_own_router():
    router = torch.nn.Module()
    router.expert_bias = torch.nn.Parameter(torch.zeros(2))
    update_expert_bias(router, route([[0.9, 0.1], [0.8, 0.2]], 1), rate=0.5)
    assert router.expert_bias.tolist() == [-0.5, 0.5] and router.expert_bias.is_leaf


def test_bias_updates_alone_balance_a_router():
    """The weights stand still. On points with a mean of their own, most tokens want the same experts at first."""
    for seed in range(5):
        torch.manual_seed(seed)
        router, x = SigmoidRouter(4, 8, 2), torch.randn(400, 4) + 1
        weight, before = router.weight.clone(), router(x).tokens_per_expert
        for _ in range(600):
            update_expert_bias(router, router(x), rate=1e-3)
        after = router(x).tokens_per_expert
        assert before.max() > 2 * 100 and after.max() < 1.2 * 100 and after.min() > 0.8 * 100
        assert torch.equal(router.weight, weight)


def test_bias_updates_keep_a_model_in_training_balanced():
    def busiest(rate):
        torch.manual_seed(0)
        moe = MoE(4, 8, 8, 2, router=SigmoidRouter(4, 8, 2))
        x, target = torch.randn(256, 4) + 1, torch.randn(256, 4)
        optimizer = torch.optim.Adam(moe.parameters(), lr=0.01)
        for _ in range(200):
            optimizer.zero_grad()
            y, routing = moe(x)
            (y - target).square().mean().backward()
            optimizer.step()
            update_expert_bias(moe.router, routing, rate)
        return int(moe(x)[1].tokens_per_expert.max())

    assert busiest(0.01) < 1.5 * 64 < busiest(0.0)


@pytest.mark.parametrize("make", [TopKRouter, ExpertChoiceRouter])
def test_a_bias_update_needs_a_router_with_a_bias(make):
    router = make(4, 3, 1)
    message = f"^router must have an expert_bias, as SigmoidRouter has; got {make.__name__} without one$"
    with pytest.raises(ValueError, match=message):
        update_expert_bias(router, random_routing(5, 3, 1))
    biased = TopKRouter(4, 3, 1, bias=True)  # that one is learned, and adds to the logits
    with pytest.raises(ValueError, match="got TopKRouter without one$"):
        update_expert_bias(biased, random_routing(5, 3, 1))


def test_bad_bias_updates_change_nothing():
    router = SigmoidRouter(4, 3, 1)
    with pytest.raises(ValueError, match="^routing must be of 3 experts, as the router is, got 4$"):
        update_expert_bias(router, random_routing(5, 4, 1))
    for rate in (-1, math.nan, "fast"):
        with pytest.raises(ValueError, match=f"^rate must be a finite number of at least 0, got {rate!r}$"):
            update_expert_bias(router, random_routing(5, 3, 1), rate)
    assert not router.expert_bias.any()
