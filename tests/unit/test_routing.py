"""Routers and the Routing that they return."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import choose

from moe_lessons.errors import NonFiniteError
from moe_lessons.nn import MoE, NoisyTopKRouter, Routing, SwitchRouter, TopKRouter, apply_capacity

F64 = torch.float64


def router_with_probs(probs: list[float], top_k: int, **kwargs) -> TopKRouter:
    """A router for x = [[1.]] whose probabilities are `probs`."""
    router = TopKRouter(1, len(probs), top_k, dtype=F64, **kwargs)
    router.weight.data = torch.tensor(probs, dtype=F64).log()[:, None]
    return router


@st.composite
def routers(draw):
    num_experts = draw(st.integers(1, 7))
    top_k = draw(st.integers(1, num_experts))
    norm = draw(st.sampled_from([None, True, False]))
    torch.manual_seed(draw(st.integers(0, 99)))
    router = TopKRouter(draw(st.integers(1, 5)), num_experts, top_k, norm_topk_prob=norm, dtype=F64)
    return router, torch.randn(draw(st.integers(0, 9)), router.d_model, dtype=F64)


@given(routers())
def test_equals_the_loop_over_tokens(case):
    router, x = case
    expected = choose(x, router.weight, router.top_k, router.norm_topk_prob)
    routing = router(x)
    assert list(zip(routing.token_idx.tolist(), routing.expert_idx.tolist())) == [a[:2] for a in expected]
    torch.testing.assert_close(routing.weight.tolist(), [a[2].item() for a in expected])
    torch.testing.assert_close(routing.router_probs.sum(dim=1), torch.ones(len(x), dtype=F64))
    assert routing.router_logits.shape == (len(x), router.num_experts)


@given(routers())
def test_views(case):
    router, x = case
    routing = router(x)
    assert (routing.num_tokens, routing.num_experts, routing.dropped) == (len(x), router.num_experts, 0)
    assert routing.topk_indices.shape == routing.topk_weights.shape == (len(x), router.top_k if len(x) else 0)
    counted = [int((routing.expert_idx == e).sum()) for e in range(router.num_experts)]
    assert routing.tokens_per_expert.tolist() == routing.demand_per_expert.tolist() == counted
    probs = routing.router_probs.gather(1, routing.topk_indices)
    assert torch.equal(probs, probs.sort(dim=1, descending=True).values)  # best first


@pytest.mark.parametrize("top_k, norm, kept", [(1, None, False), (2, None, True), (1, True, True), (2, False, False)])
def test_renormalising_is_the_default_for_more_than_one(top_k, norm, kept):
    assert TopKRouter(4, 8, top_k, norm_topk_prob=norm).norm_topk_prob is kept


def test_weights_by_hand():
    x = torch.ones(1, 1, dtype=F64)
    probs = [0.2, 0.5, 0.3]
    assert router_with_probs(probs, 2)(x).topk_indices.tolist() == [[1, 2]]
    assert router_with_probs(probs, 2)(x).weight.tolist() == pytest.approx([0.625, 0.375])
    assert router_with_probs(probs, 2, norm_topk_prob=False)(x).weight.tolist() == pytest.approx([0.5, 0.3])
    assert router_with_probs(probs, 1)(x).weight.tolist() == pytest.approx([0.5])
    assert router_with_probs(probs, 1, norm_topk_prob=True)(x).weight.tolist() == [1.0]
    assert router_with_probs(probs, 3)(x).weight.tolist() == pytest.approx([0.5, 0.3, 0.2])


@pytest.mark.parametrize("norm, has_gradient", [(None, True), (False, True), (True, False)])
def test_a_single_renormalised_weight_gives_no_gradient(norm, has_gradient, device):
    router = TopKRouter(4, 8, 1, norm_topk_prob=norm, dtype=F64, device=device)
    weight = router(torch.randn(5, 4, dtype=F64, device=device)).weight
    (weight * torch.randn_like(weight)).sum().backward()
    assert bool(router.weight.grad.abs().max() > 1e-6) == has_gradient  # what is left of zero is rounding


def test_ties_choose_k_different_experts():
    router = TopKRouter(4, 6, 3)
    router.weight.data.zero_()
    routing = router(torch.randn(5, 4))
    assert all(len(set(row)) == 3 for row in routing.topk_indices.tolist())
    torch.testing.assert_close(routing.weight, torch.full((15,), 1 / 3))


def test_bias_shifts_the_logits():
    router = TopKRouter(4, 3, 1, bias=True)
    x = torch.randn(5, 4)
    torch.testing.assert_close(router(x).router_logits, x @ router.weight.T)  # it starts at zero
    router.bias.data = torch.tensor([0.0, 0.0, 100.0])
    assert router(x).expert_idx.tolist() == [2] * 5


@pytest.mark.parametrize("top_k", [1, 2])
def test_computes_in_float32_whatever_comes_in(top_k, device):
    router = TopKRouter(64, 8, top_k, device=device, dtype=torch.bfloat16)
    assert router.weight.dtype == torch.float32
    x = torch.randn(50, 64, device=device, dtype=torch.bfloat16)
    exact = router(x.float())
    with torch.autocast(device, torch.bfloat16):
        for routing in (router(x), router(x.float())):
            assert routing.router_logits.dtype == routing.weight.dtype == torch.float32
            assert torch.equal(routing.router_logits, exact.router_logits)
    assert TopKRouter(4, 8, top_k, dtype=F64)(torch.zeros(1, 4, dtype=F64)).weight.dtype == F64


def test_a_routing_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TopKRouter(4, 3, 1)(torch.randn(5, 4)).weight = None


def test_topk_views_need_the_same_number_for_each_token():
    routing = Routing.from_topk(torch.zeros(3, 2), torch.ones(3, 2) / 2, torch.zeros(3, 1).long(), torch.ones(3, 1))
    with pytest.raises(ValueError, match="same number of experts for each of the 3 tokens, got 2 .* with 1 dropped"):
        _ = apply_capacity(routing, 2).topk_indices


def test_what_was_dropped_stands_in_the_demand_alone():
    probs = torch.tensor([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]])
    routing = dataclasses.replace(
        Routing.from_topk(probs.log(), probs, probs.argmax(dim=1, keepdim=True), probs.amax(dim=1, keepdim=True)),
        dropped_token_idx=torch.tensor([2, 1, 0]),
        dropped_expert_idx=torch.tensor([0, 1, 1]),
    )
    assert routing.tokens_per_expert.tolist() == [2, 1]
    assert routing.dropped_per_expert.tolist() == [1, 2]
    assert routing.demand_per_expert.tolist() == [3, 3]
    assert (routing.dropped, routing.dropped_share) == (3, 0.5)


# --- switch --------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(0, 8), st.integers(0, 99))
def test_switch_takes_the_best_with_its_raw_probability(num_experts, num_tokens, seed):
    torch.manual_seed(seed)
    router, x = SwitchRouter(3, num_experts, dtype=F64), torch.randn(num_tokens, 3, dtype=F64)
    routing, expected = router(x), choose(x, router.weight, 1, norm=False)
    assert list(zip(routing.token_idx.tolist(), routing.expert_idx.tolist())) == [a[:2] for a in expected]
    torch.testing.assert_close(routing.weight.tolist(), [a[2].item() for a in expected])


def test_switch_learns_from_the_task_and_its_renormalised_twin_does_not():
    torch.manual_seed(0)
    x, target = torch.randn(20, 4, dtype=F64), torch.randn(20, 4, dtype=F64)
    gradients = []
    for router in (SwitchRouter(4, 5, dtype=F64), TopKRouter(4, 5, 1, norm_topk_prob=True, dtype=F64)):
        (MoE(4, 8, 5, 1, router=router, dtype=F64)(x)[0] - target).square().sum().backward()
        gradients.append(float(router.weight.grad.abs().max()))
    assert gradients[0] > 0.01 and gradients[1] < 1e-14  # p / p is 1: what is left of zero is rounding


def test_switch_is_top_1_and_nothing_else():
    router = SwitchRouter(4, 8, jitter_noise=0.1, bias=True, dtype=F64)
    assert (router.top_k, router.norm_topk_prob, router.jitter_noise) == (1, False, 0.1)
    assert router.bias.dtype == F64 and router.causal


# --- jitter --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [TopKRouter, NoisyTopKRouter])
def test_jitter_is_for_training_alone(make):
    router, x = make(4, 8, 2, jitter_noise=0.1).eval(), torch.randn(5, 4)
    before = torch.get_rng_state()
    assert torch.equal(router(x).router_logits, router.router_logits(x))
    assert torch.equal(torch.get_rng_state(), before)
    router.train()
    assert not torch.equal(router(x).router_logits, router.router_logits(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, F64])
def test_jitter_multiplies_by_what_lies_evenly_around_1(dtype, device):
    """Through a router that hands on its input: x is all ones, so the logits are the factors themselves."""
    torch.manual_seed(0)
    router = TopKRouter(4, 4, 1, jitter_noise=0.01, device=device, dtype=dtype)
    router.weight.data = torch.eye(4, device=device, dtype=router.weight.dtype)
    x = torch.ones(5000, 4, device=device, dtype=dtype)
    factors = router(x).router_logits.detach().double()
    assert torch.equal(x, torch.ones_like(x)), "x itself has changed"
    assert 0.99 - 1e-6 <= factors.min() < 0.9901 and 1.0099 < factors.max() <= 1.01 + 1e-6
    assert float(factors.mean()) == pytest.approx(1, abs=2e-4)
    assert float(factors.std()) == pytest.approx(0.01 / 3**0.5, rel=0.02)
    assert factors.unique().numel() > 1000 and not torch.equal(factors[:, 0], factors[:, 1])


def test_jitter_may_be_changed_and_switched_off():
    router, x = TopKRouter(4, 8, 2, jitter_noise=0.5), torch.randn(5, 4)
    router.jitter_noise = 0.0
    before = torch.get_rng_state()
    assert torch.equal(router(x).router_logits, router.router_logits(x))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_experts_do_not_see_the_jitter():
    """With every expert chosen and none preferred, the output is their plain mean, however strong the jitter."""
    torch.manual_seed(0)
    jittery = MoE(4, 8, 3, 3, router=TopKRouter(4, 3, 3, jitter_noise=0.9, dtype=F64), dtype=F64)
    jittery.router.weight.data.copy_(torch.ones(3, 4))  # the same logit for all, whatever x is
    x = torch.randn(6, 4, dtype=F64)
    before = x.clone()
    torch.testing.assert_close(jittery.train()(x)[0], jittery.eval()(x)[0])
    assert torch.equal(x, before)


def test_the_gradient_goes_through_the_jitter():
    router = TopKRouter(4, 8, 2, jitter_noise=0.1)
    x = torch.randn(5, 4, requires_grad=True)
    router(x).weight[:3].sum().backward()
    assert x.grad.abs().sum() > 0 and router.weight.grad.abs().sum() > 0


# --- noise ---------------------------------------------------------------------------------------------------

noises = pytest.mark.parametrize("noise", ["learned", "gaussian"])


@noises
def test_no_noise_in_eval_mode(noise):
    router, x = NoisyTopKRouter(4, 8, 2, noise=noise).eval(), torch.randn(5, 4)
    plain = TopKRouter(4, 8, 2)
    plain.weight = router.weight
    before = torch.get_rng_state()
    for name in ("router_logits", "router_probs", "expert_idx", "weight"):
        assert torch.equal(getattr(router(x), name), getattr(plain(x), name))
    assert torch.equal(torch.get_rng_state(), before)


@noises
def test_same_seed_same_noise(noise):
    router, x = NoisyTopKRouter(4, 8, 2, noise=noise), torch.randn(5, 4)

    def logits(seed):
        torch.manual_seed(seed)
        return router(x).router_logits

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    assert not torch.equal(logits(1), router.router_logits(x))


def test_gaussian_noise_has_the_given_deviation(device):
    torch.manual_seed(0)
    router = NoisyTopKRouter(4, 8, 2, noise="gaussian", noise_std=0.5, device=device)
    x = torch.randn(4000, 4, device=device)
    noise = (router(x).router_logits - router.router_logits(x)).detach()
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(0.5, rel=0.02)
    router.noise_std = 0
    assert torch.equal(router(x).router_logits, router.router_logits(x))


def test_learned_noise_is_shazeers():
    """arXiv:1701.06538, eq. 4, and the 0.01 of its code: noise of log 2 + 0.01 at the start."""
    router, x = NoisyTopKRouter(4, 8, 2, dtype=F64), torch.randn(5, 4, dtype=F64)
    for weight in (torch.zeros(8, 4, dtype=F64), torch.randn(8, 4, dtype=F64)):
        router.noise_weight.data = weight
        torch.manual_seed(3)
        noise = router(x).router_logits - router.router_logits(x)
        torch.manual_seed(3)
        expected = torch.randn(5, 8, dtype=F64) * (torch.log(1 + torch.exp(x @ weight.T)) + 0.01)
        torch.testing.assert_close(noise, expected)
        if not weight.any():
            torch.manual_seed(3)
            torch.testing.assert_close(noise, torch.randn(5, 8, dtype=F64) * (math.log(2) + 0.01))


def test_learned_noise_learns():
    router = NoisyTopKRouter(4, 8, 2)
    router(torch.randn(5, 4)).topk_weights[:, 0].sum().backward()
    assert router.noise_weight.grad.abs().sum() > 0


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [TopKRouter, NoisyTopKRouter])
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"d_model": 0}, "d_model must be a whole number of at least 1, got 0"),
        ({"num_experts": 0}, "num_experts must be a whole number of at least 1, got 0"),
        ({"top_k": 9}, r"top_k must be between 1 and num_experts \(8\), got 9"),
        ({"top_k": 0}, r"top_k must be between 1 and num_experts \(8\), got 0"),
        ({"top_k": 1.0}, r"top_k must be between 1 and num_experts \(8\), got 1\.0"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob must be None, True or False, got 'yes'"),
        ({"jitter_noise": -0.1}, r"jitter_noise must be a finite number of at least 0, got -0\.1"),
        ({"jitter_noise": math.nan}, "jitter_noise must be a finite number of at least 0, got nan"),
        ({"device": "cuda:99"}, "device must be one of 'cpu'.* on this machine, got 'cuda:99'"),
        ({"dtype": torch.int64}, "dtype must be a floating-point type, got torch.int64"),
        ({"dtype": torch.float8_e4m3fn}, "dtype must be .*, got torch.float8_e4m3fn"),
    ],
)
def test_bad_arguments(make, arguments, message):
    refuses(make, arguments, message)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"noise": "uniform"}, "noise must be one of 'learned', 'gaussian', got 'uniform'"),
        ({"noise_std": -1}, "noise_std must be a finite number of at least 0, got -1"),
        ({"noise_std": math.nan}, "noise_std must be a finite number of at least 0, got nan"),
    ],
)
def test_bad_noise(arguments, message):
    refuses(NoisyTopKRouter, arguments, message)


def refuses(make, arguments, message):
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=f"^{message}$"):
        make(**{"d_model": 4, "num_experts": 8, "top_k": 2, **arguments})
    assert torch.equal(torch.get_rng_state(), before), "a refused call has drawn random numbers"


def test_diverged_weights():
    router = TopKRouter(4, 8, 2)
    router.weight.data[3, 1] = math.inf
    message = "router_logits must be finite, got NaN or infinity: the router has diverged"
    with pytest.raises(NonFiniteError, match=f"^{message}$"):
        router(torch.ones(5, 4))


def test_repr():
    sizes = "d_model=4, num_experts=8, top_k=2, norm_topk_prob=True"
    assert repr(TopKRouter(4, 8, 2)) == f"TopKRouter({sizes})"
    assert repr(TopKRouter(4, 8, 2, bias=True, jitter_noise=0.1)) == f"TopKRouter({sizes}, bias=True, jitter_noise=0.1)"
    assert repr(NoisyTopKRouter(4, 8, 2)) == f"NoisyTopKRouter({sizes}, noise='learned')"
    gaussian = NoisyTopKRouter(4, 8, 2, noise="gaussian", noise_std=0.5)
    assert repr(gaussian) == f"NoisyTopKRouter({sizes}, noise='gaussian', noise_std=0.5)"
