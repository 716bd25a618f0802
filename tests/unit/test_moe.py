"""The MoE block against the loop over tokens and experts, against its own limits, and at its edges."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import choose, combine, gradients, keep_within
from torch import nn
from torch.autograd import gradcheck

from moe_lessons.errors import NonFiniteError
from moe_lessons.nn import (
    ACTIVATIONS,
    DISPATCH,
    Experts,
    FeedForward,
    MoE,
    NoisyTopKRouter,
    TopKRouter,
    expert_capacity,
)

F64 = torch.float64
WAYS = [*DISPATCH, "auto"]
ways = pytest.mark.parametrize("way", WAYS)


def reference(moe: MoE, x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """y and the dropped assignments of each expert, token by token and expert by expert."""
    assignments = choose(x, moe.router.weight, moe.top_k, moe.router.norm_topk_prob)
    dropped = [0] * moe.num_experts
    if moe.capacity_factor is not None and len(x):
        capacity = expert_capacity(moe.capacity_factor, moe.top_k, len(x), moe.num_experts)
        assignments, dropped = keep_within(assignments, capacity, moe.num_experts)
    experts = moe.experts
    return combine(x, assignments, experts.in_proj, experts.down_proj, experts.activation), dropped


@st.composite
def blocks(draw, capacity: bool):
    num_experts = draw(st.integers(1, 6))
    factor = draw(st.sampled_from([0.3, 0.5, 1.0, 1.5])) if capacity else None
    torch.manual_seed(draw(st.integers(0, 99)))
    moe = MoE(
        draw(st.integers(1, 5)),
        draw(st.integers(1, 5)),
        num_experts,
        draw(st.integers(1, num_experts)),
        activation=draw(st.sampled_from(list(ACTIVATIONS))),
        norm_topk_prob=draw(st.sampled_from([None, True, False])),
        capacity_factor=factor,
        dispatch=draw(st.sampled_from(WAYS)),
        dtype=F64,
    )
    return moe, torch.randn(draw(st.integers(0, 7)), moe.d_model, dtype=F64, requires_grad=True)


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


# --- number types ---------------------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
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


def test_repr():
    assert "num_experts=8, top_k=2, dispatch='loop', capacity_factor=1.5" in repr(
        MoE(4, 8, 8, 2, capacity_factor=1.5, dispatch="loop")
    )


@pytest.mark.parametrize("kind", [FeedForward, Experts, MoE, TopKRouter, NoisyTopKRouter])
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
        ({"dispatch": "fast"}, "dispatch must be one of 'dense', 'loop', 'auto', got 'fast'"),
        ({"activation": "tanh"}, "activation must be one of 'swiglu', 'gelu', 'relu', got 'tanh'"),
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


def test_a_router_must_be_a_module_and_takes_rows():
    with pytest.raises(ValueError, match="^router must be a module that maps"):
        MoE(4, 8, 3, router="x")
    with pytest.raises(ValueError, match=r"^x must have the shape \(T, 4\), got \(2, 3, 4\)$"):
        MoE(4, 8, 3).router(torch.zeros(2, 3, 4))


def test_a_dispatch_set_later_is_checked_too():
    moe = MoE(4, 8, 3)
    moe.dispatch = "fast"
    with pytest.raises(ValueError, match="^dispatch must be one of 'dense', 'loop', got 'fast'$"):
        moe(torch.zeros(2, 4))
