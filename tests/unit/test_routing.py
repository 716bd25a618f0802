"""Every router against its paper in plain loops, what training adds to it, and the Routing that it returns."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_same, assignments_of, refused
from torch import nn

from moe_lessons.nn import (
    ExpertChoiceRouter,
    FrozenRouter,
    HashRouter,
    MoE,
    NoisyTopKRouter,
    Routing,
    SigmoidRouter,
    TopKRouter,
)
from moe_lessons.nn.balancing import apply_capacity, load_balancing_loss

F64 = torch.float64


def pairs(routing: Routing) -> list[tuple[int, int]]:
    return list(zip(routing.token_idx.tolist(), routing.expert_idx.tolist()))


@st.composite
def cases(draw, kind):
    """A router of this kind, in float64, with random weights and biases; and its x (T, D)."""
    d_model, num_experts = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    options = {"bias": draw(st.booleans())}
    if kind is ExpertChoiceRouter:
        num_experts = max(num_experts, 2)  # of one expert all probabilities are 1: no order
    if kind in (TopKRouter, SigmoidRouter):
        options["norm_topk_prob"] = draw(st.sampled_from([None, True, False]))
    sizes = (d_model, num_experts, draw(st.integers(1, num_experts)))
    torch.manual_seed(draw(st.integers(0, 99)))
    router = kind(*sizes, **options).double()
    if options["bias"]:
        nn.init.normal_(router.bias)
    if kind is SigmoidRouter:
        router.expert_bias.normal_().mul_(draw(st.sampled_from([0.0, 0.3, 5.0])))
    return router, torch.randn(draw(st.integers(0, 9)), d_model, dtype=F64, requires_grad=True)


@pytest.mark.parametrize("kind", [TopKRouter, SigmoidRouter, ExpertChoiceRouter])
@given(data=st.data())
def test_equals_the_loop_over_tokens(kind, data):
    router, x = data.draw(cases(kind))
    routing, expected = router(x), assignments_of(router, x)
    assert pairs(routing) == [assignment[:2] for assignment in expected]
    weights = torch.stack([weight for _, _, weight in expected]) if expected else x.new_zeros(0)
    assert_same(routing.weight, weights, (x, *router.parameters()))
    scores = routing.router_logits.sigmoid() if kind is SigmoidRouter else routing.router_logits.exp()
    torch.testing.assert_close(routing.router_probs, scores / scores.sum(dim=1, keepdim=True))
    assert (routing.num_tokens, routing.num_experts, routing.dropped) == (len(x), router.num_experts, 0)
    counted = [sum(expert == e for _, expert in pairs(routing)) for e in range(router.num_experts)]
    assert routing.tokens_per_expert.tolist() == routing.demand_per_expert.tolist() == counted
    if kind is ExpertChoiceRouter:
        assert counted == [math.ceil(router.top_k * len(x) / router.num_experts)] * router.num_experts  # even, always
    else:
        assert routing.topk_indices.shape == routing.topk_weights.shape == (len(x), router.top_k)
        assert [(t, e) for choice in routing.topk_indices.T.tolist() for t, e in enumerate(choice)] == pairs(routing)


def test_scores_that_vanish_give_no_nan():
    router = SigmoidRouter(1, 4, 2)
    router.weight.data.fill_(1)
    routing = router(torch.full((3, 1), -1000.0))  # sigmoid(-1000) is 0 in float32
    assert not routing.weight.any() and routing.router_probs.isfinite().all()
    routing.weight.sum().backward()
    assert router.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    "router",
    [
        TopKRouter(4, 8, 2, jitter_noise=0.1),
        TopKRouter(4, 8, 1, jitter_noise=0.1),
        NoisyTopKRouter(4, 8, 2, noise="learned"),
        NoisyTopKRouter(4, 8, 2, noise="gaussian"),
        FrozenRouter(4, 8, 2, noise_std=0.5),
    ],
    ids=repr,
)
def test_noise_is_for_training_alone_and_follows_the_seed(router):
    x, plain = torch.randn(5, 4), TopKRouter(4, 8, router.top_k)
    plain.weight = router.weight
    clean = plain(x).router_logits

    def logits(seed):
        torch.manual_seed(seed)
        return router(x).router_logits

    assert torch.equal(logits(1), logits(1)) and not torch.equal(logits(1), logits(2))
    assert not torch.equal(logits(1), clean)
    router.eval()
    before = torch.get_rng_state()
    assert torch.equal(router(x).router_logits, clean) and torch.equal(router(x).expert_idx, plain(x).expert_idx)
    assert torch.equal(torch.get_rng_state(), before), "a router in eval mode has drawn random numbers"
    router.train().jitter_noise = router.noise_std = 0.0  # they may be changed at any time
    assert torch.equal(router(x).router_logits, clean) != (getattr(router, "noise", None) == "learned")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, F64])
def test_jitter_multiplies_by_what_lies_evenly_around_1(dtype, device):
    """Through a router that hands on its input: x is all ones, so the logits are the factors themselves."""
    torch.manual_seed(0)
    router = TopKRouter(4, 4, 1, jitter_noise=0.01).to(device, dtype)
    router.weight.data = torch.eye(4, device=device, dtype=router.weight.dtype)
    x = torch.ones(5000, 4, device=device, dtype=dtype)
    factors = router(x).router_logits.detach().double()
    assert 0.99 - 1e-6 <= factors.min() < 0.9901 and 1.0099 < factors.max() <= 1.01 + 1e-6
    assert float(factors.mean()) == pytest.approx(1, abs=2e-4)
    assert float(factors.std()) == pytest.approx(0.01 / 3**0.5, rel=0.02)


def test_learned_noise_is_shazeers_and_learns():
    """arXiv:1701.06538, eq. 4, and the 0.01 of its code: noise of log 2 + 0.01 at the start."""
    router, x = NoisyTopKRouter(4, 8, 2).double(), torch.randn(5, 4, dtype=F64)
    assert not router.noise_weight.any()
    for weight in (torch.zeros(8, 4, dtype=F64), torch.randn(8, 4, dtype=F64)):
        router.noise_weight.data = weight
        torch.manual_seed(3)
        noise = router(x).router_logits - router.router_logits(x)
        torch.manual_seed(3)
        std = torch.log(1 + torch.exp(x @ weight.T)) + 0.01 if weight.any() else math.log(2) + 0.01
        torch.testing.assert_close(noise, torch.randn(5, 8, dtype=F64) * std)
    router(x).topk_weights[:, 0].sum().backward()
    assert router.noise_weight.grad.abs().sum() > 0


@pytest.mark.parametrize("capacity_factor", [None, 1.0])
def test_a_frozen_router_chooses_as_top_k_does_and_only_its_input_has_a_gradient(capacity_factor):
    outputs = []
    for router in ("top-k", "frozen"):
        torch.manual_seed(0)
        moe, x = MoE(4, 6, 8, 2, router=router, capacity_factor=capacity_factor), torch.randn(9, 4, requires_grad=True)
        y, routing = moe(x)
        (y.sum() + load_balancing_loss(routing)).backward()
        outputs.append((y, routing.expert_idx, x.grad, *(p.grad for p in moe.experts.parameters())))
        assert (routing.dropped > 0) == (capacity_factor is not None)
        assert (moe.router.weight.grad is None) == (router == "frozen")
    assert all(torch.equal(top_k, frozen) for top_k, frozen in zip(*outputs, strict=True))
    assert not any(p.requires_grad for p in FrozenRouter(4, 8, 2, bias=True).parameters())


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_an_id_has_its_experts_wherever_it_stands(top_k, device):
    router, ids = HashRouter(8, 50, top_k).to(device), torch.randint(0, 50, (200,), device=device)
    routing = router(torch.randn(200, 4, device=device), ids)
    experts = {}
    for token_id, chosen in zip(ids.tolist(), routing.topk_indices.tolist()):
        assert experts.setdefault(token_id, chosen) == chosen and len(set(chosen)) == top_k
    assert len({tuple(chosen) for chosen in experts.values()}) > 1 or top_k == 8
    torch.testing.assert_close(routing.weight, torch.full_like(routing.weight, 1 / top_k))
    probs = torch.zeros_like(routing.router_probs)
    probs[routing.token_idx, routing.expert_idx] = 1 / top_k
    torch.testing.assert_close(routing.router_probs, probs)
    torch.testing.assert_close(routing.router_logits.exp(), probs)
    same, other = HashRouter(8, 50, top_k), HashRouter(8, 50, top_k, seed=1)
    assert torch.equal(router.table.cpu(), same.table) and not torch.equal(same.table, other.table)


def test_topk_views_need_the_same_number_for_each_token():
    uneven, even = ExpertChoiceRouter(1, 2, 1)(torch.ones(3, 1)), TopKRouter(1, 3, 1)(torch.ones(3, 1))
    for routing, got in ((uneven, "4 assignments with 0"), (apply_capacity(even, 2), "2 assignments with 1")):
        allowed = "need the same number of experts for each of the 3 tokens"
        with refused(f"topk_indices and topk_weights {allowed}, got {got} dropped; use token_idx, expert_idx"):
            _ = routing.topk_indices
    assert torch.equal(apply_capacity(even, 3).topk_indices, even.topk_indices)
    assert torch.equal(apply_capacity(even, 3).topk_weights, even.topk_weights)
