"""Dense twins: as wide as they must be, everything else copied, nothing of the original changed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from live_tools import MyMoE
from torch import nn

from moe_lessons.nn import ACTIVATIONS, FeedForward, MoE, SigmoidRouter, dense_twin, is_moe
from moe_lessons.tasks.plane import PlaneClassifier

matches = pytest.mark.parametrize("match, experts_at_work", [("active", 2), ("total", 5)])


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@matches
def test_twin_of_a_model(match, experts_at_work):
    model = PlaneClassifier(MoE(4, 16, 5, 2, router=SigmoidRouter(4, 5, 2)), num_classes=3)
    twin = dense_twin(model, match)
    assert not list(twin.buffers())
    assert isinstance(twin, PlaneClassifier) and twin.block.d_ff == experts_at_work * 16
    assert not any(is_moe(module) for module in twin.modules()) and is_moe(model.block)
    for name in ("embed.weight", "embed.bias", "head.weight", "head.bias"):
        ours, theirs = model.get_parameter(name), twin.get_parameter(name)
        assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr()
    logits, routings = twin(torch.zeros(6, 2))
    assert logits.shape == (6, 3) and routings == []


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 5), st.data(), st.sampled_from([0, 1, 7]))
def test_a_twin_misses_the_size_by_less_than_a_unit(d_model, d_ff, num_experts, data, shared_d_ff):
    """Biases count: three experts of 2·12 + 4 have as many as 7 units of a SwiGLU with d_model 4."""
    top_k, activation = data.draw(st.integers(1, num_experts)), data.draw(st.sampled_from(list(ACTIVATIONS)))
    bias = data.draw(st.booleans())
    moe = MoE(d_model, d_ff, num_experts, top_k, activation=activation, bias=bias, shared_d_ff=shared_d_ff)
    shared = size(moe.shared_expert) if shared_d_ff else 0
    for match, experts_at_work in [("active", top_k), ("total", num_experts)]:
        twin = dense_twin(moe, match)
        miss = size(twin) - (size(moe.experts) * experts_at_work // num_experts + shared)
        assert 2 * abs(miss) <= size(twin) // twin.d_ff
        assert bias or miss == 0


def test_every_block_is_replaced_what_is_shared_stays_shared_and_the_seed_decides_the_new_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleList([nn.Embedding(7, 4), nn.ModuleDict({"moe": MoE(4, 8, 5, 2)}), MoE(4, 16, 3, 1)])
            self.again, self.head = self.body[1]["moe"], nn.Linear(4, 7, bias=False)
            self.head.weight = self.body[0].weight

    twin = dense_twin(Tied())
    assert [m.d_ff for m in twin.modules() if isinstance(m, FeedForward)] == [16, 16]
    assert twin.again is twin.body[1]["moe"] and twin.head.weight is twin.body[0].weight
    moe, before = MoE(4, 16, 5, 2), torch.get_rng_state()
    twins = [dense_twin(moe, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(twins[0].down_proj, twins[1].down_proj)
    assert not torch.equal(twins[0].down_proj, twins[2].down_proj)
    assert torch.equal(torch.get_rng_state(), before)


@matches
def test_a_learners_class_has_a_twin_with_as_many_parameters(match, experts_at_work):
    block = MyMoE(4, 8, 5, 2).double()
    twin = dense_twin(block, match)
    assert (twin.d_ff, twin.activation, twin.down_proj.dtype) == (8 * experts_at_work, "swiglu", torch.float64)
    assert size(twin) == experts_at_work * size(block.experts[0])
