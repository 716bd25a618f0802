"""Every way to run the experts computes the same sum, whatever the assignments are."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_same, by_rows, combine, ffn_row, gradients
from torch.nn import functional as F

from moe_lessons.nn import ACTIVATIONS, DISPATCH, Experts, FeedForward, MoE, Routing, choose_dispatch

F64 = torch.float64
ways = pytest.mark.parametrize("way", DISPATCH)


def free_routing(pairs, num_tokens: int, num_experts: int, device="cpu", dtype=F64) -> Routing:
    """A routing with any assignments (token, expert): tokens with no expert, with many, and the same pair twice."""
    probs = torch.full((num_tokens, num_experts), 1 / num_experts, dtype=dtype, device=device)
    token_idx, expert_idx = torch.tensor(pairs, dtype=torch.int64, device=device).reshape(-1, 2).unbind(dim=1)
    weight = torch.randn(len(pairs), dtype=dtype, device=device, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    return Routing(probs.log(), probs, token_idx, expert_idx, weight, none, none)


def make_case(pairs, num_tokens, num_experts, d_model, d_ff, device, dtype=F64, **kinds):
    """Experts, x (T, D), the routing of these pairs, and all that has a gradient."""
    experts = Experts(num_experts, d_model, d_ff, **kinds).to(device, dtype)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    x = torch.randn(num_tokens, d_model, dtype=dtype, device=device, requires_grad=True)
    routing = free_routing(pairs, num_tokens, num_experts, device, dtype)
    return experts, x, routing, [x, routing.weight, *experts.parameters()]


PAIRS = [(0, 2), (1, 0), (3, 2), (0, 0), (3, 2), (4, 3)]  # of 5 tokens and 4 experts: one has none, a pair comes twice


@st.composite
def cases(draw):
    num_tokens, num_experts = draw(st.integers(0, 6)), draw(st.integers(1, 5))
    pair = st.tuples(st.integers(0, num_tokens - 1), st.integers(0, num_experts - 1))
    pairs = draw(st.lists(pair, max_size=15)) if num_tokens else []
    kinds = {"activation": draw(st.sampled_from(list(ACTIVATIONS)))}
    torch.manual_seed(draw(st.integers(0, 99)))
    return (pairs, num_tokens, num_experts, draw(st.integers(1, 4)), draw(st.integers(1, 5))), kinds


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@ways
@given(cases())
def test_equals_the_loop_over_assignments(way, dtype, device, case):
    (pairs, num_tokens, num_experts, *widths), kinds = case
    tolerance = {}
    if dtype == torch.float32:  # in rows of whole 16 bytes, as grouped_mm wants
        widths, tolerance = [4 * width for width in widths], {"rtol": 1e-4, "atol": 1e-3}
    experts, x, routing, inputs = make_case(pairs, num_tokens, num_experts, *widths, device, dtype, **kinds)
    expected = combine(x, [(*pair, weight) for pair, weight in zip(pairs, routing.weight)], experts)
    assert_same(DISPATCH[way](experts, x, routing), expected, inputs, **tolerance)


@pytest.mark.parametrize("layout", ["without grouped_mm", "transposed", "not aligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_where_grouped_mm_cannot_be_used(layout, dtype, device, monkeypatch):
    torch.manual_seed(0)
    experts, x, routing, inputs = make_case(PAIRS, 5, 4, 16, 8, device, dtype=dtype)
    if layout == "without grouped_mm":
        monkeypatch.delattr(F, "grouped_mm", raising=False)  # as in torch before 2.10
    elif layout == "transposed":
        experts.gate_up_proj.data = torch.randn(4, 16, 16, dtype=dtype, device=device).mT
    else:
        experts.gate_up_proj.data = torch.randn(4 * 16 * 16 + 1, dtype=dtype, device=device)[1:].view(4, 16, 16)
    results = []
    for way in ("grouped", "loop"):
        y = DISPATCH[way](experts, x, routing)
        results.append([y, *gradients(y, inputs, torch.ones_like(y))])
    for value, expected in zip(*results):
        assert (value - expected).norm() < 8 * torch.finfo(dtype).eps * expected.norm()


@pytest.mark.parametrize("top_k", [2, 8])
@ways
def test_autocast_adds_the_experts_of_a_token_in_float32(way, top_k, device):
    """As the loop does: the error is that of the products in bfloat16 alone."""
    squares = {way: 0.0, "loop": 0.0}
    for seed in range(5):
        torch.manual_seed(seed)
        moe, x = MoE(32, 16, 8, top_k).to(device), torch.randn(200, 32, device=device)
        expected = copy.deepcopy(moe).double()(x.double())[0]
        for name in squares:
            moe.dispatch = name
            with torch.autocast(device, torch.bfloat16):
                squares[name] += (moe(x)[0] - expected).square().sum().item()
    assert squares[way] ** 0.5 <= 1.02 * squares["loop"] ** 0.5


@pytest.mark.parametrize("way", sorted(set(DISPATCH) - {"dense"}))
def test_an_expert_that_overflows_spoils_its_own_tokens_alone(way, device):
    """In float16 that is soon so: 65,504 is the largest number."""
    torch.manual_seed(0)
    moe = MoE(8, 16, 4, 1, dispatch=way).to(device, torch.float16)
    with torch.no_grad():
        moe.experts.in_proj[3] *= 3e3
    y, routing = moe((8 * torch.randn(50, 8, device=device)).half())
    served = torch.zeros(50, dtype=torch.bool, device=device)
    served[routing.token_idx[routing.expert_idx == 3]] = True
    assert 0 < served.sum() < 50 and not y[served].isfinite().all()
    assert y[~served].isfinite().all()
    y[~served].float().square().sum().backward()
    assert moe.experts.in_proj.grad[:3].isfinite().all()


@ways
def test_torch_func_gives_the_same_gradients(way):
    torch.manual_seed(0)
    moe, x = MoE(16, 32, 4, 2, dispatch=way), torch.randn(9, 16)
    weights = dict(moe.named_parameters())

    def mean_square(weights: dict) -> torch.Tensor:
        return torch.func.functional_call(moe, weights, (x,))[0].square().mean()

    made = torch.func.grad(mean_square)({name: weight.detach() for name, weight in weights.items()})
    expected = torch.autograd.grad(mean_square(weights), list(weights.values()))
    torch.testing.assert_close(list(made.values()), list(expected))


@pytest.mark.parametrize(
    "num_tokens, sizes, top_k, device, grad, way",
    [
        (256, (8, 16, 4), 2, "cpu", True, "dense"),  # the playground: all is tiny
        (2048, (64, 128, 128), 2, "cpu", True, "grouped"),
        (2048, (64, 256, 128), 8, "cpu", True, "grouped"),  # many experts
        (2048, (8, 256, 512), 2, "cpu", True, "loop"),  # few, and each has much to do
        (2048, (8, 256, 512), 2, "meta", True, "grouped"),  # but not on a GPU
        (0, (8, 16, 8), 2, "cpu", True, "dense"),
        (1, (64, 256, 128), 8, "cpu", False, "loop"),  # as in decoding
        (1, (64, 256, 128), 8, "cpu", True, "grouped"),
    ],
)
def test_auto_takes_what_suits_the_size(num_tokens, sizes, top_k, device, grad, way):
    pairs = [(a % num_tokens, a % sizes[0]) for a in range(num_tokens * top_k)]
    with torch.set_grad_enabled(grad):
        experts = Experts(*sizes).to(device)
        assert choose_dispatch(experts, free_routing(pairs, num_tokens, sizes[0])) == way


activations = pytest.mark.parametrize("activation", ACTIVATIONS)


@activations
def test_equals_the_formula_row_by_row(activation, device):
    ffn = FeedForward(5, 7, activation).to(device, F64)
    x = torch.randn(6, 5, dtype=F64, device=device)
    torch.testing.assert_close(ffn(x), by_rows(lambda row: ffn_row(row, ffn), x))


def test_weights_start_as_those_of_nn_linear():
    """Uniform in ±1/√in: the largest of many comes close to the bound, and the standard deviation is bound/√3."""
    torch.manual_seed(0)
    for weight, bound in [(FeedForward(16, 400).gate_up_proj, 1 / 4), (Experts(5, 9, 100).gate_up_proj, 1 / 3)]:
        assert 0.99 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
