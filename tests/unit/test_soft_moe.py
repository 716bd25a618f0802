"""SoftMoE against the loop over slots and tokens, and its symmetries."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import expert_row, gradients, softmax_row
from torch.autograd import gradcheck

from moe_lessons.errors import NonFiniteError
from moe_lessons.nn import ACTIVATIONS, FeedForward, SoftMoE, is_moe

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
    moe = SoftMoE(3, 4, num_experts, slots_per_expert, activation=activation, dtype=F64)
    x = torch.randn(num_tokens, 3, dtype=F64, requires_grad=True)
    y, expected = moe(x), reference(moe, x)
    torch.testing.assert_close(y, expected)
    inputs, cotangent = (x, *moe.parameters()), torch.randn_like(y)
    torch.testing.assert_close(gradients(y, inputs, cotangent), gradients(expected, inputs, cotangent))


def test_gradients(device):
    torch.manual_seed(0)
    moe = SoftMoE(3, 4, 2, 2, dtype=F64, device=device)
    x = torch.randn(2, 3, 3, dtype=F64, device=device, requires_grad=True)
    names, values = zip(*moe.named_parameters())
    assert gradcheck(lambda x, *p: torch.func.functional_call(moe, dict(zip(names, p)), x), (x, *values))


def test_each_slot_is_a_mean_of_tokens_and_each_token_a_mean_of_slots(device):
    x = torch.randn(2, 7, 4, dtype=F64, device=device)
    moe = SoftMoE(4, 8, 3, 2, dtype=F64, device=device)
    dispatch, combine = moe.slot_weights(x)
    assert dispatch.shape == combine.shape == (2, 7, 6)
    assert (dispatch > 0).all() and (combine > 0).all()  # everyone takes part everywhere
    torch.testing.assert_close(dispatch.sum(dim=1), torch.ones(2, 6, dtype=F64, device=device))
    torch.testing.assert_close(combine.sum(dim=2), torch.ones(2, 7, dtype=F64, device=device))
    logits = x @ moe.phi.T
    torch.testing.assert_close(dispatch / combine, logits.softmax(1) / logits.softmax(2))


def test_each_expert_works_on_its_own_slots():
    """Slots stand expert by expert: with phi all zero every slot holds the plain mean of the tokens."""
    torch.manual_seed(0)
    moe, x = SoftMoE(4, 8, 3, 2, dtype=F64), torch.randn(5, 4, dtype=F64)
    slots = torch.randn(6, 4, dtype=F64)
    expected = torch.stack([expert_row(row, moe.experts, slot // 2) for slot, row in enumerate(slots)])
    torch.testing.assert_close(moe.run_experts(slots), expected)
    moe.phi.data.zero_()
    mean = sum(expert_row(x.mean(dim=0), moe.experts, e) for e in range(3)) / 3
    torch.testing.assert_close(moe(x), mean.expand(5, 4))


def test_one_expert_with_one_slot_gives_every_token_the_same():
    moe, x = SoftMoE(4, 8, 1, dtype=F64), torch.randn(5, 4, dtype=F64)
    ffn = FeedForward(4, 8, dtype=F64)
    ffn.load_state_dict({name: weight[0] for name, weight in moe.experts.state_dict().items()})
    slot = (x @ moe.phi[0]).softmax(dim=0) @ x
    torch.testing.assert_close(moe(x), ffn(slot).expand(5, 4))
    torch.testing.assert_close(moe(x[:1]), ffn(x[:1]))  # one token alone: a dense FFN


def test_the_order_of_the_tokens_does_not_matter(device):
    moe = SoftMoE(4, 8, 3, 2, dtype=F64, device=device)
    x, order = torch.randn(2, 11, 4, dtype=F64, device=device), torch.randperm(11, device=device)
    torch.testing.assert_close(moe(x[:, order]), moe(x)[:, order])


def test_sequences_do_not_mix(device):
    moe = SoftMoE(4, 8, 3, 2, dtype=F64, device=device)
    x = torch.randn(2, 3, 5, 4, dtype=F64, device=device)
    one_by_one = torch.stack([torch.stack([moe(sequence) for sequence in batch]) for batch in x])
    torch.testing.assert_close(moe(x), one_by_one)


def test_a_token_sees_the_future():
    torch.manual_seed(0)
    moe, x = SoftMoE(4, 8, 3), torch.randn(6, 4)
    changed = torch.cat([x[:-1], torch.randn(1, 4)])
    assert not moe.causal
    assert not torch.allclose(moe(x)[0], moe(changed)[0], rtol=1e-3)


def test_every_expert_and_slot_learns():
    torch.manual_seed(0)
    moe = SoftMoE(4, 8, 5, 2)
    (moe(torch.randn(3, 7, 4)) * torch.randn(3, 7, 4)).sum().backward()
    assert moe.phi.grad.any(dim=1).all() and moe.experts.down_proj.grad.flatten(1).any(dim=1).all()


@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (2, 0, 4), (0, 3, 4), (2, 3, 5, 4)])
def test_any_leading_shape(shape, device):
    x = torch.randn(shape, device=device, requires_grad=True)
    moe = SoftMoE(4, 8, 3, 2, device=device)
    moe(x).sum().backward()
    assert moe(x).shape == x.grad.shape == shape and x.grad.isfinite().all()


def test_input_need_not_be_contiguous():
    moe, x = SoftMoE(4, 8, 3, 2), torch.randn(4, 5, 2).permute(2, 1, 0)
    assert not x.is_contiguous()
    torch.testing.assert_close(moe(x), moe(x.contiguous()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, F64])
def test_output_has_the_type_of_the_input(dtype, device):
    torch.manual_seed(0)
    moe = SoftMoE(16, 8, 3, 2, dtype=dtype, device=device)
    x = torch.randn(2, 9, 16, dtype=dtype, device=device)
    exact = SoftMoE(16, 8, 3, 2, dtype=F64, device=device)
    exact.load_state_dict(moe.state_dict())
    assert moe(x).dtype == dtype
    torch.testing.assert_close(moe(x).double(), exact(x.double()), rtol=0.05, atol=0.02)


def test_it_is_no_mixture_that_chooses():
    assert not is_moe(SoftMoE(4, 8, 3))


def test_repr():
    text = repr(SoftMoE(4, 8, 3, 2, activation="gelu"))
    assert "slots_per_expert=2" in text and "num_experts=3, d_model=4, d_ff=8, activation='gelu'" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"d_model": 0}, "d_model must be a whole number of at least 1, got 0"),
        ({"d_ff": 0}, "d_ff must be a whole number of at least 1, got 0"),
        ({"num_experts": 0}, "num_experts must be a whole number of at least 1, got 0"),
        ({"slots_per_expert": 0}, "slots_per_expert must be a whole number of at least 1, got 0"),
        ({"slots_per_expert": 1.5}, r"slots_per_expert must be a whole number of at least 1, got 1\.5"),
        ({"activation": "tanh"}, "activation must be one of .*, got 'tanh'"),
        ({"device": "cuda:99"}, "device must be one of 'cpu'.* on this machine, got 'cuda:99'"),
        ({"dtype": torch.int64}, "dtype must be a floating-point type, got torch.int64"),
        ({"dtype": torch.float8_e4m3fn}, "dtype must be a type .*, got torch.float8_e4m3fn"),
    ],
)
def test_bad_arguments(arguments, message):
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=f"^{message}$"):
        SoftMoE(**{"d_model": 4, "d_ff": 8, "num_experts": 3, **arguments})
    assert torch.equal(torch.get_rng_state(), before), "a refused call has drawn random numbers"


@pytest.mark.parametrize(
    "x, error, message",
    [
        (torch.zeros(4), ValueError, r"x must have the shape \(\.\.\., T, 4\), got \(4,\)"),
        (torch.zeros(3, 5), ValueError, r"the last dimension of x must be d_model \(4\), got shape \(3, 5\)"),
        (torch.zeros(3, 4).long(), ValueError, "x must be a floating-point tensor, got torch.int64"),
        (torch.zeros(3, 4).double(), ValueError, r"x must have the type of the weights \(torch.float32\), got .*64"),
        (torch.full((2, 4), torch.nan), NonFiniteError, "x must be finite, got NaN or infinity in 8 of its 8 entries"),
    ],
)
def test_bad_input(x, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        SoftMoE(4, 8, 3)(x)


@pytest.mark.parametrize("dtype, scale", [(torch.float16, 100), (torch.float32, 1e20)])
def test_logits_that_overflow_are_refused(dtype, scale):
    soft = SoftMoE(4, 8, 3, dtype=dtype)
    with torch.no_grad():
        soft.phi.fill_(scale * 10)
    with pytest.raises(NonFiniteError, match="^logits must be finite, got NaN or infinity: phi has diverged"):
        soft(torch.full((2, 4), scale, dtype=dtype))
