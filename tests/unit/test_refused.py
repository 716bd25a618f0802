"""What `moe_lessons.nn` refuses: in one sentence that names the argument, what is allowed, and what it got."""

import inspect
import math
import re

import pytest
import torch
from oracle import refused

from moe_lessons.nn import (
    ExpertChoiceRouter,
    Experts,
    FeedForward,
    HashRouter,
    LanguageModel,
    MoE,
    NoisyTopKRouter,
    Routing,
    SigmoidRouter,
    SoftMoE,
    TopKRouter,
    TransformerConfig,
    dense_twin,
    load_balancing_loss,
    muted,
    update_expert_bias,
)
from moe_lessons.nn.balancing import expert_capacity
from moe_lessons.support.errors import check_device, check_seed

SMALL = {"d_model": 8, "d_ff": 8, "vocab_size": 9, "num_experts": 4, "top_k": 1}  # of a model
MODEL = LanguageModel(TransformerConfig(**SMALL, max_positions=24))
ROUTING = TopKRouter(8, 8, 2)(torch.zeros(6, 8))
SIZES = {"d_model": 8, "d_ff": 8, "vocab_size": 9, "num_experts": 8, "top_k": 2, "num_tokens": 8, "capacity": 1}
INPUTS = {"routing": ROUTING, "router": SigmoidRouter(8, 8, 2), "model": MODEL, "ids": torch.zeros(1, 9).long()}
GOOD = SIZES | INPUTS | {"capacity_factor": 1.0, "max_new_tokens": 1, "seed": 0, "expert": 0}
WHOLE, ABOVE, AT_LEAST = "a whole number of at least 1", "a finite number above 0", "a finite number of at least 0"


def mute(expert):
    with muted(MODEL.layers[0].ffn.experts, expert):
        pass


# Who takes the argument, its name, bad values of it, and what is allowed (a regular expression).
TABLE = [
    ((FeedForward, Experts, MoE, SoftMoE, TopKRouter, TransformerConfig), "d_model", (0, 1.5), WHOLE),
    ((MoE, TopKRouter, SigmoidRouter, HashRouter, TransformerConfig), "top_k", (0, 9), r"between 1 .* \(8\)"),
    ((FeedForward, Experts, MoE, SoftMoE), "activation", ("tanh",), "one of 'swiglu', .*"),
    ((MoE, expert_capacity), "capacity_factor", (0, math.inf, math.nan), ABOVE),
    ((MoE,), "router", ("x", "hash"), "one of 'top-k', .*'expert choice'"),  # a hash needs token ids
    ((SigmoidRouter,), "num_groups", (3,), r"divide num_experts \(8\)"),
    ((SigmoidRouter,), "topk_groups", (2,), r"between 1 and num_groups \(1\)"),
    ((TopKRouter, NoisyTopKRouter), "jitter_noise", (-0.1, 1.1), "a finite number from 0 to 1"),
    ((TransformerConfig,), "d_model", (20,), r"a multiple of 2·num_heads \(8\)"),
    ((TransformerConfig,), "num_kv_heads", (3, 8), r"divide num_heads \(4\)"),
    ((TransformerConfig,), "moe_layers", ((0, 3),), "numbers from 0 to 2"),
    ((MODEL.generate,), "max_new_tokens", (16,), r"at most max_positions \(24\) less the 9 tokens of the prompt"),
    ((MODEL.generate,), "temperature", (-1,), AT_LEAST),
    ((MODEL.generate,), "top_k", (10,), r"at most vocab_size \(9\)"),
    ((MODEL.new_cache,), "max_length", (25,), r"at most max_positions \(24\)"),
    ((mute,), "expert", (-1, 4), "between 0 and 3"),
    ((check_seed, HashRouter), "seed", (-1, 2**62 + 1, 1.5, True, "a"), r"a whole number from 0 to 2\*\*62"),
    ((check_device,), "device", ("cuda:99", "gpu"), "one of 'cpu'.* on this machine"),
]


@pytest.mark.parametrize("calls, argument, values, allowed", TABLE)
def test_bad_arguments(calls, argument, values, allowed):
    for call in calls:
        parameters = inspect.signature(call).parameters.values()
        needed = {p.name: GOOD[p.name] for p in parameters if p.default is p.empty and p.name in GOOD}
        for value in values:
            with refused(f"{argument} must (be )?{allowed}, got {re.escape(repr(value))}"):
                call(**{**needed, argument: value})


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: MoE(4, 8, 8, shared_expert_gate=True), "shared_experts or shared_d_ff must be given .*, got neither"),
        (lambda: MoE(4, 8, 8, router=7), r"router must be a module that maps .*, or a name, .*, got int"),
        (
            lambda: MoE(4, 8, 8, router=lambda *sizes: "x"),
            r"router must be a module that maps .* a Routing, .* got str",
        ),
        (lambda: MoE(4, 8, 8, router=TopKRouter(5, 8, 2)), "router must have d_model 4, got 5"),
        (lambda: MoE(4, 8, 8, router=HashRouter(7, 9, 2)), "router must have num_experts 8, got 7"),
        (lambda: MoE(4, 8, 8, router=ExpertChoiceRouter(4, 8, 1)), "router must have top_k 2, got 1"),
        (
            lambda: MoE(4, 8, 8, router=TopKRouter(4, 8, 2), router_bias=True),
            "router must .* have {'bias': True}, got .*",
        ),
        (lambda: SigmoidRouter(4, 8, 3, num_groups=4), "top_k must be at most 2, the experts in 1 groups, got 3"),
        (lambda: dense_twin(FeedForward(4, 4)), "model must contain a mixture of experts, got FeedForward without one"),
        (
            lambda: LanguageModel(TransformerConfig(**SMALL, router="hash", router_std=1)),
            "router_std .* None .*, got 1",
        ),
        (lambda: update_expert_bias(TopKRouter(8, 8, 2, bias=True), ROUTING), "router must .*; got a TopKRouter"),
        (lambda: TopKRouter(4, 8, 2)(torch.zeros(2, 3, 4)), r"x must have the shape \(T, 4\), got \(2, 3, 4\)"),
        (lambda: SoftMoE(4, 8, 3)(torch.zeros(4)), r"x must have the shape \(\.\.\., T, 4\), got \(4,\)"),
    ],
)
def test_bad_parts(call, message):
    with refused(message):
        call()


LAYERS = [FeedForward(4, 8), MoE(4, 8, 8, router="learned noise"), SoftMoE(4, 8, 3), TopKRouter(4, 8, 2)]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(3, 5), r"the last dimension of x must be d_model \(4\), got shape \(3, 5\)"),
        (torch.zeros(3, 4).long(), "x must be a floating-point tensor, got torch.int64.*"),
        ([0.0], "x must be a floating-point tensor, got list"),
    ],
)
def test_x_must_be_numbers_as_wide_as_the_layer(layer, x, message):
    with refused(message):
        layer(x)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("layer", LAYERS[:3], ids=lambda layer: type(layer).__name__)
def test_x_must_have_the_type_of_the_weights(layer, autocast):
    """Autocast, too, casts no float64."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
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


@pytest.mark.parametrize("mask", [torch.ones(5).bool(), torch.ones(6)], ids=str)
def test_bad_mask(mask):
    with refused(r"mask must be a bool tensor of shape \(6,\), got .+"):
        load_balancing_loss(ROUTING, mask)


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
