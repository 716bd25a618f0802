"""The MoE block against the loop over tokens and experts, against its own limits, and at its edges."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import (
    assert_same,
    assignments_of,
    by_rows,
    combine,
    ffn_row,
    gradcheck_module,
    keep_within,
    refused,
    surest_first,
)
from torch import nn

from moe_lessons.nn import (
    ACTIVATIONS,
    DISPATCH,
    ExpertChoiceRouter,
    FeedForward,
    HashRouter,
    MoE,
    NoisyTopKRouter,
    SigmoidRouter,
    TopKRouter,
    expert_capacity,
    muted,
)

F64 = torch.float64
WAYS = [*DISPATCH, "auto"]
ways = pytest.mark.parametrize("way", WAYS)


def reference(moe: MoE, x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """y and the dropped assignments of each expert, token by token and expert by expert."""
    assignments, dropped = assignments_of(moe.router, x), [0] * moe.num_experts
    if moe.capacity_factor is not None and len(x):
        if moe.capacity_priority == "weight":
            assignments = surest_first(assignments, moe.router(x).router_probs)
        capacity = expert_capacity(moe.capacity_factor, moe.top_k, len(x), moe.num_experts)
        assignments, dropped = keep_within(assignments, capacity, moe.num_experts)
    y = combine(x, assignments, moe.experts)
    if moe.shared_expert is None:
        return y, dropped
    shared = by_rows(lambda row: ffn_row(row, moe.shared_expert), x)
    if moe.shared_expert_gate is not None:  # Qwen2-MoE
        shared = shared / (1 + torch.exp(-x @ moe.shared_expert_gate.weight[0]))[:, None]
    return y + shared, dropped


@ways
@pytest.mark.parametrize("router", [TopKRouter, SigmoidRouter, ExpertChoiceRouter])
@given(data=st.data())
def test_equals_the_loop_over_tokens_and_experts(router, way, data):
    """Whatever the sizes, the activation, the biases, where the weight stands, the shared expert and the capacity."""
    draw, size, one_of = data.draw, st.integers, st.sampled_from
    torch.manual_seed(draw(size(0, 99)))
    num_experts, d_model = draw(size(2 if router is ExpertChoiceRouter else 1, 6)), draw(size(1, 5))  # of one: all ties
    top_k, shared_d_ff = draw(size(1, num_experts)), draw(one_of([None, 1, 3]))
    norm = {} if router is ExpertChoiceRouter else {"norm_topk_prob": draw(one_of([None, True, False]))}
    moe = MoE(
        d_model,
        draw(size(1, 5)),
        num_experts,
        top_k,
        router=router(d_model, num_experts, top_k, **norm, dtype=F64),
        activation=draw(one_of(list(ACTIVATIONS))),
        bias=draw(st.booleans()),
        weight_input=draw(st.booleans()),
        shared_d_ff=shared_d_ff,
        shared_expert_gate=shared_d_ff is not None and draw(st.booleans()),
        capacity_factor=draw(one_of([None, 0.3, 0.5, 1.0, 1.5])),
        capacity_priority=draw(one_of(["order", "weight"])),
        dispatch=way,
        dtype=F64,
    )
    for parameter in moe.experts.parameters():  # biases start at zero
        nn.init.normal_(parameter)
    x = torch.randn(draw(size(0, 7)), d_model, dtype=F64, requires_grad=True)
    (y, routing), (expected, dropped) = moe(x), reference(moe, x)
    assert_same(y, expected, (x, *moe.parameters()))
    assert routing.dropped_per_expert.tolist() == dropped


@pytest.mark.parametrize("way", DISPATCH)
@pytest.mark.parametrize("top_k, capacity_factor", [(1, None), (2, None), (4, None), (2, 0.5)])
@pytest.mark.parametrize("more", [False, True])
def test_gradients(way, top_k, capacity_factor, more, device):
    torch.manual_seed(0)
    options = {"shared_d_ff": 2, "shared_expert_gate": True, "bias": True, "weight_input": True} if more else {}
    moe = MoE(3, 4, 4, top_k, **options, capacity_factor=capacity_factor, dispatch=way, dtype=F64, device=device)
    gradcheck_module(moe, torch.randn(5, 3, dtype=F64, device=device))


def expert_as_ffn(moe: MoE, expert: int) -> FeedForward:
    ffn = FeedForward(moe.d_model, moe.d_ff, moe.experts.activation, device=moe.router.weight.device, dtype=F64)
    ffn.load_state_dict({name: weight[expert] for name, weight in moe.experts.state_dict().items()})
    return ffn


@ways
def test_all_experts_chosen_is_the_full_softmax_mixture(way, device):
    moe = MoE(6, 5, 4, top_k=4, dispatch=way, dtype=F64, device=device)
    x = torch.randn(9, 6, dtype=F64, device=device)
    probs = (x @ moe.router.weight.T).softmax(dim=1)
    torch.testing.assert_close(moe(x)[0], sum(probs[:, e, None] * expert_as_ffn(moe, e)(x) for e in range(4)))


@ways
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shared_d_ff, norm", [(None, None), (None, True), (None, False), (7, True)])
def test_one_expert_is_the_dense_ffn(way, activation, shared_d_ff, norm, device):
    options = {"activation": activation, "shared_d_ff": shared_d_ff, "norm_topk_prob": norm}
    moe = MoE(6, 5, 1, 1, **options, dispatch=way, dtype=F64, device=device)
    x = torch.randn(9, 6, dtype=F64, device=device)
    shared = moe.shared_expert(x) if shared_d_ff else 0
    torch.testing.assert_close(moe(x)[0], expert_as_ffn(moe, 0)(x) + shared)


@ways
@pytest.mark.parametrize("shape", [(4,), (0, 4), (1, 4), (2, 3, 4), (2, 0, 4), (2, 1, 3, 4)])
@pytest.mark.parametrize("capacity_factor", [None, 1.0])
def test_any_leading_shape_and_layout(way, shape, capacity_factor, device):
    moe = MoE(4, 8, 5, 2, capacity_factor=capacity_factor, dispatch=way, device=device)
    x = torch.randn(shape[::-1], device=device).permute(*range(len(shape))[::-1]).requires_grad_()
    y, routing = moe(x)
    assert y.shape == shape and routing.num_tokens == x.numel() // 4
    torch.testing.assert_close(y, moe(x.reshape(-1, 4))[0].reshape(shape))
    y.sum().backward()
    assert x.grad.shape == shape


# --- number types --------------------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, F64])
def test_output_has_the_type_of_the_input(way, dtype, device):
    torch.manual_seed(0)
    options = {"shared_d_ff": 8, "shared_expert_gate": True, "device": device}
    moe, exact = MoE(16, 8, 5, 2, **options, dispatch=way, dtype=dtype), MoE(16, 8, 5, 2, **options, dtype=F64)
    exact.load_state_dict(moe.state_dict())
    x = torch.randn(9, 16, device=device, dtype=dtype)
    y, routing = moe(x)
    assert y.dtype == dtype
    assert routing.router_logits.dtype == routing.weight.dtype == moe.router.weight.dtype
    assert moe.router.weight.dtype == torch.promote_types(dtype, torch.float32)
    y.float().sum().backward()
    torch.testing.assert_close(y.double(), exact(x.double())[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "way, dtype", [*itertools.product(WAYS, [torch.bfloat16, torch.float32]), ("auto", torch.float16)]
)
def test_autocast_keeps_the_router_in_float32(way, dtype, device):
    torch.manual_seed(0)
    moe = MoE(16, 8, 5, 2, shared_d_ff=8, shared_expert_gate=True, dispatch=way, device=device)
    x = torch.randn(9, 16, device=device)
    expected, plain = moe(x)
    with torch.autocast(device, torch.bfloat16):
        y, routing = moe(x.to(dtype))
    assert y.dtype == dtype and routing.router_logits.dtype == torch.float32
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    assert dtype != torch.float32 or torch.equal(routing.router_logits, plain.router_logits)
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in moe.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, which works while the processor goes on")
@pytest.mark.parametrize("way", ["auto", "grouped"])
def test_no_wait_for_a_gpu(way):
    make = {"device": "cuda", "dtype": torch.bfloat16}
    moe, x = MoE(256, 512, 8, 2, dispatch=way, **make), torch.randn(512, 256, **make, requires_grad=True)
    moe(x)[0].sum().backward()  # what is set up once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        moe(x)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_router_can_be_given():
    moe, x = MoE(4, 8, 5, 2, router=NoisyTopKRouter(4, 5, 2, norm_topk_prob=False)), torch.randn(3, 4)
    assert moe(x)[1].topk_weights.sum(dim=1).max() < 1
    assert not torch.equal(moe(x)[1].router_logits, moe(x)[1].router_logits)
    moe.eval()
    assert torch.equal(moe(x)[0], moe(x)[0])


def test_token_ids_are_for_a_hash_router_alone():
    moe, x = MoE(4, 8, 5, 2), torch.randn(2, 3, 4)
    assert torch.equal(moe(x, torch.full((2, 3), 99))[0], moe(x)[0])
    hashed = MoE(4, 8, 5, 2, router=HashRouter(5, 100, 2), capacity_factor=1.0)
    assert hashed(x, torch.full((2, 3), 99))[1].dropped_share == 0.5  # C = ⌈2·6/5⌉ = 3 places for 6 tokens
    hashed.capacity_factor = None
    y, _ = hashed(x, torch.arange(94, 100).view(2, 3))
    torch.testing.assert_close(hashed(x[1, 2], torch.tensor(99))[0], y[1, 2])  # one token, its id a single number
    assert hashed(x[:0], torch.zeros(0, 3).long())[0].shape == (0, 3, 4)


def test_a_dispatch_set_later_is_checked_too():
    moe = MoE(4, 8, 3)
    moe.dispatch = "fast"
    with refused(f"dispatch must be one of {', '.join(map(repr, DISPATCH))}.*, got 'fast'"):
        moe(torch.zeros(2, 4))


@pytest.mark.parametrize("way", DISPATCH)
@pytest.mark.parametrize("bias", [False, True])
def test_a_muted_expert_adds_nothing(way, bias):
    torch.manual_seed(0)
    moe, x = MoE(4, 8, 5, 2, bias=bias, dispatch=way, dtype=F64), torch.randn(9, 4, dtype=F64)
    for parameter in moe.experts.parameters():
        nn.init.normal_(parameter)
    before, others = copy.deepcopy(moe.state_dict()), [a for a in assignments_of(moe.router, x) if a[1] != 2]
    with muted(moe.experts, 2):
        without = moe(x)[0]
    assert len(others) < 9 * 2
    torch.testing.assert_close(without, combine(x, others, moe.experts))
    assert all(torch.equal(moe.state_dict()[name], weight) for name, weight in before.items())


def test_repr():
    text = repr(MoE(4, 8, 8, 2, capacity_factor=1.5, capacity_priority="weight", dispatch="loop"))
    assert "num_experts=8, top_k=2, dispatch='loop', capacity_factor=1.5, capacity_priority='weight'" in text
    text = repr(MoE(4, 8, 8, 2, bias=True, weight_input=True, shared_d_ff=6, shared_expert_gate=True))
    assert "capacity" not in text and "activation='swiglu', bias=True, weight_input=True" in text
    assert "(shared_expert): FeedForward(d_model=4, d_ff=6" in text and "(shared_expert_gate): Linear" in text
