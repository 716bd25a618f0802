"""Finer experts do the same work, and dense baselines are as wide as they must be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from live_tools import MyMoE
from torch import nn

from moe_lessons.nn import ACTIVATIONS, FeedForward, MoE, SigmoidRouter, TopKRouter, dense_baseline, is_moe
from moe_lessons.tasks.plane import PlaneClassifier


def test_a_router_by_name_class_or_function():
    assert isinstance(MoE(4, 8, 4, router="sigmoid", norm_topk_prob=False).router, SigmoidRouter)
    assert MoE(4, 8, 4, router=SigmoidRouter, bias=True).router.bias is not None
    made = MoE(4, 8, 4, 2, router=lambda d_model, num_experts, top_k: TopKRouter(d_model, num_experts, top_k)).router
    assert (made.d_model, made.num_experts, made.top_k) == (4, 4, 2)
    assert MoE(4, 8, 4, shared_d_ff=5).shared_expert.d_ff == 5
    with pytest.raises(TypeError, match="biass"):
        MoE(4, 8, 4, router="sigmoid", biass=True)


matches = pytest.mark.parametrize("match, experts_at_work", [("flops", 2), ("params", 5)])


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@matches
def test_baseline_of_a_model(match, experts_at_work):
    model = PlaneClassifier(MoE(4, 16, 5, 2, router=SigmoidRouter(4, 5, 2)), num_classes=3)
    baseline = dense_baseline(model, match)
    assert not list(baseline.buffers())
    assert isinstance(baseline, PlaneClassifier) and baseline.block.d_ff == experts_at_work * 16
    assert not any(is_moe(module) for module in baseline.modules()) and is_moe(model.block)
    for name in ("embed.weight", "embed.bias", "head.weight", "head.bias"):
        ours, theirs = model.get_parameter(name), baseline.get_parameter(name)
        assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr()
    logits, routings = baseline(torch.zeros(6, 2))
    assert logits.shape == (6, 3) and routings == []


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 5), st.data(), st.sampled_from([0, 1, 7]))
def test_a_baseline_has_the_size_to_the_last_parameter(d_model, d_ff, num_experts, data, shared_d_ff):
    top_k, activation = data.draw(st.integers(1, num_experts)), data.draw(st.sampled_from(list(ACTIVATIONS)))
    moe = MoE(d_model, d_ff, num_experts, top_k, activation=activation, shared_d_ff=shared_d_ff)
    shared = size(moe.shared_expert) if shared_d_ff else 0
    for match, experts_at_work in [("flops", top_k), ("params", num_experts)]:
        baseline = dense_baseline(moe, match)
        assert size(baseline) == size(moe.experts) * experts_at_work // num_experts + shared


def test_every_block_is_replaced_what_is_shared_stays_shared_and_the_seed_decides_the_new_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleList([nn.Embedding(7, 4), nn.ModuleDict({"moe": MoE(4, 8, 5, 2)}), MoE(4, 16, 3, 1)])
            self.again, self.head = self.body[1]["moe"], nn.Linear(4, 7, bias=False)
            self.head.weight = self.body[0].weight

    baseline = dense_baseline(Tied())
    assert [m.d_ff for m in baseline.modules() if isinstance(m, FeedForward)] == [16, 16]
    assert baseline.again is baseline.body[1]["moe"] and baseline.head.weight is baseline.body[0].weight
    moe, before = MoE(4, 16, 5, 2), torch.get_rng_state()
    baselines = [dense_baseline(moe, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(baselines[0].down_proj, baselines[1].down_proj)
    assert not torch.equal(baselines[0].down_proj, baselines[2].down_proj)
    assert torch.equal(torch.get_rng_state(), before)


@matches
def test_a_learners_class_has_a_baseline_with_as_many_parameters(match, experts_at_work):
    block = MyMoE(4, 8, 5, 2).double()
    baseline = dense_baseline(block, match)
    assert (baseline.d_ff, baseline.activation) == (8 * experts_at_work, "swiglu")
    assert baseline.down_proj.dtype == torch.float64
    assert size(baseline) == experts_at_work * size(block.experts[0])
