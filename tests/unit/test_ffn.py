"""FeedForward and Experts: the formulas, row by row, and what is refused."""

import math
from types import SimpleNamespace

import pytest
import torch
from oracle import expert_row
from torch.autograd import gradcheck

from moe_lessons.errors import NonFiniteError
from moe_lessons.nn import ACTIVATIONS, Experts, FeedForward

F64 = torch.float64
GATED = ("swiglu", "clamped_swiglu")
ACTIVATIONS_IN_WORDS = ", ".join(map(repr, ACTIVATIONS))
activations = pytest.mark.parametrize("activation", ACTIVATIONS)


@activations
def test_equals_the_formula_row_by_row(activation, device):
    ffn = FeedForward(5, 7, activation, dtype=F64, device=device)
    alone = SimpleNamespace(
        in_proj=ffn.in_proj[None], down_proj=ffn.down_proj[None], in_bias=None, activation=activation
    )
    for scale in (1, 100):  # large enough to be clamped
        x = scale * torch.randn(6, 5, dtype=F64, device=device)
        torch.testing.assert_close(ffn(x), torch.stack([expert_row(row, alone, 0) for row in x]))


def test_clamped_swiglu_by_hand():
    """(up + 1) · gate · σ(1.702 gate): the gate is cut above 7 alone, up on both sides."""
    half = 1 / (1 + math.exp(-0.5 * 1.702))
    cases = [  # gate, up, value
        (0.5, 2.0, 3 * 0.5 * half),
        (0.5, -1.0, 0),
        (0.5, 100.0, 8 * 0.5 * half),
        (0.5, -100.0, -6 * 0.5 * half),
        (100.0, 0.0, 7 / (1 + math.exp(-7 * 1.702))),
        (-2.0, 0.0, -2 / (1 + math.exp(2 * 1.702))),
        (-9.0, 1.0, -18 / (1 + math.exp(9 * 1.702))),  # below -7 it is left as it is
    ]
    gates, ups, values = torch.tensor(cases, dtype=F64).unbind(dim=1)
    result = ACTIVATIONS["clamped_swiglu"](torch.cat([gates, ups]))
    torch.testing.assert_close(result, values)


@activations
def test_gradients(activation, device):
    ffn = FeedForward(3, 4, activation, dtype=F64, device=device)
    x = torch.randn(2, 3, dtype=F64, device=device, requires_grad=True)
    names, values = zip(*ffn.named_parameters())
    assert gradcheck(lambda x, *p: torch.func.functional_call(ffn, dict(zip(names, p)), x), (x, *values))


@pytest.mark.parametrize("shape", [(4,), (0, 4), (1, 4), (2, 3, 4), (2, 0, 4)])
def test_any_leading_shape(shape):
    x = torch.randn(shape)
    ffn = FeedForward(4, 8)
    assert ffn(x).shape == shape
    torch.testing.assert_close(ffn(x), ffn(x.reshape(-1, 4)).reshape(shape))


def test_input_need_not_be_contiguous():
    ffn, x = FeedForward(4, 8), torch.randn(4, 6).T
    assert not x.is_contiguous()
    torch.testing.assert_close(ffn(x), ffn(x.contiguous()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, F64])
def test_output_has_the_type_of_the_input(dtype, device):
    ffn = FeedForward(4, 8, device=device, dtype=dtype)
    assert ffn(torch.randn(3, 4, device=device, dtype=dtype)).dtype == dtype


@activations
def test_parameters_and_their_layout(activation):
    shapes = {name: tuple(p.shape) for name, p in FeedForward(4, 16, activation).named_parameters()}
    name, rows = ("gate_up_proj", 32) if activation in GATED else ("up_proj", 16)
    assert shapes == {name: (rows, 4), "down_proj": (4, 16)}
    stacked = {name: tuple(p.shape) for name, p in Experts(3, 4, 16, activation).named_parameters()}
    assert stacked == {name: (3, *shape) for name, shape in shapes.items()}
    biased = {n: tuple(p.shape) for n, p in Experts(3, 4, 16, activation, bias=True).named_parameters()}
    assert biased == {**stacked, f"{name}_bias": (3, rows), "down_proj_bias": (3, 4)}


@activations
def test_experts_know_their_input_weight_and_bias(activation):
    plain, biased = Experts(3, 4, 16, activation), Experts(3, 4, 16, activation, bias=True)
    name = "gate_up_proj" if activation in GATED else "up_proj"
    assert plain.in_proj is getattr(plain, name) and plain.in_bias is None and plain.down_proj_bias is None
    assert biased.in_bias is getattr(biased, f"{name}_bias")
    assert not biased.in_bias.any() and not biased.down_proj_bias.any()  # they start at zero
    assert biased.in_bias.requires_grad and biased.in_bias.dtype == biased.in_proj.dtype
    assert set(plain.state_dict()) == {name, "down_proj"}


def test_weights_start_as_those_of_nn_linear():
    """Uniform in ±1/√in: the largest of many comes close to the bound, and the standard deviation is bound/√3."""
    torch.manual_seed(0)
    for weight, bound in [(FeedForward(16, 400).gate_up_proj, 1 / 4), (Experts(5, 9, 100).gate_up_proj, 1 / 3)]:
        assert 0.99 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)


def test_repr_tells_the_sizes():
    assert repr(FeedForward(4, 16, "gelu")) == "FeedForward(d_model=4, d_ff=16, activation='gelu')"
    sizes = "num_experts=8, d_model=4, d_ff=16, activation="
    assert repr(Experts(8, 4, 16)) == f"Experts({sizes}'swiglu')"
    both = Experts(8, 4, 16, "relu", bias=True, weight_input=True)
    assert repr(both) == f"Experts({sizes}'relu', bias=True, weight_input=True)"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"d_model": 0}, r"d_model must be a whole number of at least 1, got 0"),
        ({"d_ff": 0}, r"d_ff must be a whole number of at least 1, got 0"),
        ({"d_ff": -3}, r"d_ff must be a whole number of at least 1, got -3"),
        ({"d_ff": 2.5}, r"d_ff must be a whole number of at least 1, got 2\.5"),
        ({"d_ff": True}, r"d_ff must be a whole number of at least 1, got True"),
        ({"activation": "tanh"}, f"activation must be one of {ACTIVATIONS_IN_WORDS}, got 'tanh'"),
        ({"dtype": torch.int64}, r"dtype must be a floating-point type, got torch.int64"),
        ({"dtype": torch.float8_e4m3fn}, r"dtype must be a type that .* can multiply .*, got torch.float8_e4m3fn"),
        ({"dtype": "float32"}, r"dtype must be a floating-point type, got 'float32'"),
        ({"device": "cuda:99"}, r"device must be one of 'cpu'.* on this machine, got 'cuda:99'"),
        ({"device": "gpu"}, r"device must be one of 'cpu'.* on this machine, got 'gpu'"),
    ],
)
@pytest.mark.parametrize("make", [FeedForward, lambda **kwargs: Experts(3, **kwargs)], ids=["FeedForward", "Experts"])
def test_bad_arguments(make, arguments, message):
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=f"^{message}$"):
        make(**{"d_model": 4, "d_ff": 8, **arguments})
    assert torch.equal(torch.get_rng_state(), before), "a refused call has drawn random numbers"


@pytest.mark.parametrize(
    "x, error, message",
    [
        (torch.zeros(3, 5), ValueError, r"the last dimension of x must be d_model \(4\), got shape \(3, 5\)"),
        (torch.tensor(1.0), ValueError, r"the last dimension of x must be d_model \(4\), got shape \(\)"),
        (torch.zeros(3, 4, dtype=torch.int64), ValueError, "x must be a floating-point tensor, got torch.int64"),
        ([[0.0] * 4], ValueError, "x must be a floating-point tensor, got list"),
        (torch.full((2, 4), torch.nan), NonFiniteError, "x must be finite, got NaN or infinity in 8 of its 8 entries"),
        (torch.tensor([0, torch.inf, 0, -torch.inf]), NonFiniteError, "x must be finite, got .* in 2 of its 4 entries"),
    ],
)
def test_bad_input(x, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        FeedForward(4, 8)(x)


def test_large_finite_input_is_not_mistaken_for_infinity():
    x = torch.full((4, 4), 3e38)  # its sum is infinite in float32
    assert FeedForward(4, 8)(x).shape == (4, 4)
