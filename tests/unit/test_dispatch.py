"""Every way to run the experts computes the same sum, whatever the assignments are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import combine, gradients
from torch.utils.flop_counter import FlopCounterMode

from moe_lessons.nn import ACTIVATIONS, DISPATCH, Experts, MoE, Routing, choose_dispatch

F64 = torch.float64
ways = pytest.mark.parametrize("way", DISPATCH)


def free_routing(token_idx, expert_idx, num_tokens: int, num_experts: int) -> Routing:
    """A routing with any assignments: tokens with no expert, with many, and the same pair twice."""
    probs = torch.full((num_tokens, num_experts), 1 / num_experts, dtype=F64)
    return Routing(
        router_logits=probs.log(),
        router_probs=probs,
        token_idx=torch.tensor(token_idx, dtype=torch.int64),
        expert_idx=torch.tensor(expert_idx, dtype=torch.int64),
        weight=torch.randn(len(token_idx), dtype=F64, requires_grad=True),
        dropped_per_expert=torch.zeros(num_experts, dtype=torch.int64),
    )


@st.composite
def cases(draw):
    num_tokens, num_experts = draw(st.integers(0, 6)), draw(st.integers(1, 5))
    pair = st.tuples(st.integers(0, num_tokens - 1), st.integers(0, num_experts - 1))
    pairs = draw(st.lists(pair, max_size=15)) if num_tokens else []
    sizes = (draw(st.integers(1, 4)), draw(st.integers(1, 5)))
    torch.manual_seed(draw(st.integers(0, 99)))
    experts = Experts(num_experts, *sizes, draw(st.sampled_from(list(ACTIVATIONS))), dtype=F64)
    routing = free_routing([t for t, _ in pairs], [e for _, e in pairs], num_tokens, num_experts)
    return experts, torch.randn(num_tokens, sizes[0], dtype=F64, requires_grad=True), routing


@ways
@given(cases())
def test_equals_the_loop_over_assignments(way, case):
    experts, x, routing = case
    assignments = zip(routing.token_idx.tolist(), routing.expert_idx.tolist(), routing.weight)
    expected = combine(x, assignments, experts.in_proj, experts.down_proj, experts.activation)
    y = DISPATCH[way](experts, x, routing)
    torch.testing.assert_close(y, expected)
    inputs, cotangent = (x, routing.weight, *experts.parameters()), torch.randn_like(y)
    torch.testing.assert_close(gradients(y, inputs, cotangent), gradients(expected, inputs, cotangent))


@ways
def test_gradient_of_a_plain_sum(way, device):
    """The gradient that comes from `.sum()` has stride 0, which some kernels refuse."""
    moe = MoE(4, 8, 3, 2, dispatch=way, device=device)
    moe(torch.randn(5, 4, device=device))[0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in moe.parameters())


@ways
def test_the_input_is_left_as_it_is(way):
    x = torch.randn(5, 4)
    before = x.clone()
    MoE(4, 8, 3, 2, dispatch=way)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("top_k", [1, 2, 8])
def test_the_loop_does_the_arithmetic_of_k_experts_and_dense_of_all(top_k):
    def flops(way):
        moe, x = MoE(16, 32, 8, top_k, dispatch=way), torch.randn(64, 16)
        with FlopCounterMode(display=False) as counter:
            moe(x)
        return counter.get_total_flops() - 2 * 64 * 16 * 8  # without the router

    one_expert = 64 * 2 * 3 * 16 * 32
    assert flops("loop") == top_k * one_expert
    assert flops("dense") == 8 * one_expert


def test_auto_runs_every_expert_at_toy_size_and_the_loop_at_large():
    def chosen(num_tokens, d_model, d_ff, top_k):
        moe = MoE(d_model, d_ff, 8, top_k)
        return choose_dispatch(moe.experts, moe.router(torch.randn(num_tokens, d_model)))

    assert chosen(256, 16, 8, 2) == "dense"
    assert chosen(2048, 64, 512, 2) == "loop"
    assert chosen(0, 16, 8, 2) in DISPATCH
