"""Sigmoid, expert choice and hash routing, each against its paper in plain loops; and who is causal."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import choose_by_sigmoid, experts_choose, gradients

from moe_lessons.errors import NonFiniteError
from moe_lessons.nn import (
    ExpertChoiceRouter,
    HashRouter,
    MoE,
    NoisyTopKRouter,
    Routing,
    SigmoidRouter,
    SwitchRouter,
    TopKRouter,
    load_balancing_loss,
)

F64 = torch.float64


def pairs(routing: Routing) -> list[tuple[int, int]]:
    return list(zip(routing.token_idx.tolist(), routing.expert_idx.tolist()))


def assert_same(routing: Routing, expected: list, inputs) -> None:
    """The same assignments in the same order, the same weights, the same gradients of the weights."""
    assert pairs(routing) == [assignment[:2] for assignment in expected]
    if expected:
        weights = torch.stack([assignment[2] for assignment in expected])
        torch.testing.assert_close(routing.weight, weights)
        cotangent = torch.randn_like(weights)
        theirs = gradients(weights, inputs, cotangent)
        torch.testing.assert_close(gradients(routing.weight, inputs, cotangent), theirs)


# --- sigmoid (DeepSeek-V3) -----------------------------------------------------------------------------------


@st.composite
def sigmoid_cases(draw):
    num_groups = draw(st.integers(1, 4))
    num_experts = num_groups * draw(st.integers(1, 4))
    topk_groups = draw(st.integers(1, num_groups))
    top_k = draw(st.integers(1, topk_groups * num_experts // num_groups))
    sizes = {"num_groups": num_groups, "topk_groups": topk_groups}
    scale, norm = draw(st.sampled_from([1.0, 2.5])), draw(st.sampled_from([None, True, False]))
    torch.manual_seed(draw(st.integers(0, 99)))
    router = SigmoidRouter(3, num_experts, top_k, norm_topk_prob=norm, routed_scaling_factor=scale, dtype=F64, **sizes)
    router.expert_bias.copy_(torch.randn(num_experts) * draw(st.sampled_from([0.0, 0.3, 5.0])))
    x = torch.randn(draw(st.integers(0, 6)), 3, dtype=F64, requires_grad=True)
    return router, x, (top_k > 1 if norm is None else norm, num_groups, topk_groups, scale)


@given(sigmoid_cases())
def test_sigmoid_equals_the_loop(case):
    router, x, options = case
    routing = router(x)
    assert_same(routing, choose_by_sigmoid(x, router, *options), (x, router.weight))
    scores = 1 / (1 + torch.exp(-x @ router.weight.T))
    torch.testing.assert_close(routing.router_probs, scores / scores.sum(dim=1, keepdim=True))


def sigmoid_router_with_scores(scores: list[float], top_k: int, bias=None, **kwargs) -> SigmoidRouter:
    """A router for x = [[1.]] whose scores s are `scores`."""
    router = SigmoidRouter(1, len(scores), top_k, dtype=F64, **kwargs)
    router.weight.data = torch.tensor(scores, dtype=F64).logit()[:, None]
    if bias is not None:
        router.expert_bias.copy_(torch.tensor(bias))
    return router


def test_the_bias_selects_and_does_not_weigh():
    x, scores = torch.ones(1, 1, dtype=F64), [0.8, 0.4, 0.2]
    plain = sigmoid_router_with_scores(scores, 2)(x)
    assert plain.topk_indices.tolist() == [[0, 1]]
    assert plain.weight.tolist() == pytest.approx([2 / 3, 1 / 3])
    biased = sigmoid_router_with_scores(scores, 2, bias=[-1.0, 0.0, 0.5])(x)
    assert biased.topk_indices.tolist() == [[2, 1]]  # .2 + .5 before .4: best first by s + b
    assert biased.weight.tolist() == pytest.approx([1 / 3, 2 / 3])  # .2 and .4 over .6
    assert torch.equal(biased.router_probs, plain.router_probs)
    assert torch.equal(biased.router_logits, plain.router_logits)
    one = sigmoid_router_with_scores(scores, 1, bias=[-1.0, 0.0, 0.5])(x)
    assert (one.expert_idx.tolist(), one.weight.tolist()) == ([2], pytest.approx([0.2]))
    scaled = sigmoid_router_with_scores(scores, 2, norm_topk_prob=False, routed_scaling_factor=3)(x)
    assert scaled.weight.tolist() == pytest.approx([2.4, 1.2])


def test_the_same_bias_for_all_changes_nothing():
    torch.manual_seed(0)
    router, x = SigmoidRouter(4, 8, 3, num_groups=4, topk_groups=2, dtype=F64), torch.randn(20, 4, dtype=F64)
    before = router(x)
    for shift in (-7.0, 2.0):  # negative throughout: a closed group must not win with a score of zero
        router.expert_bias.fill_(shift)
        assert pairs(router(x)) == pairs(before)


def test_groups_limit_the_choice_by_hand():
    """The two best of each group: .9 + .1 against .6 + .5, so the largest score of all, .9, cannot be chosen."""
    x, scores = torch.ones(1, 1, dtype=F64), [0.9, 0.1, 0.6, 0.5]
    groups = {"num_groups": 2, "topk_groups": 1}
    assert sigmoid_router_with_scores(scores, 2)(x).topk_indices.tolist() == [[0, 2]]
    assert sigmoid_router_with_scores(scores, 2, **groups)(x).topk_indices.tolist() == [[2, 3]]
    moved = sigmoid_router_with_scores(scores, 2, bias=[0.2, 0.0, 0.0, 0.0], **groups)(x)
    assert moved.topk_indices.tolist() == [[0, 1]]  # the bias counts for the groups too


def test_a_token_stays_within_its_groups():
    torch.manual_seed(0)
    router = SigmoidRouter(4, 12, 4, num_groups=6, topk_groups=2)
    router.expert_bias.normal_()
    groups = router(torch.randn(50, 4)).topk_indices // 2
    assert all(len(set(row)) == 2 for row in groups.tolist())  # 4 experts in groups of 2


def test_the_gradient_reaches_the_weight_and_never_the_bias(device):
    torch.manual_seed(0)
    router = SigmoidRouter(4, 8, 2, bias=True, device=device)
    assert "expert_bias" in router.state_dict() and "expert_bias" not in dict(router.named_parameters())
    assert not router.expert_bias.requires_grad and router.expert_bias.device.type == device
    routing = router(torch.randn(5, 4, device=device))
    (routing.topk_weights[:, 0].sum() + load_balancing_loss(routing)).backward()
    assert router.weight.grad.abs().max() > 1e-6 and router.bias.grad.abs().max() > 1e-6
    assert router.expert_bias.grad is None


@pytest.mark.parametrize("norm, has_gradient", [(None, True), (False, True), (True, False)])
def test_one_sigmoid_expert_learns_unless_it_renormalises(norm, has_gradient):
    torch.manual_seed(0)
    router = SigmoidRouter(4, 8, 1, norm_topk_prob=norm, dtype=F64)
    (router(torch.randn(5, 4, dtype=F64)).weight * torch.randn(5, dtype=F64)).sum().backward()
    assert bool(router.weight.grad.abs().max() > 1e-6) == has_gradient
    assert has_gradient or router.weight.grad.abs().max() < 1e-15


def test_sigmoid_ties_choose_k_different_experts():
    router = SigmoidRouter(4, 6, 3, num_groups=3, topk_groups=2)
    router.weight.data.zero_()
    routing = router(torch.randn(5, 4))
    assert all(len(set(row)) == 3 for row in routing.topk_indices.tolist())
    torch.testing.assert_close(routing.weight, torch.full((15,), 1 / 3))


def test_scores_that_vanish_give_no_nan():
    router = SigmoidRouter(1, 4, 2)
    router.weight.data.fill_(1)
    routing = router(torch.full((3, 1), -1000.0))  # sigmoid(-1000) is 0 in float32
    assert not routing.weight.any() and routing.router_probs.isfinite().all()
    routing.weight.sum().backward()
    assert router.weight.grad.isfinite().all()


def test_expert_bias_travels_with_the_state(tmp_path):
    router, other = SigmoidRouter(4, 6, 2), SigmoidRouter(4, 6, 2)
    router.expert_bias.copy_(torch.randn(6))
    other.load_state_dict(router.state_dict())
    assert torch.equal(other.expert_bias, router.expert_bias)
    assert set(router.state_dict()) == {"weight", "expert_bias"}


# --- expert choice -------------------------------------------------------------------------------------------


@st.composite
def expert_choice_cases(draw):
    num_experts = draw(st.integers(2, 6))  # of one expert all probabilities are 1: no order
    torch.manual_seed(draw(st.integers(0, 99)))
    router = ExpertChoiceRouter(3, num_experts, draw(st.integers(1, num_experts)), dtype=F64)
    return router, torch.randn(draw(st.integers(0, 9)), 3, dtype=F64, requires_grad=True)


@given(expert_choice_cases())
def test_expert_choice_equals_the_loop(case):
    router, x = case
    routing = router(x)
    assert_same(routing, experts_choose(x, router.weight, router.top_k), (x, router.weight))
    capacity = math.ceil(router.top_k * len(x) / router.num_experts)
    assert routing.tokens_per_expert.tolist() == [capacity] * router.num_experts  # even, always
    assert routing.dropped == 0
    assert len(set(pairs(routing))) == len(pairs(routing))  # no expert takes a token twice


def test_expert_choice_by_hand():
    """Both experts like token 0 best: it has two experts, token 1 has none. The softmax is over the experts."""
    router, x = ExpertChoiceRouter(1, 2, 1, dtype=F64), torch.tensor([[1.0], [-1.0], [0.0]], dtype=F64)
    router.weight.data = torch.tensor([[math.log(3)], [0.0]], dtype=F64)  # probabilities 3:1, 1:3, 1:1
    routing = router(x)  # C = ⌈1·3/2⌉ = 2
    assert pairs(routing) == [(0, 0), (1, 1), (2, 0), (2, 1)]
    assert routing.weight.tolist() == pytest.approx([0.75, 0.75, 0.5, 0.5])


def test_expert_choice_leaves_tokens_without_an_expert_and_moe_gives_them_zero(device):
    torch.manual_seed(0)
    moe = MoE(4, 8, 4, 1, router=ExpertChoiceRouter(4, 4, 1, device=device), device=device)
    y, routing = moe(torch.randn(40, 4, device=device))
    served = set(routing.token_idx.tolist())
    assert 0 < len(served) < 40
    assert [bool(row.any()) for row in y] == [t in served for t in range(40)]
    with pytest.raises(ValueError, match="need the same number of experts for each of the 40 tokens"):
        _ = routing.topk_indices


def test_expert_choice_of_none_of_one_and_of_all():
    router = ExpertChoiceRouter(4, 5, 2)
    nothing = router(torch.zeros(0, 4))
    assert (nothing.num_tokens, len(nothing.weight), nothing.tokens_per_expert.tolist()) == (0, 0, [0] * 5)
    assert pairs(router(torch.randn(1, 4))) == [(0, e) for e in range(5)]  # C = ⌈2/5⌉: each takes the only token
    assert sorted(pairs(ExpertChoiceRouter(4, 1, 1)(torch.randn(6, 4)))) == [(t, 0) for t in range(6)]
    x, everyone = torch.randn(7, 4), ExpertChoiceRouter(4, 5, 5)
    assert sorted(pairs(everyone(x))) == [(t, e) for t in range(7) for e in range(5)]
    mixture = MoE(4, 8, 5, 5, router=everyone)
    full = MoE(4, 8, 5, 5, norm_topk_prob=False)
    full.load_state_dict(mixture.state_dict())
    torch.testing.assert_close(mixture(x)[0], full(x)[0])  # K = E: the full softmax mixture


# --- hash ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_an_id_has_its_experts_wherever_it_stands(top_k, device):
    router = HashRouter(8, 50, top_k, device=device)
    ids = torch.randint(0, 50, (200,), device=device)
    routing = router(torch.randn(200, 4, device=device), ids)
    experts = {}
    for token_id, chosen in zip(ids.tolist(), routing.topk_indices.tolist()):
        assert experts.setdefault(token_id, chosen) == chosen and len(set(chosen)) == top_k
    assert len({tuple(chosen) for chosen in experts.values()}) > 1 or top_k == 8
    torch.testing.assert_close(routing.weight, torch.full_like(routing.weight, 1 / top_k))
    torch.testing.assert_close(routing.router_probs.sum(dim=1), torch.ones(200, device=device))
    assert torch.equal(routing.router_probs > 0, torch.zeros_like(routing.router_probs).bool().index_put(
        (routing.token_idx, routing.expert_idx), torch.tensor(True, device=device)
    ))  # fmt: skip
    torch.testing.assert_close(routing.router_logits.exp(), routing.router_probs)


def test_the_table_comes_from_the_seed_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = HashRouter(8, 500), HashRouter(8, 500), HashRouter(8, 500, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.table, again.table) and not torch.equal(first.table, other.table)
    assert first.table.unique().tolist() == list(range(8))  # each expert has some ids
    assert list(first.parameters()) == [] and "table" in first.state_dict()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8, torch.uint16])
def test_any_whole_numbers_are_ids(dtype):
    router, ids = HashRouter(8, 100, 2), torch.tensor([3, 99, 0, 3, 1])
    expected = router(torch.randn(5, 4), ids)
    assert pairs(router(torch.randn(5, 4), ids.to(dtype))) == pairs(expected)


def test_hash_through_the_block_with_sequences(device):
    """x (B, T, D) with token_ids (B, T): each position gets the mean of the two experts of its id."""
    torch.manual_seed(0)
    make = {"device": device, "dtype": F64}
    moe = MoE(4, 6, 5, 2, router=HashRouter(5, 30, 2, device=device), **make)
    x, ids = torch.randn(3, 7, 4, **make), torch.randint(0, 30, (3, 7), device=device)
    y, routing = moe(x, ids)
    assert routing.num_tokens == 21
    flat = moe(x.reshape(21, 4), ids.reshape(21))[0]
    torch.testing.assert_close(y.reshape(21, 4), flat)
    first = moe(x[1, 2], ids[1, 2])[0]  # one token: x (D,), its id a single number
    torch.testing.assert_close(first, y[1, 2])
    assert moe(x[:0], ids[:0])[0].shape == (0, 7, 4)


@pytest.mark.parametrize(
    "token_ids, message",
    [
        (None, "token_ids must be one whole number for each of the 3 tokens, got NoneType"),
        ([1, 2, 3], "token_ids must be one whole number for each of the 3 tokens, got list"),
        (torch.tensor([1, 2]), r"token_ids must be one whole number .*, got torch.int64 of shape \(2,\)"),
        (torch.tensor([[1], [2], [3]]), r"token_ids must be one whole number .*, got torch.int64 of shape \(3, 1\)"),
        (torch.tensor([1.0, 2, 3]), r"token_ids must be one whole number .*, got torch.float32 of shape \(3,\)"),
        (torch.tensor([True, False, True]), r"token_ids must be one whole number .*, got torch.bool of shape \(3,\)"),
        (torch.ones(3).cfloat(), r"token_ids must be one whole number .*, got torch.complex64 of shape \(3,\)"),
        (torch.tensor([0, 10, 3]), "token_ids must be between 0 and 9, got 0 to 10"),
        (torch.tensor([5, -1, 3]), "token_ids must be between 0 and 9, got -1 to 5"),
    ],
)
def test_bad_token_ids(token_ids, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        HashRouter(8, 10)(torch.zeros(3, 4), token_ids)


@pytest.mark.parametrize(
    "x, got", [([1.0], "list"), (torch.tensor(1.0), r"\(\)"), (torch.zeros(2, 3, 4), r"\(2, 3, 4\)")]
)
def test_a_hash_router_takes_rows_too(x, got):
    with pytest.raises(ValueError, match=rf"^x must have the shape \(T, D\), got {got}$"):
        HashRouter(8, 10)(x, torch.zeros(1, dtype=torch.int64))


def test_bad_token_ids_of_the_block():
    moe = MoE(4, 8, 5, 1, router=HashRouter(5, 30))
    with pytest.raises(ValueError, match=r"^token_ids must have the shape \(2, 3\), got \(3, 2\)$"):
        moe(torch.zeros(2, 3, 4), torch.zeros(3, 2, dtype=torch.int64))  # as many ids, in another order
    with pytest.raises(ValueError, match="^token_ids must be one whole number for each of the 6 tokens, got NoneType$"):
        moe(torch.zeros(2, 3, 4))


# --- who depends on whom -------------------------------------------------------------------------------------

ROUTERS = {
    "top-k": lambda: TopKRouter(4, 5, 2),
    "switch": lambda: SwitchRouter(4, 5, jitter_noise=0.1),
    "learned noise": lambda: NoisyTopKRouter(4, 5, 2),
    "sigmoid": lambda: SigmoidRouter(4, 6, 2, num_groups=3, topk_groups=2),
    "expert choice": lambda: ExpertChoiceRouter(4, 5, 2),
    "hash": lambda: HashRouter(5, 50, 2),
}


def earlier_assignments(router, x: torch.Tensor, ids: torch.Tensor) -> list[tuple]:
    """All assignments but those of the last token, with their weights."""
    routing = router(x, ids) if isinstance(router, HashRouter) else router(x)
    rows = zip(routing.token_idx.tolist(), routing.expert_idx.tolist(), routing.weight.tolist())
    return sorted(row for row in rows if row[0] < len(x) - 1)


@pytest.mark.parametrize("name", ROUTERS)
def test_causal_says_whether_the_past_depends_on_the_future(name):
    torch.manual_seed(0)
    router, depends = ROUTERS[name]().eval(), False
    for _ in range(20):
        x, ids = torch.randn(8, 4), torch.randint(0, 50, (8,))
        changed, other_ids = x.clone(), ids.clone()
        changed[-1], other_ids[-1] = torch.randn(4) * 3, 7
        depends |= earlier_assignments(router, x, ids) != earlier_assignments(router, changed, other_ids)
    assert router.causal == (not depends)


# --- what all share ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [SigmoidRouter, ExpertChoiceRouter])
def test_computes_in_float32_at_least(make, device):
    for dtype, wanted in [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (F64, F64)]:
        router = make(16, 8, 2, device=device, dtype=dtype)
        x = torch.randn(9, 16, device=device, dtype=dtype)
        exact = router(x.to(wanted))
        with torch.autocast(device, torch.bfloat16):
            routing = router(x)
        assert routing.weight.dtype == routing.router_probs.dtype == router.weight.dtype == wanted
        assert torch.equal(routing.weight, exact.weight) and pairs(routing) == pairs(exact)


@pytest.mark.parametrize("dtype, wanted", [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (F64, F64)])
def test_hash_weights_are_of_float32_at_least(dtype, wanted):
    routing = HashRouter(8, 10, 3)(torch.zeros(2, 4, dtype=dtype), torch.tensor([1, 2]))
    assert routing.weight.dtype == routing.router_probs.dtype == wanted


@pytest.mark.parametrize("make", [SigmoidRouter, ExpertChoiceRouter, SwitchRouter])
@pytest.mark.parametrize(
    "x, error, message",
    [
        (torch.zeros(2, 3, 4), ValueError, r"x must have the shape \(T, 4\), got \(2, 3, 4\)"),
        (torch.zeros(3, 5), ValueError, r"the last dimension of x must be d_model \(4\), got shape \(3, 5\)"),
        (torch.zeros(3, 4).long(), ValueError, "x must be a floating-point tensor, got torch.int64"),
        (torch.full((2, 4), math.nan), NonFiniteError, "x must be finite, got NaN or infinity in 8 of its 8 entries"),
    ],
)
def test_bad_input(make, x, error, message):
    router = make(4, 8) if make is SwitchRouter else make(4, 8, 2)
    with pytest.raises(error, match=f"^{message}$"):
        router(x)
    router.weight.data[0] = math.inf
    with pytest.raises(NonFiniteError, match="^router_logits must be finite, got NaN or infinity: the router has"):
        router(torch.ones(3, 4))


@pytest.mark.parametrize(
    "make, arguments, message",
    [
        (SigmoidRouter, {"d_model": 0}, "d_model must be a whole number of at least 1, got 0"),
        (SigmoidRouter, {"num_experts": 0}, "num_experts must be a whole number of at least 1, got 0"),
        (SigmoidRouter, {"num_experts": "8"}, "num_experts must be a whole number of at least 1, got '8'"),
        (SigmoidRouter, {"top_k": 9}, r"top_k must be between 1 and num_experts \(8\), got 9"),
        (SigmoidRouter, {"num_groups": 3}, r"num_groups must divide num_experts \(8\), got 3"),
        (SigmoidRouter, {"num_groups": 0}, "num_groups must be a whole number of at least 1, got 0"),
        (SigmoidRouter, {"topk_groups": 2}, r"topk_groups must be between 1 and num_groups \(1\), got 2"),
        (SigmoidRouter, {"topk_groups": 0}, "topk_groups must be a whole number of at least 1, got 0"),
        (SigmoidRouter, {"top_k": 3, "num_groups": 4}, "top_k must be at most 2, the experts in 1 groups, got 3"),
        (SigmoidRouter, {"routed_scaling_factor": 0}, "routed_scaling_factor must be a finite number above 0, got 0"),
        (SigmoidRouter, {"jitter_noise": -1}, "jitter_noise must be a finite number of at least 0, got -1"),
        (SigmoidRouter, {"norm_topk_prob": "yes"}, "norm_topk_prob must be None, True or False, got 'yes'"),
        (ExpertChoiceRouter, {"top_k": 9}, r"top_k must be between 1 and num_experts \(8\), got 9"),
        (ExpertChoiceRouter, {"d_model": 1.5}, r"d_model must be a whole number of at least 1, got 1\.5"),
        (ExpertChoiceRouter, {"device": "gpu"}, "device must be one of 'cpu'.* on this machine, got 'gpu'"),
        (HashRouter, {"num_experts": 0}, "num_experts must be a whole number of at least 1, got 0"),
        (HashRouter, {"vocab_size": 0}, "vocab_size must be a whole number of at least 1, got 0"),
        (HashRouter, {"top_k": 9}, r"top_k must be between 1 and num_experts \(8\), got 9"),
        (HashRouter, {"device": "cuda:99"}, "device must be one of 'cpu'.* on this machine, got 'cuda:99'"),
    ],
)
def test_bad_arguments(make, arguments, message):
    good = {"num_experts": 8, "top_k": 2, **({"vocab_size": 9} if make is HashRouter else {"d_model": 4})}
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=f"^{message}$"):
        make(**{**good, **arguments})
    assert torch.equal(torch.get_rng_state(), before), "a refused call has drawn random numbers"


@pytest.mark.parametrize(
    "router, text",
    [
        (SwitchRouter(4, 8), "SwitchRouter(d_model=4, num_experts=8, top_k=1, norm_topk_prob=False)"),
        (
            SwitchRouter(4, 8, jitter_noise=0.1, bias=True),
            "SwitchRouter(d_model=4, num_experts=8, top_k=1, norm_topk_prob=False, bias=True, jitter_noise=0.1)",
        ),
        (SigmoidRouter(4, 8, 2), "SigmoidRouter(d_model=4, num_experts=8, top_k=2, norm_topk_prob=True)"),
        (
            SigmoidRouter(4, 8, 2, num_groups=4, topk_groups=2, routed_scaling_factor=2.5),
            "SigmoidRouter(d_model=4, num_experts=8, top_k=2, norm_topk_prob=True, num_groups=4, topk_groups=2, "
            "routed_scaling_factor=2.5)",
        ),
        (ExpertChoiceRouter(4, 8, 2), "ExpertChoiceRouter(d_model=4, num_experts=8, top_k=2, norm_topk_prob=False)"),
        (HashRouter(8, 50, 2), "HashRouter(num_experts=8, vocab_size=50, top_k=2)"),
    ],
)
def test_repr(router, text):
    assert repr(router) == text
