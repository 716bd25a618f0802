"""The MoE block against the loop over tokens and experts, against its own limits, and at its edges."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import (
    choose,
    choose_by_sigmoid,
    combine_experts,
    expert_row,
    experts_choose,
    gradients,
    keep_within,
    surest_first,
)
from torch import nn
from torch.autograd import gradcheck

from moe_lessons.errors import NonFiniteError, check_device
from moe_lessons.nn import (
    ACTIVATIONS,
    DISPATCH,
    ExpertChoiceRouter,
    Experts,
    FeedForward,
    HashRouter,
    MoE,
    NoisyTopKRouter,
    SigmoidRouter,
    SoftMoE,
    TopKRouter,
    expert_capacity,
    muted,
)

F64 = torch.float64
WAYS = [*DISPATCH, "auto"]
WAYS_IN_WORDS = ", ".join(map(repr, DISPATCH))
ACTIVATIONS_IN_WORDS = ", ".join(map(repr, ACTIVATIONS))
ways = pytest.mark.parametrize("way", WAYS)


def assignments_of(router: nn.Module, x: torch.Tensor) -> list:
    if isinstance(router, ExpertChoiceRouter):
        return experts_choose(x, router.weight, router.top_k)
    if isinstance(router, SigmoidRouter):
        return choose_by_sigmoid(x, router, router.norm_topk_prob)
    return choose(x, router.weight, router.top_k, router.norm_topk_prob)


def ffn_rows(ffn: FeedForward, x: torch.Tensor) -> torch.Tensor:
    alone = SimpleNamespace(
        in_proj=ffn.in_proj[None], down_proj=ffn.down_proj[None], in_bias=None, activation=ffn.activation
    )
    return torch.stack([expert_row(row, alone, 0) for row in x]) if len(x) else x.clone()


def reference(moe: MoE, x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """y and the dropped assignments of each expert, token by token and expert by expert."""
    assignments, dropped = assignments_of(moe.router, x), [0] * moe.num_experts
    if moe.capacity_factor is not None and len(x):
        if moe.capacity_priority == "weight":
            assignments = surest_first(assignments, moe.router(x).router_probs)
        capacity = expert_capacity(moe.capacity_factor, moe.top_k, len(x), moe.num_experts)
        assignments, dropped = keep_within(assignments, capacity, moe.num_experts)
    y = combine_experts(x, assignments, moe.experts)
    if moe.shared_expert is not None:
        shared = ffn_rows(moe.shared_expert, x)
        if moe.shared_expert_gate is not None:  # Qwen2-MoE
            shared = shared / (1 + torch.exp(-x @ moe.shared_expert_gate.weight[0]))[:, None]
        y = y + shared
    return y, dropped


@st.composite
def blocks(draw, capacity: bool):
    num_experts, d_model = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    top_k = draw(st.integers(1, num_experts))
    torch.manual_seed(draw(st.integers(0, 99)))
    kinds = [TopKRouter, SigmoidRouter, *([ExpertChoiceRouter] if num_experts > 1 else [])]  # of one expert: all ties
    kind = draw(st.sampled_from(kinds))
    norm = {} if kind is ExpertChoiceRouter else {"norm_topk_prob": draw(st.sampled_from([None, True, False]))}
    shared_d_ff = draw(st.sampled_from([None, 1, 3]))
    moe = MoE(
        d_model,
        draw(st.integers(1, 5)),
        num_experts,
        top_k,
        router=kind(d_model, num_experts, top_k, **norm, dtype=F64),
        activation=draw(st.sampled_from(list(ACTIVATIONS))),
        bias=draw(st.booleans()),
        weight_input=draw(st.booleans()),
        shared_d_ff=shared_d_ff,
        shared_expert_gate=shared_d_ff is not None and draw(st.booleans()),
        capacity_factor=draw(st.sampled_from([0.3, 0.5, 1.0, 1.5])) if capacity else None,
        capacity_priority=draw(st.sampled_from(["order", "weight"])),
        dispatch=draw(st.sampled_from(WAYS)),
        dtype=F64,
    )
    for name, parameter in moe.experts.named_parameters():
        if name.endswith("bias"):  # they start at zero
            nn.init.normal_(parameter)
    return moe, torch.randn(draw(st.integers(0, 7)), d_model, dtype=F64, requires_grad=True)


def same_output_and_gradients(moe: MoE, x: torch.Tensor) -> None:
    (y, routing), (expected, dropped) = moe(x), reference(moe, x)
    torch.testing.assert_close(y, expected)
    assert routing.dropped_per_expert.tolist() == dropped
    inputs, cotangent = (x, *moe.parameters()), torch.randn_like(y)
    torch.testing.assert_close(gradients(y, inputs, cotangent), gradients(expected, inputs, cotangent))


@given(blocks(capacity=False))
def test_equals_the_loop_over_tokens_and_experts(case):
    same_output_and_gradients(*case)


@given(blocks(capacity=True))
def test_equals_the_loop_with_capacity(case):
    same_output_and_gradients(*case)


@pytest.mark.parametrize("way", DISPATCH)
@pytest.mark.parametrize("top_k, capacity_factor", [(1, None), (2, None), (4, None), (2, 0.5)])
def test_gradients(way, top_k, capacity_factor, device):
    torch.manual_seed(0)
    moe = MoE(3, 4, 4, top_k, capacity_factor=capacity_factor, dispatch=way, dtype=F64, device=device)
    x = torch.randn(5, 3, dtype=F64, device=device, requires_grad=True)
    names, values = zip(*moe.named_parameters())

    def output(x, *weights):
        return torch.func.functional_call(moe, dict(zip(names, weights)), x)[0]

    assert gradcheck(output, (x, *values), fast_mode=True)


@ways
def test_all_experts_chosen_is_the_full_softmax_mixture(way, device):
    moe = MoE(6, 5, 4, top_k=4, dispatch=way, dtype=F64, device=device)
    x = torch.randn(9, 6, dtype=F64, device=device)
    ffns = [expert_as_ffn(moe, e) for e in range(4)]
    probs = (x @ moe.router.weight.T).softmax(dim=1)
    torch.testing.assert_close(moe(x)[0], sum(probs[:, e, None] * ffns[e](x) for e in range(4)))


@ways
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", [None, True, False])
def test_one_expert_is_the_dense_ffn(way, activation, norm, device):
    moe = MoE(6, 5, 1, 1, activation=activation, norm_topk_prob=norm, dispatch=way, dtype=F64, device=device)
    x = torch.randn(9, 6, dtype=F64, device=device)
    torch.testing.assert_close(moe(x)[0], expert_as_ffn(moe, 0)(x))


def expert_as_ffn(moe: MoE, expert: int) -> FeedForward:
    ffn = FeedForward(moe.d_model, moe.d_ff, moe.experts.activation, device=moe.router.weight.device, dtype=F64)
    ffn.load_state_dict({name: weight[expert] for name, weight in moe.experts.state_dict().items()})
    return ffn


@ways
def test_the_order_of_the_tokens_does_not_matter(way, device):
    moe = MoE(4, 8, 5, 2, dispatch=way, device=device, dtype=F64)
    x, order = torch.randn(11, 4, device=device, dtype=F64), torch.randperm(11, device=device)
    torch.testing.assert_close(moe(x[order])[0], moe(x)[0][order])


@ways
@pytest.mark.parametrize("shape", [(4,), (0, 4), (1, 4), (2, 3, 4), (2, 0, 4), (2, 1, 3, 4)])
@pytest.mark.parametrize("capacity_factor", [None, 1.0])
def test_any_leading_shape(way, shape, capacity_factor, device):
    moe = MoE(4, 8, 5, 2, capacity_factor=capacity_factor, dispatch=way, device=device)
    x = torch.randn(shape, device=device, requires_grad=True)
    y, routing = moe(x)
    assert y.shape == shape and routing.num_tokens == x.numel() // 4
    torch.testing.assert_close(y, moe(x.reshape(-1, 4))[0].reshape(shape))
    y.sum().backward()
    assert x.grad.shape == shape


@ways
def test_input_need_not_be_contiguous(way, device):
    moe, x = MoE(4, 8, 5, 2, dispatch=way, device=device), torch.randn(4, 3, 2, device=device).permute(2, 1, 0)
    assert not x.is_contiguous()
    torch.testing.assert_close(moe(x)[0], moe(x.contiguous())[0])


@ways
def test_experts_without_a_token(way, device):
    moe = MoE(4, 8, 5, 1, dispatch=way, device=device)
    moe.router.weight.data.zero_()
    moe.router.weight.data[3] = 1
    x = torch.rand(6, 4, device=device) + 0.1
    y, routing = moe(x)
    assert routing.tokens_per_expert.tolist() == [0, 0, 0, 6, 0]
    y.sum().backward()
    assert moe.experts.down_proj.grad.abs().sum(dim=(1, 2)).bool().tolist() == [False] * 3 + [True, False]


@ways
def test_a_token_that_was_dropped_gets_nothing(way):
    moe = MoE(4, 8, 2, 1, capacity_factor=0.2, dispatch=way)
    y, routing = moe(torch.randn(10, 4))
    served = set(routing.token_idx.tolist())
    assert routing.dropped == 10 - len(served) > 0
    assert [bool(row.any()) for row in y] == [t in served for t in range(10)]


@pytest.mark.parametrize("norm, has_gradient", [(None, True), (False, True), (True, False)])
def test_top_1_teaches_its_router_unless_it_renormalises(norm, has_gradient):
    torch.manual_seed(0)
    moe = MoE(4, 8, 5, 1, norm_topk_prob=norm, dtype=F64)
    moe(torch.randn(20, 4, dtype=F64))[0].square().sum().backward()
    assert bool(moe.router.weight.grad.abs().max() > 1e-6) == has_gradient
    assert moe.experts.down_proj.grad.abs().max() > 1e-6


# --- biases, and the weight on the input ----------------------------------------------------------------------


@ways
def test_biases_start_at_zero_and_learn(way, device):
    torch.manual_seed(0)
    moe = MoE(4, 8, 3, 2, bias=True, dispatch=way, dtype=F64, device=device)
    assert not moe.experts.in_bias.any() and not moe.experts.down_proj_bias.any()
    plain = MoE(4, 8, 3, 2, dispatch=way, dtype=F64, device=device)
    plain.load_state_dict({name: value for name, value in moe.state_dict().items() if "bias" not in name})
    x = torch.randn(20, 4, dtype=F64, device=device)
    torch.testing.assert_close(moe(x)[0], plain(x)[0])
    y, routing = moe(x)
    y.sum().backward()
    total = torch.stack([routing.weight[routing.expert_idx == e].sum() for e in range(3)])
    torch.testing.assert_close(moe.experts.down_proj_bias.grad, total[:, None].expand(3, 4))  # Σ of its weights
    assert moe.experts.in_bias.grad.any(dim=1).all()


@ways
def test_weight_on_the_input(way, device):
    """ReLU without a bias keeps factors: expert(w·x) = w·expert(x). SwiGLU does not."""
    x = torch.randn(9, 4, dtype=F64, device=device)
    for activation, same in [("relu", True), ("swiglu", False)]:
        torch.manual_seed(0)
        inside = MoE(4, 8, 3, 1, activation=activation, weight_input=True, dispatch=way, dtype=F64, device=device)
        outside = MoE(4, 8, 3, 1, activation=activation, dispatch=way, dtype=F64, device=device)
        outside.load_state_dict(inside.state_dict())
        assert torch.allclose(inside(x)[0], outside(x)[0]) == same


# --- shared experts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_shared_expert_works_for_every_token(gate, activation, device):
    """The block is the routed part plus the shared FFN, times sigmoid(x·w) where there is a gate."""
    torch.manual_seed(0)
    make = {"activation": activation, "dtype": F64, "device": device}
    moe = MoE(4, 8, 5, 2, shared_d_ff=6, shared_expert_gate=gate, **make)
    routed = MoE(4, 8, 5, 2, **make)
    routed.load_state_dict({name: value for name, value in moe.state_dict().items() if "shared" not in name})
    x = torch.randn(2, 7, 4, dtype=F64, device=device)
    shared = moe.shared_expert(x)
    if gate:
        shared = shared * torch.sigmoid((x * moe.shared_expert_gate.weight).sum(dim=-1, keepdim=True))
    torch.testing.assert_close(moe(x)[0], routed(x)[0] + shared)


@pytest.mark.parametrize("gate", [False, True])
def test_shared_expert_gradcheck(gate):
    torch.manual_seed(0)
    moe = MoE(3, 4, 3, 1, shared_d_ff=2, shared_expert_gate=gate, dtype=F64)
    x = torch.randn(4, 3, dtype=F64, requires_grad=True)
    names, values = zip(*moe.named_parameters())
    assert ("shared_expert_gate.weight" in names) == gate

    def output(x, *weights):
        return torch.func.functional_call(moe, dict(zip(names, weights)), x)[0]

    assert gradcheck(output, (x, *values), fast_mode=True)


@ways
def test_one_expert_and_a_shared_one_are_two_dense_ffns(way, device):
    moe = MoE(6, 5, 1, 1, norm_topk_prob=True, shared_d_ff=7, dispatch=way, dtype=F64, device=device)
    x = torch.randn(9, 6, dtype=F64, device=device)
    torch.testing.assert_close(moe(x)[0], expert_as_ffn(moe, 0)(x) + moe.shared_expert(x))


def test_a_dropped_token_still_has_the_shared_expert():
    torch.manual_seed(0)
    moe = MoE(4, 8, 2, 1, capacity_factor=0.2, shared_d_ff=6, dtype=F64)
    x = torch.randn(10, 4, dtype=F64)
    y, routing = moe(x)
    alone = [t for t in range(10) if t not in routing.token_idx.tolist()]
    assert len(alone) == routing.dropped > 0
    torch.testing.assert_close(y[alone], moe.shared_expert(x[alone]))


def test_without_a_shared_expert_there_is_none():
    moe = MoE(4, 8, 3)
    assert moe.shared_expert is None and moe.shared_expert_gate is None
    assert not any("shared" in name for name in moe.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_shared_expert_under_autocast_keeps_the_type_of_the_input(dtype, device):
    moe = MoE(16, 8, 5, 2, shared_d_ff=8, shared_expert_gate=True, device=device)
    x = torch.randn(9, 16, device=device)
    with torch.autocast(device, torch.bfloat16):
        y = moe(x.to(dtype))[0]
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), moe(x)[0], rtol=0.05, atol=0.05)


# --- who depends on whom --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, causal",
    [
        ({}, True),
        ({"shared_d_ff": 8}, True),
        ({"router": SigmoidRouter(4, 4, 2)}, True),
        ({"router": ExpertChoiceRouter(4, 4, 2)}, False),
        ({"capacity_factor": 0.5}, False),
        ({"capacity_factor": 0.5, "capacity_priority": "weight"}, False),
    ],
)
def test_does_a_token_see_the_future(arguments, causal):
    torch.manual_seed(0)
    moe, depends = MoE(4, 8, 4, 2, **arguments), False
    for _ in range(20):
        x = torch.randn(8, 4)
        changed = torch.cat([x[:-1], 3 * torch.randn(1, 4)])
        depends |= not torch.allclose(moe(x)[0][:-1], moe(changed)[0][:-1])
    assert causal == (not depends)


# --- number types ---------------------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, F64])
def test_output_has_the_type_of_the_input(way, dtype, device):
    moe = MoE(16, 8, 5, 2, dispatch=way, device=device, dtype=dtype)
    x = torch.randn(9, 16, device=device, dtype=dtype)
    y, routing = moe(x)
    assert y.dtype == dtype
    assert routing.router_logits.dtype == routing.weight.dtype == moe.router.weight.dtype
    assert moe.router.weight.dtype == torch.promote_types(dtype, torch.float32)
    y.float().sum().backward()
    exact = MoE(16, 8, 5, 2, device=device, dtype=F64)
    exact.load_state_dict(moe.state_dict())
    torch.testing.assert_close(y.double(), exact(x.double())[0], rtol=0.05, atol=0.05)


@ways
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_keeps_the_router_in_float32(way, dtype, device):
    moe, x = MoE(16, 8, 5, 2, dispatch=way, device=device), torch.randn(9, 16, device=device)
    expected, plain = moe(x)
    with torch.autocast(device, torch.bfloat16):
        y, routing = moe(x.to(dtype))
    assert y.dtype == dtype and routing.router_logits.dtype == torch.float32
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    if dtype == torch.float32:
        assert torch.equal(routing.router_logits, plain.router_logits)
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in moe.parameters())


def test_model_to_bfloat16_keeps_working():
    """`.to(bfloat16)` rounds the router's weights, and it still computes in float32."""
    y, routing = MoE(16, 8, 5, 2).to(torch.bfloat16)(torch.randn(9, 16, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16 and routing.router_logits.dtype == torch.float32


# --- a router of one's own -----------------------------------------------------------------------------------


def test_a_router_can_be_given():
    moe = MoE(4, 8, 5, 2, router=NoisyTopKRouter(4, 5, 2, norm_topk_prob=False), dtype=torch.float32)
    assert isinstance(moe.router, NoisyTopKRouter)
    assert moe(torch.randn(3, 4))[1].topk_weights.sum(dim=1).max() < 1
    x = torch.randn(3, 4)
    assert not torch.equal(moe(x)[1].router_logits, moe(x)[1].router_logits)
    moe.eval()
    assert torch.equal(moe(x)[0], moe(x)[0])


def test_any_module_can_be_the_router():
    class Fixed(nn.Module):
        def forward(self, x):
            return TopKRouter(4, 5, 2)(x)

    assert MoE(4, 8, 5, 2, router=Fixed())(torch.randn(3, 4))[0].shape == (3, 4)


class Changed(nn.Module):
    """A router that says nothing about its sizes, and gives what `change` makes of a `Routing`."""

    def __init__(self, num_experts, change=lambda routing: routing):
        super().__init__()
        self.inner, self.change = [TopKRouter(4, num_experts, 2)], change

    def forward(self, x):
        return self.change(self.inner[0](x))


@pytest.mark.parametrize("way", ["auto", *DISPATCH])
@pytest.mark.parametrize(
    "router, message",
    [
        (nn.Linear(4, 5), "router must return a Routing, got Tensor"),
        (Changed(4), r"router must return router_probs of shape \(3, 5\), got \(3, 4\)"),
        (Changed(6), r"router must return router_probs of shape \(3, 5\), got \(3, 6\)"),
        (Changed(5, lambda r: replace(r, router_probs=r.router_probs[:2])), r"router must .* \(3, 5\), got \(2, 5\)"),
        (
            Changed(5, lambda r: replace(r, weight=r.weight[:5])),
            r"router must .* one shape \(A,\), got .*\(6,\), \(5,\)\]",
        ),
        (Changed(5, lambda r: replace(r, token_idx=r.token_idx[:, None])), r"router must return token_idx, .*"),
    ],
)
def test_a_router_of_ones_own_must_keep_the_contract(router, message, way):
    """Without the check, 'grouped' would leave the gradients of experts that were never counted unwritten."""
    with pytest.raises(ValueError, match=f"^{message}$"):
        MoE(4, 8, 5, 2, router=router, dispatch=way)(torch.randn(3, 4))


def test_token_ids_are_for_a_hash_router_alone():
    moe, x = MoE(4, 8, 5, 2), torch.randn(2, 3, 4)
    assert torch.equal(moe(x, torch.full((2, 3), 99))[0], moe(x)[0])
    hashed = MoE(4, 8, 5, 2, router=HashRouter(5, 100, 2), capacity_factor=1.0)
    assert hashed(x, torch.full((2, 3), 99))[1].dropped_share == 0.5  # C = ⌈2·6/5⌉ = 3 places for 6 tokens


def test_repr():
    assert "num_experts=8, top_k=2, dispatch='loop', capacity_factor=1.5" in repr(
        MoE(4, 8, 8, 2, capacity_factor=1.5, dispatch="loop")
    )
    assert "capacity_priority='weight'" in repr(MoE(4, 8, 8, 2, capacity_factor=1.5, capacity_priority="weight"))
    assert "capacity" not in repr(MoE(4, 8, 8, 2))
    text = repr(MoE(4, 8, 8, 2, bias=True, weight_input=True, shared_d_ff=6, shared_expert_gate=True))
    assert "activation='swiglu', bias=True, weight_input=True" in text
    assert "(shared_expert): FeedForward(d_model=4, d_ff=6" in text and "(shared_expert_gate): Linear" in text


@pytest.mark.parametrize(
    "kind", [FeedForward, Experts, MoE, SoftMoE, TopKRouter, NoisyTopKRouter, SigmoidRouter, HashRouter]
)
def test_every_module_has_an_example_and_a_repr(kind):
    """The examples themselves run as doctests."""
    assert ">>> " in kind.__doc__ and "extra_repr" in vars(kind)


# --- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"d_model": 0}, "d_model must be a whole number of at least 1, got 0"),
        ({"d_ff": 0}, "d_ff must be a whole number of at least 1, got 0"),
        ({"num_experts": 0}, "num_experts must be a whole number of at least 1, got 0"),
        ({"top_k": 9}, r"top_k must be between 1 and num_experts \(8\), got 9"),
        ({"top_k": 0}, r"top_k must be between 1 and num_experts \(8\), got 0"),
        ({"capacity_factor": 0}, "capacity_factor must be a finite number above 0, got 0"),
        ({"capacity_factor": -1.5}, r"capacity_factor must be a finite number above 0, got -1\.5"),
        ({"capacity_factor": float("inf")}, "capacity_factor must be a finite number above 0, got inf"),
        ({"dispatch": "fast"}, f"dispatch must be one of {WAYS_IN_WORDS}, 'auto', got 'fast'"),
        ({"activation": "tanh"}, f"activation must be one of {ACTIVATIONS_IN_WORDS}, got 'tanh'"),
        ({"capacity_priority": "fair"}, "capacity_priority must be one of 'order', 'weight', got 'fair'"),
        ({"shared_d_ff": 0}, "shared_d_ff must be a whole number of at least 1, got 0"),
        ({"shared_d_ff": 1.5}, r"shared_d_ff must be a whole number of at least 1, got 1\.5"),
        ({"shared_expert_gate": True}, "shared_d_ff must be given where shared_expert_gate is True, got None"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob must be None, True or False, got 'yes'"),
        ({"dtype": torch.int64}, "dtype must be a floating-point type, got torch.int64"),
        ({"dtype": torch.float8_e4m3fn}, "dtype must be a type .*, got torch.float8_e4m3fn"),
        ({"router": HashRouter(7, 9, 2)}, "router must have num_experts 8, got 7"),
        ({"router": ExpertChoiceRouter(4, 8, 1)}, "router must have top_k 2, got 1"),
        ({"device": "cuda:99"}, "device must be one of 'cpu'.* on this machine, got 'cuda:99'"),
        ({"router": TopKRouter(5, 8, 2)}, "router must have d_model 4, got 5"),
        ({"router": TopKRouter(4, 7, 2)}, "router must have num_experts 8, got 7"),
        ({"router": TopKRouter(4, 8, 3)}, "router must have top_k 2, got 3"),
        (
            {"router": TopKRouter(4, 8, 2), "norm_topk_prob": True},
            "norm_topk_prob must be None where a router is given, got True",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=f"^{message}$"):
        MoE(**{"d_model": 4, "d_ff": 8, "num_experts": 8, "top_k": 2, **arguments})
    assert torch.equal(torch.get_rng_state(), before), "a refused call has drawn random numbers"


@pytest.mark.parametrize(
    "x, error, message",
    [
        (torch.zeros(3, 5), ValueError, r"the last dimension of x must be d_model \(4\), got shape \(3, 5\)"),
        (torch.zeros(4, 3), ValueError, r"the last dimension of x must be d_model \(4\), got shape \(4, 3\)"),
        (torch.tensor(1.0), ValueError, r"the last dimension of x must be d_model \(4\), got shape \(\)"),
        (torch.zeros(3, 4, dtype=torch.int64), ValueError, "x must be a floating-point tensor, got torch.int64"),
        (torch.zeros(3, 4, dtype=torch.bool), ValueError, "x must be a floating-point tensor, got torch.bool"),
        (None, ValueError, "x must be a floating-point tensor, got NoneType"),
        (torch.full((2, 4), torch.nan), NonFiniteError, "x must be finite, got NaN or infinity in 8 of its 8 entries"),
        (torch.tensor([[0, torch.inf, 0, 0]]), NonFiniteError, "x must be finite, got .* in 1 of its 4 entries"),
    ],
)
def test_bad_input(x, error, message):
    moe = MoE(4, 8, 8, 2, router=NoisyTopKRouter(4, 8, 2))
    before = torch.get_rng_state()
    with pytest.raises(error, match=f"^{message}$"):
        moe(x)
    assert torch.equal(torch.get_rng_state(), before), "a refused call has drawn random numbers"


def test_x_must_have_the_type_of_the_weights():
    with pytest.raises(ValueError, match=r"^x must have the type of the weights \(torch.float32\), got torch.float64$"):
        MoE(4, 8, 3)(torch.zeros(2, 4, dtype=torch.float64))


@pytest.mark.parametrize("x_dtype, dtype", [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_autocast_casts_no_float64(x_dtype, dtype):
    for layer in (MoE(4, 8, 3, dtype=dtype), FeedForward(4, 8, dtype=dtype), SoftMoE(4, 8, 3, dtype=dtype)):
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="^x must have the type of the"):
            layer(torch.zeros(2, 4, dtype=x_dtype))


@pytest.mark.parametrize("name, refused", [("mps", False), ("mps:0", False), ("cpu:0", False), ("mps:1", True)])
def test_a_device_may_be_named_with_its_index(name, refused, monkeypatch):
    """A tensor on a Mac's GPU says that it is on 'mps:0'."""
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    if refused:
        with pytest.raises(ValueError, match="^device must be one of 'cpu'.*, got 'mps:1'$"):
            check_device(name)
    else:
        assert check_device(name) == torch.device(name)


@pytest.mark.parametrize("way", DISPATCH)
@pytest.mark.parametrize("bias", [False, True])
def test_a_muted_expert_adds_nothing(way, bias):
    torch.manual_seed(0)
    moe, x = MoE(4, 8, 5, 2, bias=bias, dispatch=way), torch.randn(9, 4)
    for parameter in moe.experts.parameters():
        nn.init.normal_(parameter)
    before, (y, routing) = copy.deepcopy(moe.state_dict()), moe(x)
    with muted(moe.experts, 2):
        without = moe(x)[0]
    kept = routing.expert_idx != 2
    assert not kept.all() and not torch.allclose(without, y)
    vectors = {name: getattr(routing, name)[kept] for name in ("token_idx", "expert_idx", "weight")}
    torch.testing.assert_close(without, DISPATCH[way](moe.experts, x, replace(routing, **vectors)))
    assert all(torch.equal(moe.state_dict()[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("expert", [-1, 5, 1.5, True, "E1"])
def test_a_muted_expert_must_be_there(expert):
    with (
        pytest.raises(ValueError, match=f"^expert must be between 0 and 4, got {expert!r}$"),
        muted(MoE(4, 8, 5, 2).experts, expert),
    ):
        pass


def test_a_router_must_be_a_module_and_takes_rows():
    with pytest.raises(ValueError, match="^router must be a module that maps"):
        MoE(4, 8, 3, router="x")
    with pytest.raises(ValueError, match=r"^x must have the shape \(T, 4\), got \(2, 3, 4\)$"):
        MoE(4, 8, 3).router(torch.zeros(2, 3, 4))


def test_a_dispatch_set_later_is_checked_too():
    moe = MoE(4, 8, 3)
    moe.dispatch = "fast"
    with pytest.raises(ValueError, match=f"^dispatch must be one of {WAYS_IN_WORDS}, got 'fast'$"):
        moe(torch.zeros(2, 4))
