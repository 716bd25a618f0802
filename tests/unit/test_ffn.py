"""FeedForward and Experts: the formulas, row by row, their parameters, and how these start."""

import pytest
import torch
from oracle import by_rows, ffn_row

from moe_lessons.nn import ACTIVATIONS, Experts, FeedForward

F64 = torch.float64
activations = pytest.mark.parametrize("activation", ACTIVATIONS)


@activations
def test_equals_the_formula_row_by_row(activation, device):
    ffn = FeedForward(5, 7, activation).to(device, F64)
    for scale in (1, 100):  # large enough to be clamped
        x = scale * torch.randn(6, 5, dtype=F64, device=device)
        torch.testing.assert_close(ffn(x), by_rows(lambda row: ffn_row(row, ffn), x))


@activations
def test_parameters_and_their_layout(activation):
    name, rows = ("gate_up_proj", 32) if "swiglu" in activation else ("up_proj", 16)

    def shapes(module):
        return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}

    assert shapes(FeedForward(4, 16, activation)) == {name: (rows, 4), "down_proj": (4, 16)}
    plain, biased = Experts(3, 4, 16, activation), Experts(3, 4, 16, activation, bias=True)
    stacked = {name: (3, rows, 4), "down_proj": (3, 4, 16)}
    assert shapes(plain) == stacked
    assert shapes(biased) == {**stacked, f"{name}_bias": (3, rows), "down_proj_bias": (3, 4)}
    assert plain.in_proj is getattr(plain, name) and plain.in_bias is None and plain.down_proj_bias is None
    assert biased.in_bias is getattr(biased, f"{name}_bias") and set(plain.state_dict()) == set(stacked)
    assert not biased.in_bias.any() and not biased.down_proj_bias.any()  # they start at zero


def test_weights_start_as_those_of_nn_linear():
    """Uniform in ±1/√in: the largest of many comes close to the bound, and the standard deviation is bound/√3."""
    torch.manual_seed(0)
    for weight, bound in [(FeedForward(16, 400).gate_up_proj, 1 / 4), (Experts(5, 9, 100).gate_up_proj, 1 / 3)]:
        assert 0.99 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
