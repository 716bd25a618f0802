"""Every way to run the experts computes the same sum, whatever the assignments are."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import combine_experts, gradients
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from moe_lessons.nn import ACTIVATIONS, DISPATCH, Experts, MoE, Routing, choose_dispatch, grouped, torch_threads
from moe_lessons.nn.dispatch import describe_dispatch

F64 = torch.float64
ways = pytest.mark.parametrize("way", DISPATCH)


def free_routing(token_idx, expert_idx, num_tokens: int, num_experts: int, device="cpu", dtype=F64) -> Routing:
    """A routing with any assignments: tokens with no expert, with many, and the same pair twice."""
    probs = torch.full((num_tokens, num_experts), 1 / num_experts, dtype=dtype, device=device)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    return Routing(
        router_logits=probs.log(),
        router_probs=probs,
        token_idx=torch.tensor(token_idx, dtype=torch.int64, device=device),
        expert_idx=torch.tensor(expert_idx, dtype=torch.int64, device=device),
        weight=torch.randn(len(token_idx), dtype=dtype, device=device, requires_grad=True),
        dropped_token_idx=none,
        dropped_expert_idx=none,
    )


def make_case(pairs, num_tokens, num_experts, d_model, d_ff, device, dtype=F64, **kwargs):
    """Experts with no weight and no bias at zero, x (T, D), and the routing of these (token, expert) pairs."""
    experts = Experts(num_experts, d_model, d_ff, device=device, dtype=dtype, **kwargs)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    x = torch.randn(num_tokens, d_model, dtype=dtype, device=device, requires_grad=True)
    return (
        experts,
        x,
        free_routing([t for t, _ in pairs], [e for _, e in pairs], num_tokens, num_experts, device, dtype),
    )


PAIRS = [(0, 2), (1, 0), (3, 2), (0, 0), (3, 2), (4, 3)]  # of 5 tokens and 4 experts: one has none, a pair comes twice


@st.composite
def cases(draw):
    """The arguments of `make_case` but the device, and a size of blocks that cuts these few rows into several."""
    num_tokens, num_experts = draw(st.integers(0, 6)), draw(st.integers(1, 5))
    pair = st.tuples(st.integers(0, num_tokens - 1), st.integers(0, num_experts - 1))
    pairs = draw(st.lists(pair, max_size=15)) if num_tokens else []
    sizes = (num_tokens, num_experts, draw(st.integers(1, 4)), draw(st.integers(1, 5)))
    kinds = {"activation": draw(st.sampled_from(list(ACTIVATIONS)))}
    kinds |= {"bias": draw(st.booleans()), "weight_input": draw(st.booleans())}
    torch.manual_seed(draw(st.integers(0, 99)))
    return pairs, sizes, kinds, draw(st.sampled_from([1, 200, 10**6]))


@ways
@given(cases())
def test_equals_the_loop_over_assignments(way, device, case):
    pairs, sizes, kinds, block_bytes = case
    experts, x, routing = make_case(pairs, *sizes, device, **kinds)
    expected = combine_experts(x, zip(routing.token_idx.tolist(), routing.expert_idx.tolist(), routing.weight), experts)
    with patch.object(grouped, "BLOCK_BYTES", block_bytes):
        y = DISPATCH[way](experts, x, routing)
    torch.testing.assert_close(y, expected)
    inputs, cotangent = (x, routing.weight, *experts.parameters()), torch.randn_like(y)
    torch.testing.assert_close(gradients(y, inputs, cotangent), gradients(expected, inputs, cotangent))


@pytest.mark.parametrize("weight_input", [False, True])
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@ways
def test_gradcheck(way, activation, weight_input, device):
    """Against differences of the outputs, which know nothing of a backward pass."""
    torch.manual_seed(0)
    kinds = {"activation": activation, "weight_input": weight_input, "bias": True}
    experts, x, routing = make_case(PAIRS, 5, 4, 3, 2, device, **kinds)
    inputs = (x, routing.weight, *experts.parameters())
    assert torch.autograd.gradcheck(lambda *_: DISPATCH[way](experts, x, routing), inputs)


@pytest.mark.parametrize("kinds", [{}, {"bias": True}, {"activation": "relu", "weight_input": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@ways
def test_every_type_of_weights(way, dtype, kinds, device):
    """In low precision within its rounding of what float64 gives, forward and backward."""
    torch.manual_seed(0)
    exact = make_case(PAIRS, 5, 4, 16, 8, device, **kinds)
    experts = Experts(4, 16, 8, dtype=dtype, device=device, **kinds)
    experts.load_state_dict(exact[0].state_dict())
    x = exact[1].detach().to(dtype).requires_grad_()

    def run(experts, x, way):
        y = DISPATCH[way](experts, x, exact[2])
        return [y, *gradients(y, [x, exact[2].weight, *experts.parameters()], torch.ones_like(y))]

    for value, expected in zip(run(experts, x, way), run(*exact[:2], "dense")):
        error = (value.double() - expected.double()).norm() / expected.double().norm()
        assert error < 8 * torch.finfo(dtype).eps, error


@ways
def test_autocast(way, device):
    """Products in bfloat16, y and the gradients in the type of their tensors."""
    torch.manual_seed(0)
    experts, x, routing = make_case(PAIRS, 5, 4, 16, 8, device, dtype=torch.float32, bias=True)
    inputs = [x, routing.weight, *experts.parameters()]
    plain = DISPATCH["dense"](experts, x, routing)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = DISPATCH[way](experts, x, routing)
    assert y.dtype == torch.float32
    cotangent = torch.randn_like(y)
    assert 1e-4 < (y - plain).norm() / plain.norm() < 0.03
    for value, expected in zip(gradients(y, inputs, cotangent), gradients(plain, inputs, cotangent)):
        assert value.dtype == torch.float32
        assert (value - expected).norm() < 0.03 * expected.norm()


@ways
def test_gradient_of_a_plain_sum(way, device):
    """The gradient that comes from `.sum()` has stride 0, which some kernels refuse."""
    moe = MoE(4, 8, 3, 2, dispatch=way, device=device)
    moe(torch.randn(5, 4, device=device))[0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in moe.parameters())


@ways
def test_the_input_is_left_as_it_is(way, device):
    experts, x, routing = make_case(PAIRS, 5, 4, 3, 2, device, bias=True)
    tensors = [x, routing.weight, routing.token_idx, *experts.parameters()]
    before = [tensor.detach().clone() for tensor in tensors]
    y = DISPATCH[way](experts, x, routing)
    cotangent = torch.randn_like(y)
    kept = cotangent.clone()
    y.backward(cotangent)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip([*tensors, cotangent], [*before, kept]))


@ways
def test_without_gradients(way, device):
    experts, x, routing = make_case(PAIRS, 5, 4, 3, 2, device)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = DISPATCH[way](experts, x, routing)
        assert not y.requires_grad
        torch.testing.assert_close(y, DISPATCH["dense"](experts, x, routing).detach())


# --- what is frozen, and what it costs ------------------------------------------------------------------------


def backward_flops(way, device, frozen=()) -> int:
    """The arithmetic of the backward pass, in products of one assignment with one matrix of F x D."""
    experts, x, routing = make_case(PAIRS, 5, 4, 8, 6, device, activation="relu")
    for name in frozen:
        {"x": x, "in_proj": experts.in_proj, "down_proj": experts.down_proj}[name].requires_grad_(False)
    y = DISPATCH[way](experts, x, routing)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    for name, tensor in {"x": x, "in_proj": experts.in_proj, "down_proj": experts.down_proj}.items():
        assert (tensor.grad is None) == (name in frozen)
    assert routing.weight.grad.isfinite().all()
    return counter.get_total_flops() / (2 * 8 * 6 * len(PAIRS))


@pytest.mark.parametrize("way", ["loop", "grouped", "gather"])
def test_frozen_tensors_cost_no_gradient(way, device):
    """Two products give the gradients of x and of the hidden layer, two those of the two weights."""
    assert backward_flops(way, device) == 4
    assert backward_flops(way, device, ["x"]) == 3
    assert backward_flops(way, device, ["in_proj"]) == 3
    assert backward_flops(way, device, ["down_proj"]) == 3
    assert backward_flops(way, device, ["x", "in_proj", "down_proj"]) == 1


@ways
def test_all_frozen_but_one(way, device):
    """Whichever tensor alone wants a gradient gets the one that it gets among all."""
    torch.manual_seed(0)
    experts, x, routing = make_case(PAIRS, 5, 4, 3, 2, device, bias=True)
    inputs = [x, routing.weight, *experts.parameters()]
    y = DISPATCH[way](experts, x, routing)
    cotangent = torch.randn_like(y)
    expected = gradients(y, inputs, cotangent)
    for i, tensor in enumerate(inputs):
        for other in inputs:
            other.requires_grad_(other is tensor)
        y = DISPATCH[way](experts, x, routing)
        torch.testing.assert_close(gradients(y, [tensor], cotangent)[0], expected[i])


@pytest.mark.parametrize("top_k", [1, 2, 8])
def test_the_arithmetic_of_k_experts_and_for_dense_of_all(top_k, device):
    def flops(way):  # float64: the counter does not know grouped_mm
        moe, x = MoE(16, 32, 8, top_k, dispatch=way, device=device, dtype=F64), torch.randn(64, 16, dtype=F64)
        with FlopCounterMode(display=False) as counter:
            busiest = int(moe(x.to(device))[1].tokens_per_expert.max())
        return counter.get_total_flops() - 2 * 64 * 16 * 8, busiest  # without the router

    one_row = 2 * 3 * 16 * 32
    for way in ("loop", "grouped", "gather"):
        assert flops(way)[0] == top_k * 64 * one_row
    assert flops("dense")[0] == 8 * 64 * one_row
    total, busiest = flops("padded")
    assert total == 8 * busiest * one_row


def test_grouped_keeps_the_pre_activations_alone(device):
    """Between forward and backward: A·2F numbers, beside its inputs and a weight for each assignment."""
    experts, x, routing = make_case(PAIRS, 5, 4, 8, 6, device)
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        DISPATCH["grouped"](experts, x, routing)
    for tensor in (x, *experts.parameters()):
        kept.pop(tensor.data_ptr(), None)
    assert sum(tensor.numel() for tensor in kept.values() if tensor.ndim > 1) == len(PAIRS) * 2 * 6


@ways
def test_activation_checkpointing(way, device):
    """torch.utils.checkpoint computes the forward pass again: the same gradients."""
    experts, x, routing = make_case(PAIRS, 5, 4, 3, 2, device, bias=True)
    inputs = [x, routing.weight, *experts.parameters()]
    plain = gradients(DISPATCH[way](experts, x, routing), inputs, torch.ones_like(x))
    y = checkpoint(DISPATCH[way], experts, x, routing, use_reentrant=False)
    torch.testing.assert_close(gradients(y, inputs, torch.ones_like(x)), plain)


def test_grouped_under_torch_compile():
    """Its tracer has no grouped_mm for float32: there, too, our own products are a legal fall-back."""
    torch.manual_seed(0)
    moe, x = MoE(16, 32, 4, 2, dispatch="grouped"), torch.randn(9, 16, requires_grad=True)
    inputs = [x, *moe.parameters()]
    y = moe(x)[0]
    compiled = torch.compile(moe, backend="aot_eager")(x)[0]
    torch.testing.assert_close(compiled, y)
    cotangent = torch.randn_like(y)
    torch.testing.assert_close(gradients(compiled, inputs, cotangent), gradients(y, inputs, cotangent))
    torch.compiler.reset()


def test_grouped_refuses_a_second_derivative(device):
    experts, x, routing = make_case(PAIRS, 5, 4, 3, 2, device)
    for way in DISPATCH:
        y = DISPATCH[way](experts, x, routing)
        (d_x,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        if way == "grouped":
            with pytest.raises(RuntimeError, match="once_differentiable"):
                d_x.sum().backward()
        else:
            assert torch.autograd.grad(d_x.sum(), x)[0].any()


# --- the products of 'grouped' --------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(0, 20))
def test_blocks_hold_every_row_and_every_expert_once(counts, rows_per_block):
    blocks = grouped.split_into_blocks(counts, rows_per_block, fast=True)
    assert [count for block in blocks for count in block.counts] == counts
    assert [e for block in blocks for e in range(len(counts))[block.experts]] == list(range(len(counts)))
    assert [row for block in blocks for row in range(sum(counts))[block.rows]] == list(range(sum(counts)))
    for block in blocks:
        assert block.rows.stop - block.rows.start == sum(block.counts)
        assert block.ends.tolist() == [sum(block.counts[: i + 1]) for i in range(len(block.counts))]
    assert all(sum(block.counts) >= rows_per_block for block in blocks[:-1])


needs_grouped_mm = pytest.mark.skipif(
    not hasattr(torch.nn.functional, "grouped_mm"), reason="torch has no grouped_mm before 2.10"
)


@needs_grouped_mm
@pytest.mark.parametrize("kinds", [{}, {"bias": True}, {"activation": "gelu", "weight_input": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pairs", [PAIRS, []], ids=["some", "none"])
def test_grouped_mm_equals_our_own_products(pairs, dtype, kinds, device):
    """All rows in one block of grouped_mm, as on a GPU, here on every device, and blocks without grouped_mm."""
    torch.manual_seed(0)
    experts, x, routing = make_case(pairs, 5, 4, 16, 8, device, dtype=dtype, **kinds)
    inputs = [x, routing.weight, *experts.parameters()]

    def run(in_blocks, reason):
        with patch.object(grouped, "IN_BLOCKS", in_blocks), patch.object(grouped, "BLOCK_BYTES", 200):
            with patch.object(grouped, "why_own_products", lambda *weights: reason):
                y = DISPATCH["grouped"](experts, x, routing)
        return y, *gradients(y, inputs, torch.ones_like(y).sum().expand_as(y))

    tolerance = {"rtol": 0, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.1}
    expected = run((), "not wanted here")
    for case in [((), ""), (("cpu",), ""), (("cpu",), "not wanted here")]:
        for value, correct in zip(run(*case), expected):
            torch.testing.assert_close(value, correct, **tolerance)


@needs_grouped_mm
@pytest.mark.parametrize(
    "d_model, d_ff, dtype, reason",
    [
        (16, 8, torch.float64, "no grouped_mm for float64"),
        (5, 8, torch.float32, "grouped_mm needs rows of a multiple of 16 bytes"),
        (8, 6, torch.float32, "grouped_mm needs rows of a multiple of 16 bytes"),
        (12, 8, torch.bfloat16, "grouped_mm needs rows of a multiple of 16 bytes"),
        (8, 4, torch.float32, ""),
        (16, 8, torch.bfloat16, ""),
    ],
)
def test_the_reason_is_what_torch_says(d_model, d_ff, dtype, reason, device):
    """`why_own_products` knows from the weights whether grouped_mm would refuse, forward or backward."""
    experts, x, routing = make_case(PAIRS, 5, 4, d_model, d_ff, device, dtype=dtype)
    assert grouped.why_own_products(experts.in_proj, experts.down_proj) == reason
    shown = describe_dispatch(experts, "grouped")
    assert shown == f"grouped (one product for each expert: {reason})" if reason else "grouped (grouped_mm)"
    with patch.object(grouped, "why_own_products", lambda *weights: ""):
        if reason:
            with pytest.raises(RuntimeError):
                DISPATCH["grouped"](experts, x, routing).sum().backward()
        else:
            DISPATCH["grouped"](experts, x, routing).sum().backward()


def test_weights_that_are_no_rows_or_not_aligned():
    experts = Experts(4, 16, 8)
    crooked = torch.randn(4, 16, 16).mT
    shifted = torch.randn(4 * 16 * 16 + 1)[1:].view(4, 16, 16)
    with patch.object(torch.nn.functional, "grouped_mm", None, create=True):
        for weight in (crooked, shifted):
            assert "contiguous and aligned" in grouped.why_own_products(weight, experts.down_proj)
    with patch.object(grouped, "F", object()):
        assert "no grouped_mm in torch" in grouped.why_own_products(experts.in_proj, experts.down_proj)


def test_describe_names_the_way():
    experts = Experts(2, 8, 4)
    assert [describe_dispatch(experts, way) for way in ("dense", "auto")] == ["dense", "auto"]
    with pytest.raises(ValueError, match="way must be one of 'dense', .*'auto', got 'fast'"):
        describe_dispatch(experts, "fast")


# --- the choice -----------------------------------------------------------------------------------------------


def chosen(num_tokens, d_model, d_ff, num_experts, top_k, expert_idx=None, threads=1) -> str:
    """What 'auto' takes for evenly spread tokens, or for these experts."""
    num_assignments = num_tokens * top_k
    expert_idx = [a % num_experts for a in range(num_assignments)] if expert_idx is None else expert_idx
    tokens = [a % num_tokens for a in range(num_assignments)]
    experts = Experts(num_experts, d_model, d_ff)
    with torch_threads(threads):
        return choose_dispatch(experts, free_routing(tokens, expert_idx, num_tokens, num_experts))


def test_auto_takes_what_suits_the_size():
    assert chosen(256, 16, 4, 8, 2) == "dense"  # the playground
    assert chosen(2048, 256, 512, 8, 2) == "grouped"
    assert chosen(2048, 128, 512, 64, 2) == "grouped"
    assert chosen(128, 16, 32, 64, 2) == "padded"
    assert chosen(128, 16, 32, 64, 2, expert_idx=[0] * 256) != "padded"  # padding would cost 64 · 256 rows
    assert chosen(1024, 64, 64, 64, 2) == "padded"  # small products, all in the cache
    assert chosen(1024, 64, 64, 64, 2, expert_idx=[0] * 2048) == "grouped"
    assert chosen(0, 16, 8, 8, 2) in DISPATCH


def test_with_more_threads_a_fixed_price_weighs_more():
    uneven = [0] * 50 + [a % 16 for a in range(1998)]
    assert chosen(1024, 64, 64, 16, 2, uneven, threads=1) == "grouped"
    assert chosen(1024, 64, 64, 16, 2, uneven, threads=4) == "padded"  # no sorting, no call for each expert


def test_auto_gathers_for_a_few_tokens_where_no_gradient_is_wanted():
    assert chosen(2, 256, 128, 64, 4) != "gather" and chosen(1, 256, 128, 64, 8) != "loop"
    with torch.no_grad():
        assert chosen(2, 256, 128, 64, 4) == "gather"
        assert chosen(2, 256, 128, 64, 4, threads=4) != "gather"  # they do not copy faster
        assert chosen(1, 256, 128, 64, 8) == "loop"  # a single token: nothing is copied
        assert chosen(4, 512, 1024, 8, 2, expert_idx=[0, 1, 2, 3] * 2) == "grouped"  # reads no weights of the others
        assert chosen(64, 256, 128, 64, 8) != "gather"
        assert chosen(2, 1024, 2048, 8, 2) != "gather"  # few, but large ones
        assert chosen(256, 16, 4, 8, 2) != "gather"  # small ones, but 512 of them


def test_auto_avoids_a_launch_for_each_expert_off_the_cpu():
    experts = {dtype: Experts(8, 256, 256, device="meta", dtype=dtype) for dtype in (torch.float32, F64)}
    routing = free_routing([a % 512 for a in range(1024)], [a % 8 for a in range(1024)], 512, 8)
    assert choose_dispatch(experts[F64], routing) == "padded"
    if hasattr(torch.nn.functional, "grouped_mm"):
        assert choose_dispatch(experts[torch.float32], routing) == "grouped"


@ways
def test_an_expert_that_overflows_spoils_its_own_tokens_alone(way, device):
    """In float16 that is soon so: 65,504 is the largest number."""
    torch.manual_seed(0)
    moe = MoE(8, 16, 4, 1, dispatch=way, dtype=torch.float16, device=device)
    with torch.no_grad():
        moe.experts.in_proj[3] *= 3e3
    x = (8 * torch.randn(50, 8, device=device)).half()
    y, routing = moe(x)
    served = torch.zeros(50, dtype=torch.bool, device=device)
    served[routing.token_idx[routing.expert_idx == 3]] = True
    assert 0 < served.sum() < 50 and not y[served].isfinite().all()
    assert y[~served].isfinite().all()
    y[~served].float().square().sum().backward()
    assert moe.experts.in_proj.grad[:3].isfinite().all()
