"""The MoE block against the loop over tokens and experts, against its own limits, and at its edges."""

import copy
import itertools
import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_same, assignments_of, by_rows, combine, ffn_row, keep_within, mix_softly, surest_first

from moe_lessons.nn import ACTIVATIONS, DISPATCH, ExpertChoiceRouter, HashRouter, MoE, SigmoidRouter, TopKRouter, muted
from moe_lessons.nn.balancing import expert_capacity
from moe_lessons.nn.soft_moe import SoftMoE

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
    return y + by_rows(lambda row: ffn_row(row, moe.shared_expert), x), dropped


@ways
@pytest.mark.parametrize("router", [TopKRouter, SigmoidRouter, ExpertChoiceRouter])
@given(data=st.data())
def test_equals_the_loop_over_tokens_and_experts(router, way, data):
    draw, size, one_of = data.draw, st.integers, st.sampled_from
    torch.manual_seed(draw(size(0, 99)))
    num_experts, d_model = draw(size(2 if router is ExpertChoiceRouter else 1, 6)), draw(size(1, 5))  # of one: all ties
    top_k, options = draw(size(1, num_experts)), {"activation": draw(one_of(list(ACTIVATIONS)))}
    options |= {"shared_d_ff": draw(size(0, 3)), "capacity_factor": draw(one_of([None, 0.3, 0.5, 1.0, 1.5]))}
    options |= {"capacity_priority": draw(one_of(["order", "weight"])), "dispatch": way}
    norm = {} if router is ExpertChoiceRouter else {"norm_topk_prob": draw(one_of([None, True, False]))}
    made = router(d_model, num_experts, top_k, **norm)
    moe = MoE(d_model, draw(size(1, 5)), num_experts, top_k, router=made, **options).double()
    x = torch.randn(draw(size(0, 7)), d_model, dtype=F64, requires_grad=True)
    (y, routing), (expected, dropped) = moe(x), reference(moe, x)
    assert_same(y, expected, (x, *moe.parameters()))
    assert routing.dropped_per_expert.tolist() == dropped


@pytest.mark.parametrize("shape", [(4,), (0, 4), (1, 4), (2, 3, 4), (2, 0, 4), (2, 1, 3, 4)])
@pytest.mark.parametrize("capacity_factor", [None, 1.0])
@ways
def test_any_leading_shape_and_layout(way, shape, capacity_factor, device):
    moe = MoE(4, 8, 5, 2, capacity_factor=capacity_factor, dispatch=way).to(device)
    x = torch.randn(shape[::-1], device=device).permute(*range(len(shape))[::-1]).requires_grad_()
    y, routing = moe(x)
    assert y.shape == shape and routing.num_tokens == x.numel() // 4
    torch.testing.assert_close(y, moe(x.reshape(-1, 4))[0].reshape(shape))
    y.sum().backward()
    assert x.grad.shape == shape


@pytest.mark.parametrize(
    "dtype, autocast",
    [(torch.bfloat16, False), (torch.float16, False), (F64, False), (torch.bfloat16, True), (torch.float32, True)],
)
@ways
def test_types(way, dtype, autocast, device):
    """The output has the type of the input; the router computes in float32 at least, under autocast too."""
    torch.manual_seed(0)
    moe = MoE(16, 8, 5, 2, shared_d_ff=8, dispatch=way).to(device)
    x = torch.randn(9, 16, device=device).to(dtype)
    moe = moe if autocast else moe.to(dtype)
    exact = copy.deepcopy(moe).double()
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        y, routing = moe(x)
    assert y.dtype == dtype and routing.weight.dtype == torch.promote_types(dtype, torch.float32)
    expected, its_routing = exact(x.double())
    torch.testing.assert_close(routing.router_logits.double(), its_routing.router_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(y.double(), expected, rtol=0.05, atol=0.05)
    y.float().sum().backward()
    assert all(p.grad.dtype == p.dtype for p in moe.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, which works while the processor goes on")
@pytest.mark.parametrize("way", ["auto", "grouped"])
def test_no_wait_for_a_gpu(way):
    moe = MoE(256, 512, 8, 2, dispatch=way).to("cuda", torch.bfloat16)
    x = torch.randn(512, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    moe(x)[0].sum().backward()  # what is set up once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        y, routing = moe(x)
        (y.sum() + routing.topk_weights.sum()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_grouped_under_torch_compile():
    """Its tracer has no grouped_mm for float32."""
    torch.manual_seed(0)
    moe, x = MoE(16, 32, 4, 2, dispatch="grouped"), torch.randn(9, 16, requires_grad=True)
    assert_same(torch.compile(moe, backend="aot_eager")(x)[0], moe(x)[0], [x, *moe.parameters()])
    torch.compiler.reset()


def test_token_ids_are_for_a_hash_router_alone():
    moe, x = MoE(4, 8, 5, 2), torch.randn(2, 3, 4)
    assert torch.equal(moe(x, torch.full((2, 3), 99))[0], moe(x)[0])
    hashed = MoE(4, 8, 5, 2, router=HashRouter(5, 100, 2), capacity_factor=1.0)
    assert hashed(x, torch.full((2, 3), 99))[1].dropped_share == 0.5  # C = ⌈2·6/5⌉ = 3 places for 6 tokens
    hashed.capacity_factor = None
    y, _ = hashed(x, torch.arange(94, 100).view(2, 3))
    torch.testing.assert_close(hashed(x[1, 2], torch.tensor(99))[0], y[1, 2])  # one token, its id a single number
    y, routing = hashed(x[:0], torch.zeros(0, 3).long())
    assert y.shape == (0, 3, 4) and routing.topk_indices.shape == routing.topk_weights.shape == (0, 2)


@pytest.mark.parametrize("way", DISPATCH)
def test_a_muted_expert_adds_nothing(way):
    torch.manual_seed(0)
    moe, x = MoE(4, 8, 5, 2, dispatch=way).double(), torch.randn(9, 4, dtype=F64)
    others = [a for a in assignments_of(moe.router, x) if a[1] != 2]
    y, without = moe(x)[0], muted(moe, moe, 2)
    assert len(others) < 9 * 2
    torch.testing.assert_close(without(x)[0], combine(x, others, moe.experts))
    assert torch.equal(moe(x)[0], y) and all(map(operator.is_, moe.parameters(), without.parameters()))
    with pytest.raises(ValueError, match="expert must be between 0 and 4, got 5"):
        muted(moe, moe, 5)


@given(st.integers(0, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_equals_the_loop_over_slots_and_tokens(num_tokens, num_experts, slots_per_expert, seed):
    torch.manual_seed(seed)
    moe = SoftMoE(3, 4, num_experts, slots_per_expert).double()
    x = torch.randn(num_tokens, 3, dtype=F64, requires_grad=True)
    assert_same(moe(x), mix_softly(moe, x), (x, *moe.parameters()))


@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (2, 0, 4), (0, 3, 4), (2, 3, 5, 4)])
def test_any_leading_shape_and_layout_and_sequences_do_not_mix(shape, device):
    moe = SoftMoE(4, 8, 3, 2).to(device)
    x = torch.randn(shape[::-1], device=device).permute(*range(len(shape))[::-1]).requires_grad_()
    y = moe(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape and x.grad.isfinite().all()
    for index in itertools.product(*map(range, shape[:-2])):
        torch.testing.assert_close(y[index], moe(x[index]))
