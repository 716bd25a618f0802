"""SoftMoE against the loop over slots and tokens, and its symmetries."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_same, expert_row, softmax_row

from moe_lessons.nn import ACTIVATIONS, SoftMoE, is_moe

F64 = torch.float64


def reference(moe: SoftMoE, x: torch.Tensor) -> torch.Tensor:
    """One sequence x (T, D), slot by slot and token by token: arXiv:2308.00951, eq. 1 to 3."""
    if len(x) == 0:
        return x.clone()
    outputs = []
    for slot, phi in enumerate(moe.phi):
        weights = softmax_row(torch.stack([row @ phi for row in x]))  # over the tokens
        mixture = sum(weight * row for weight, row in zip(weights, x))
        outputs.append(expert_row(mixture, moe.experts, slot // moe.slots_per_expert))
    rows = []
    for row in x:
        weights = softmax_row(torch.stack([row @ phi for phi in moe.phi]))  # over the slots
        rows.append(sum(weight * output for weight, output in zip(weights, outputs)))
    return torch.stack(rows)


@given(st.integers(0, 5), st.integers(1, 4), st.integers(1, 3), st.sampled_from(list(ACTIVATIONS)), st.integers(0, 99))
def test_equals_the_loop_over_slots_and_tokens(num_tokens, num_experts, slots_per_expert, activation, seed):
    torch.manual_seed(seed)
    moe = SoftMoE(3, 4, num_experts, slots_per_expert, activation=activation).double()
    x = torch.randn(num_tokens, 3, dtype=F64, requires_grad=True)
    assert_same(moe(x), reference(moe, x), (x, *moe.parameters()))


@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (2, 0, 4), (0, 3, 4), (2, 3, 5, 4)])
def test_any_leading_shape_and_layout_and_sequences_do_not_mix(shape, device):
    moe = SoftMoE(4, 8, 3, 2).to(device)
    x = torch.randn(shape[::-1], device=device).permute(*range(len(shape))[::-1]).requires_grad_()
    y = moe(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape and x.grad.isfinite().all()
    for index in itertools.product(*map(range, shape[:-2])):
        torch.testing.assert_close(y[index], moe(x[index]))


def test_a_token_sees_the_future():
    torch.manual_seed(0)
    moe, x = SoftMoE(4, 8, 3), torch.randn(6, 4)
    changed = torch.cat([x[:-1], torch.randn(1, 4)])
    assert not moe.causal and not is_moe(moe)
    assert not torch.allclose(moe(x)[0], moe(changed)[0], rtol=1e-3)
