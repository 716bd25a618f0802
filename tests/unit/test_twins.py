"""Dense twins: as wide as they must be, everything else copied, nothing of the original changed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from moe_lessons.nn import (
    ACTIVATIONS,
    ExpertChoiceRouter,
    FeedForward,
    HashRouter,
    MoE,
    SigmoidRouter,
    dense_twin,
    is_moe,
)
from moe_lessons.tasks.plane import PlaneClassifier

matches = pytest.mark.parametrize("match, width", [("active", 2 * 16), ("total", 5 * 16)])


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@matches
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_twin_of_one_block(match, width, activation):
    moe = MoE(4, 16, 5, 2, activation=activation, dtype=torch.float64)
    twin = dense_twin(moe, match)
    assert isinstance(twin, FeedForward)
    assert (twin.d_model, twin.d_ff, twin.activation) == (4, width, activation)
    assert all(p.dtype == torch.float64 for p in twin.parameters())
    assert size(twin) == size(moe.experts) * width // (5 * 16)  # K of E experts, or all; no router


@matches
def test_twin_of_a_model(match, width):
    model = PlaneClassifier(MoE(4, 16, 5, 2), num_classes=3)
    twin = dense_twin(model, match)
    assert isinstance(twin, PlaneClassifier) and twin.block.d_ff == width
    assert not any(is_moe(module) for module in twin.modules()) and is_moe(model.block)
    for name in ("embed.weight", "embed.bias", "head.weight", "head.bias"):
        ours, theirs = model.get_parameter(name), twin.get_parameter(name)
        assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr()
    logits, routings = twin(torch.zeros(6, 2))
    assert logits.shape == (6, 3) and routings == []


@pytest.mark.parametrize("activation, matrices", [("swiglu", 3), ("clamped_swiglu", 3), ("gelu", 2)])
@pytest.mark.parametrize("match, experts_at_work", [("active", 2), ("total", 5)])
@pytest.mark.parametrize("gate", [False, True])
def test_a_shared_expert_adds_its_width(activation, matrices, match, experts_at_work, gate):
    moe = MoE(4, 16, 5, 2, activation=activation, shared_d_ff=6, shared_expert_gate=gate)
    twin = dense_twin(moe, match)
    assert (twin.d_ff, twin.activation) == (experts_at_work * 16 + 6, activation)
    assert size(twin) == experts_at_work * matrices * 4 * 16 + size(moe.shared_expert)  # a gate counts as the router


@pytest.mark.parametrize("match, experts_at_work", [("active", 3), ("total", 6)])
def test_biases_count(match, experts_at_work):
    """One expert has 3·4·12 weights and 2·12 + 4 biases; 3 have 84 biases, as many as 7 units of a SwiGLU."""
    moe = MoE(4, 12, 6, 3, bias=True, shared_d_ff=5)
    twin = dense_twin(moe, match)
    assert twin.d_ff == experts_at_work * 12 + 7 * experts_at_work // 3 + 5
    assert size(twin) == size(moe.experts) * experts_at_work // 6 + size(moe.shared_expert)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 5), st.data(), st.sampled_from([None, 1, 7]))
def test_a_twin_misses_the_size_by_less_than_a_unit(d_model, d_ff, num_experts, data, shared_d_ff):
    top_k, activation = data.draw(st.integers(1, num_experts)), data.draw(st.sampled_from(list(ACTIVATIONS)))
    bias = data.draw(st.booleans())
    moe = MoE(d_model, d_ff, num_experts, top_k, activation=activation, bias=bias, shared_d_ff=shared_d_ff)
    shared = 0 if shared_d_ff is None else size(moe.shared_expert)
    for match, experts_at_work in [("active", top_k), ("total", num_experts)]:
        twin = dense_twin(moe, match)
        miss = size(twin) - (size(moe.experts) * experts_at_work // num_experts + shared)
        assert 2 * abs(miss) <= size(twin) // twin.d_ff
        assert bias or miss == 0


@pytest.mark.parametrize("router", [SigmoidRouter(4, 5, 2), ExpertChoiceRouter(4, 5, 2), HashRouter(5, 9, 2)])
def test_the_router_does_not_matter(router):
    twin = dense_twin(MoE(4, 16, 5, 2, router=router), "active")
    assert twin.d_ff == 32 and not list(twin.buffers())


def test_every_block_is_replaced_wherever_it_stands():
    layers = nn.ModuleList([MoE(4, 8, 5, 2), nn.ModuleDict({"moe": MoE(4, 16, 3, 1), "norm": nn.LayerNorm(4)})])
    twin = dense_twin(nn.Sequential(layers), "active")
    assert [m.d_ff for m in twin.modules() if isinstance(m, FeedForward)] == [16, 16]
    assert isinstance(twin[0][1]["norm"], nn.LayerNorm)


def test_what_is_shared_stays_shared():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleDict({"embed": nn.Embedding(7, 4), "moe": MoE(4, 8, 5, 2)})
            self.again = self.body["moe"]
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.body["embed"].weight

    twin = dense_twin(Tied())
    assert twin.head.weight is twin.body["embed"].weight
    assert isinstance(twin.again, FeedForward) and twin.again is twin.body["moe"]


def test_seed_decides_the_new_weights_and_the_random_state_is_left_alone():
    moe, before = MoE(4, 16, 5, 2), torch.get_rng_state()
    twins = [dense_twin(moe, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(twins[0].down_proj, twins[1].down_proj)
    assert not torch.equal(twins[0].down_proj, twins[2].down_proj)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("activation", ["swiglu", "relu"])
@pytest.mark.parametrize("match, experts_at_work", [("active", 2), ("total", 3)])
def test_a_learners_class_has_a_twin_with_as_many_parameters(activation, match, experts_at_work):
    class MyMoE(nn.Module):
        def __init__(self):
            super().__init__()
            self.d_model, self.d_ff, self.num_experts, self.top_k = 4, 8, 3, 2
            one = (FeedForward(4, 8, activation, dtype=torch.float64) for _ in range(3))
            self.experts = nn.ModuleList(one)

    block = MyMoE()
    twin = dense_twin(block, match)
    assert (twin.d_ff, twin.activation, twin.down_proj.dtype) == (8 * experts_at_work, activation, torch.float64)
    wanted = experts_at_work * sum(p.numel() for p in block.experts[0].parameters())
    assert sum(p.numel() for p in twin.parameters()) == wanted


def test_experts_of_another_kind_give_the_nearest_width():
    class MyMoE(nn.Module):
        def __init__(self):
            super().__init__()
            self.d_model, self.d_ff, self.num_experts, self.top_k = 4, 8, 3, 1
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))  # 60 parameters in all

    assert dense_twin(MyMoE(), "total").d_ff == 5  # a SwiGLU unit has 3 · 4


def test_a_model_that_knows_its_sizes_is_not_taken_for_a_mixture():
    model = nn.Sequential(MoE(4, 8, 3, 2))
    model.d_model, model.d_ff, model.num_experts, model.top_k = 4, 8, 3, 2
    assert isinstance(dense_twin(model)[0], FeedForward)


def test_twin_stays_on_the_device(device):
    assert dense_twin(MoE(4, 8, 3, 2, device=device)).down_proj.device.type == device


def test_what_is_refused():
    with pytest.raises(ValueError, match="^match must be one of 'active', 'total', got 'both'$"):
        dense_twin(MoE(4, 8, 3, 2), "both")
    with pytest.raises(ValueError, match="^model must contain a mixture of experts, got Linear without one$"):
        dense_twin(nn.Linear(4, 4))
