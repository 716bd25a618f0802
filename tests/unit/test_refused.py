"""Arguments of `moe_lessons.nn` that are refused together, each of which is good alone."""

import pytest
import torch
from oracle import refused

from moe_lessons.nn import (
    FeedForward,
    HashRouter,
    LanguageModel,
    MoE,
    Routing,
    SigmoidRouter,
    SoftMoE,
    TopKRouter,
    TransformerConfig,
    dense_baseline,
)
from moe_lessons.nn.families import finer
from moe_lessons.support.errors import check_device

SMALL = {"d_model": 8, "d_ff": 8, "vocab_size": 9, "num_experts": 4, "top_k": 1, "max_positions": 24}
MODEL = LanguageModel(TransformerConfig(**SMALL))
IDS = torch.zeros(1, 9).long()


def config(**changes) -> TransformerConfig:
    return TransformerConfig(**SMALL | changes)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: MoE(4, 8, 8, router=7), r"router must be a module that maps .*, or a name, .*, got int"),
        (lambda: MoE(4, 8, 8, router=lambda *sizes: "x"), "router must be a module that maps .* a Routing, .* got str"),
        (lambda: MoE(4, 8, 8, router=TopKRouter(5, 8, 2)), "router must have d_model 4, got 5"),
        (lambda: MoE(4, 8, 8, router=TopKRouter(4, 8, 2), bias=True), "router must .* have {'bias': True}, .*"),
        (lambda: SigmoidRouter(4, 8, 3, num_groups=4), "top_k must be at most 2, the experts in 1 groups, got 3"),
        (lambda: dense_baseline(FeedForward(4, 4)), "model must contain a mixture of experts, got FeedForward"),
        (lambda: LanguageModel(config(router="hash", router_std=1)), "router_std .* None .*, got 1"),
        (lambda: MoE(4, 8, 8, 9), r"top_k must be between 1 and num_experts \(8\), got 9"),
        (lambda: MoE(4, 8, 8, router="hash"), "router must be one of 'top-k', .*'expert choice', got 'hash'"),
        (lambda: config(d_model=20), r"d_model must be a multiple of 2·num_heads \(8\), got 20"),
        (lambda: config(moe_layers=(0, 3)), r"moe_layers must be numbers from 0 to 2, got \(0, 3\)"),
        (lambda: MODEL(torch.zeros(1, 25).long()), r"ids must be .* at most max_positions \(24\) tokens, got 25"),
        (lambda: MODEL.generate(IDS, 16), r"max_new_tokens .* max_positions \(24\) less the 9 tokens of the .* got 16"),
        (lambda: MODEL.generate(IDS, 1, top_k=10), r"top_k must be at most vocab_size \(9\), got 10"),
        (lambda: MODEL.generate(IDS, 1, temperature=1e-46), "temperature must be 0 or at least 1e-30, got 1e-46"),
        (lambda: MODEL(IDS, cache="x"), "cache must be one that new_cache has made, or None, got str"),
        (lambda: MODEL.new_cache(10**15), "batch_size must leave room in memory for its 24 tokens each, got 10{15}"),
        (lambda: LanguageModel(SMALL), "config must be a TransformerConfig, got dict"),
        (lambda: finer(8, 2, 32, 4, 8), r"shared must be below top_k · times \(8\), got 8"),
        (lambda: HashRouter(8, 9, seed=2**62 + 1), r"seed must be a whole number from 0 to 2\*\*62, got 4.*5"),
        (lambda: check_device("cuda:99"), "device must be one of 'auto', 'cpu'.* on this machine, got 'cuda:99'"),
        (lambda: TopKRouter(4, 8, 2)(torch.zeros(2, 3, 4)), r"x must have the shape \(T, 4\), got \(2, 3, 4\)"),
        (lambda: SoftMoE(4, 8, 3)(torch.zeros(4)), r"x must have the shape \(\.\.\., T, 4\), got \(4,\)"),
    ],
)
def test_bad_parts(call, message):
    with refused(message):
        call()


@pytest.mark.parametrize("layer", [FeedForward(4, 8), MoE(4, 8, 8), SoftMoE(4, 8, 3)])
def test_autocast_casts_no_float64(layer):
    with torch.autocast("cpu", torch.bfloat16):
        with refused(r"x must have the type of the weights \(torch.float32\), got torch.float64"):
            layer(torch.zeros(2, 4).double())


@pytest.mark.parametrize("ids", [None, [1, 2, 3], torch.ones(3), torch.ones(3).bool(), torch.ones(2).long()], ids=str)
def test_token_ids_that_are_none(ids):
    with refused("token_ids must be one whole number for each of the 3 tokens, got .+"):
        HashRouter(8, 10)(torch.zeros(3, 4), ids)


def test_token_ids_of_another_range_or_shape():
    for low, high in ((0, 10), (-1, 5)):
        with refused(f"token_ids must be between 0 and 9, got {low} to {high}"):
            HashRouter(8, 10)(torch.zeros(3, 4), torch.tensor([high, low, 3]))
    with refused(r"token_ids must have the shape \(2, 3\), got \(3, 2\)"):  # as many ids, in another order
        MoE(4, 8, 5, 1, router=HashRouter(5, 30))(torch.zeros(2, 3, 4), torch.zeros(3, 2).long())


class Changed(torch.nn.Module):
    """A router that says nothing about its sizes; its routing is that of `num_experts` experts, with `changes`."""

    def __init__(self, num_experts=5, **changes):
        super().__init__()
        self.inner, self.changes = [TopKRouter(4, num_experts, 2)], changes

    def forward(self, x):
        parts = vars(self.inner[0](x))
        return Routing(**{name: self.changes.get(name, lambda value: value)(value) for name, value in parts.items()})


@pytest.mark.parametrize(
    "router, message",
    [
        (torch.nn.Linear(4, 5), "router must return a Routing, got Tensor"),
        (Changed(6), r"router must return router_probs of shape \(3, 5\), got \(3, 6\)"),
        (Changed(weight=lambda weight: weight[:5]), r"router must .* one shape \(A,\), got .*\(6,\), \(5,\)\]"),
    ],
)
def test_a_router_of_ones_own_must_keep_the_contract(router, message):
    assert MoE(4, 8, 5, 2, router=Changed())(torch.randn(3, 4))[0].shape == (3, 4)  # any module can be the router
    with refused(message):
        MoE(4, 8, 5, 2, router=router)(torch.randn(3, 4))
