"""What `moe_lessons.nn` refuses: in one sentence that names the argument, what is allowed, and what it got."""

import inspect
import math
import re

import pytest
import torch
from oracle import refused

import moe_lessons.parallel  # noqa: F401  which adds a way to DISPATCH
from moe_lessons.nn import (
    ACTIVATIONS,
    DISPATCH,
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
    apply_capacity,
    dense_twin,
    expert_capacity,
    load_balancing_loss,
    muted,
    update_expert_bias,
)
from moe_lessons.support.errors import check_device, check_seed

LAYERS = (FeedForward, Experts, MoE, SoftMoE)
ROUTERS = (TopKRouter, NoisyTopKRouter, SigmoidRouter, ExpertChoiceRouter)
MIXTURES = (Experts, MoE, SoftMoE, *ROUTERS, HashRouter, TransformerConfig, expert_capacity)
SMALL = {"d_model": 8, "d_ff": 8, "vocab_size": 9, "num_experts": 4, "top_k": 1}  # of a model
MODEL = LanguageModel(TransformerConfig(**SMALL, max_positions=24))
ROUTING = TopKRouter(8, 8, 2)(torch.zeros(6, 8))
SIZES = {"d_model": 8, "d_ff": 8, "vocab_size": 9, "num_experts": 8, "top_k": 2, "num_tokens": 8, "capacity": 1}
INPUTS = {"routing": ROUTING, "router": SigmoidRouter(8, 8, 2), "model": MODEL, "ids": torch.zeros(1, 9).long()}
GOOD = SIZES | INPUTS | {"capacity_factor": 1.0, "max_new_tokens": 1, "seed": 0, "expert": 0}

WHOLE = "a whole number of at least 1"
ABOVE, AT_LEAST = "a finite number above 0", "a finite number of at least 0"
WAYS, FUNCTIONS = (", ".join(map(repr, names)) for names in (DISPATCH, ACTIVATIONS))


def mute(expert):
    with muted(MODEL.layers[0].ffn.experts, expert):
        pass


# Who takes the argument, its name, bad values of it, and what is allowed (a regular expression).
TABLE = [
    ((*LAYERS, *ROUTERS, TransformerConfig), "d_model", (0, 1.5), WHOLE),
    ((*LAYERS, TransformerConfig), "d_ff", (0, -3, 2.5, True), WHOLE),
    (MIXTURES, "num_experts", (0, "8"), WHOLE),
    ((MoE, *ROUTERS, HashRouter, TransformerConfig, expert_capacity), "top_k", (0, 9, 1.0), r"between 1 .* \(8\)"),
    ((*LAYERS, TransformerConfig), "activation", ("tanh",), f"one of {FUNCTIONS}"),
    ((*LAYERS, *ROUTERS, HashRouter), "device", ("cuda:99", "gpu"), "one of 'cpu'.* on this machine"),
    ((*LAYERS, *ROUTERS), "dtype", (torch.int64, torch.float8_e4m3fn, "float32"), r"a floating-point type \(.*\)"),
    ((MoE, TransformerConfig), "capacity_factor", (0, -1.5, math.inf, math.nan), ABOVE),
    ((MoE, TransformerConfig), "shared_d_ff", (0, 1.5), WHOLE),
    ((MoE, TransformerConfig), "shared_experts", (-1, 1.5), "a whole number from 0 up"),
    ((MoE,), "dispatch", ("fast",), f"one of {WAYS}, 'auto'"),
    ((MoE,), "capacity_priority", ("fair",), "one of 'order', 'weight'"),
    ((MoE, TopKRouter, NoisyTopKRouter, SigmoidRouter), "norm_topk_prob", ("yes",), "None, True or False"),
    ((SoftMoE,), "slots_per_expert", (0, 1.5), WHOLE),
    (ROUTERS, "jitter_noise", (-0.1, math.nan), AT_LEAST),
    ((NoisyTopKRouter,), "noise", ("uniform",), "one of 'learned', 'gaussian'"),
    ((NoisyTopKRouter,), "noise_std", (-1, math.nan), AT_LEAST),
    ((SigmoidRouter,), "num_groups", (3,), r"divide num_experts \(8\)"),
    ((SigmoidRouter,), "num_groups", (0,), WHOLE),
    ((SigmoidRouter,), "topk_groups", (2,), r"between 1 and num_groups \(1\)"),
    ((SigmoidRouter,), "topk_groups", (0,), WHOLE),
    ((SigmoidRouter,), "routed_scaling_factor", (0,), ABOVE),
    ((HashRouter, TransformerConfig), "vocab_size", (0,), WHOLE),
    ((TransformerConfig,), "d_model", (20,), r"a multiple of 2·num_heads \(8\)"),
    ((TransformerConfig,), "num_heads", (0,), WHOLE),
    ((TransformerConfig,), "num_kv_heads", (3, 8), r"divide num_heads \(4\)"),
    ((TransformerConfig,), "num_layers", (2.0,), WHOLE),
    ((TransformerConfig,), "max_positions", (-1,), WHOLE),
    ((TransformerConfig,), "moe_layers", ((0, 3), 1), "numbers from 0 to 2"),
    ((TransformerConfig,), "router", ("top-2",), "one of 'top-k', .*'hash'"),
    ((TransformerConfig,), "router_std", (0,), ABOVE),
    ((TransformerConfig,), "rope_theta", (0,), ABOVE),
    ((TransformerConfig,), "norm_eps", (-1,), AT_LEAST),
    ((MODEL.generate,), "max_new_tokens", (0,), WHOLE),
    ((MODEL.generate,), "max_new_tokens", (16,), r"at most max_positions \(24\) less the 9 tokens of the prompt"),
    ((MODEL.generate,), "temperature", (-1,), AT_LEAST),
    ((MODEL.generate,), "top_k", (0,), WHOLE),
    ((MODEL.generate,), "top_k", (10,), r"at most vocab_size \(9\)"),
    ((MODEL.new_cache,), "batch_size", (0,), WHOLE),
    ((MODEL.new_cache,), "max_length", (0,), WHOLE),
    ((MODEL.new_cache,), "max_length", (25,), r"at most max_positions \(24\)"),
    ((expert_capacity,), "capacity_factor", (0, -1.0, math.nan, math.inf, "1"), ABOVE),
    ((expert_capacity,), "num_tokens", (-1, 5.5, "8", True), "a whole number of at least 0"),
    ((apply_capacity,), "capacity", (0, -1, 2.5, math.inf), WHOLE),
    ((apply_capacity,), "priority", ("random",), "one of 'order', 'weight'"),
    ((update_expert_bias,), "rate", (-1, math.nan, "fast"), AT_LEAST),
    ((mute,), "expert", (-1, 4, 1.5, True, "E1"), "between 0 and 3"),
    ((dense_twin,), "match", ("both",), "one of 'active', 'total'"),
    ((check_seed,), "seed", (-1, 2**62 + 1, 1.5, True, "a"), r"a whole number from 0 to 2\*\*62"),
]


@pytest.mark.parametrize(
    "call, argument, value, allowed",
    [
        (call, argument, value, allowed)
        for calls, argument, values, allowed in TABLE
        for call in calls
        for value in values
    ],
)
def test_bad_arguments(call, argument, value, allowed):
    parameters = inspect.signature(call).parameters.values()
    needed = {p.name: GOOD[p.name] for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    call(**needed)
    before = torch.get_rng_state()
    with refused(f"{argument} must (be )?{allowed}, got {re.escape(repr(value))}"):
        call(**{**needed, argument: value})
    assert torch.equal(torch.get_rng_state(), before), "a refused call has drawn random numbers"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: MoE(4, 8, 8, shared_expert_gate=True), "shared_d_ff must be given where shared_.* is True, got None"),
        (lambda: MoE(4, 8, 8, router="x"), "router must be one of 'top-k', .*'expert choice', got 'x'"),
        (lambda: MoE(4, 8, 8, router="hash"), "router must be one of 'top-k', .*, got 'hash'"),  # it needs token ids
        (lambda: MoE(4, 8, 8, router=7), r"router must be a module, a name, or a class or function .*, got int"),
        (lambda: MoE(4, 8, 8, router=lambda *sizes: "x"), r"router must be a module that maps .* a Routing, got str"),
        (lambda: MoE(4, 8, 8, router=TopKRouter(5, 8, 2)), "router must have d_model 4, got 5"),
        (lambda: MoE(4, 8, 8, router=HashRouter(7, 9, 2)), "router must have num_experts 8, got 7"),
        (lambda: MoE(4, 8, 8, router=ExpertChoiceRouter(4, 8, 1)), "router must have top_k 2, got 1"),
        (
            lambda: MoE(4, 8, 8, router=TopKRouter(4, 8, 2), norm_topk_prob=True),
            "router must not be a module where it is to have {'norm_topk_prob': True}, got one",
        ),
        (lambda: SigmoidRouter(4, 8, 3, num_groups=4), "top_k must be at most 2, the experts in 1 groups, got 3"),
        (lambda: dense_twin(FeedForward(4, 4)), "model must contain a mixture of experts, got FeedForward without one"),
        (
            lambda: LanguageModel(TransformerConfig(**SMALL, router="hash", router_std=0.02)),
            "router_std must be None where the router has no weight, got 0.02",
        ),
        (
            lambda: update_expert_bias(TopKRouter(8, 8, 2, bias=True), ROUTING),  # that bias is learned
            "router must have an expert_bias, as SigmoidRouter has; got TopKRouter without one",
        ),
        (
            lambda: update_expert_bias(SigmoidRouter(8, 3, 1), ROUTING),
            "routing must be of 3 experts, as the router is, got 8",
        ),
    ],
)
def test_bad_parts(call, message):
    with refused(message):
        call()


def test_limits_that_are_allowed():
    assert check_seed(0) == 0 and check_seed(2**62) == 2**62
    assert MODEL.generate(GOOD["ids"], 15, top_k=9).shape == (1, 24)


@pytest.mark.parametrize("name, known", [("mps", True), ("mps:0", True), ("cpu:0", True), ("mps:1", False)])
def test_a_device_may_be_named_with_its_index(name, known, monkeypatch):
    """A tensor on a Mac's GPU says that it is on 'mps:0'."""
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    if known:
        assert check_device(name) == torch.device(name)
    else:
        with refused("device must be one of 'cpu'.*, got 'mps:1'"):
            check_device(name)


# --- x -------------------------------------------------------------------------------------------------------

NOISY = MoE(4, 8, 8, 2, router=NoisyTopKRouter(4, 8, 2))
ROUTERS_OF_ROWS = [*(router(4, 8, 2) for router in ROUTERS), TopKRouter(4, 8, 1, jitter_noise=0.1)]
name_of_type = {"ids": lambda value: type(value).__name__}


@pytest.mark.parametrize("layer", [FeedForward(4, 8), NOISY, SoftMoE(4, 8, 3), *ROUTERS_OF_ROWS], **name_of_type)
def test_x_must_be_numbers_as_wide_as_the_layer(layer):
    before = torch.get_rng_state()
    for x in (torch.zeros(3, 5), torch.zeros(4, 3), torch.tensor(1.0)):
        with refused(rf"the last dimension of x must be d_model \(4\), got shape {re.escape(str(tuple(x.shape)))}"):
            layer(x)
    for x, got in (
        (torch.zeros(3, 4).long(), "torch.int64.*"),
        (torch.zeros(3, 4).bool(), "torch.bool.*"),
        ([0.0], "list"),
    ):
        with refused(f"x must be a floating-point tensor, got {got}"):
            layer(x)
    assert torch.equal(torch.get_rng_state(), before), "a refused call has drawn random numbers"


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("x_dtype, dtype", [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_x_must_have_the_type_of_the_weights(x_dtype, dtype, autocast):
    """Autocast, too, casts no float64."""
    for layer in (MoE(4, 8, 3, dtype=dtype), FeedForward(4, 8, dtype=dtype), SoftMoE(4, 8, 3, dtype=dtype)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            with refused(rf"x must have the type of the weights \({dtype}\), got {x_dtype}"):
                layer(torch.zeros(2, 4, dtype=x_dtype))


@pytest.mark.parametrize("router", ROUTERS_OF_ROWS, **name_of_type)
def test_routers_take_rows_and_soft_moe_sequences(router):
    with refused(r"x must have the shape \(T, 4\), got \(2, 3, 4\)"):
        router(torch.zeros(2, 3, 4))
    with refused(r"x must have the shape \(\.\.\., T, 4\), got \(4,\)"):
        SoftMoE(4, 8, 3)(torch.zeros(4))


# --- token ids, masks, and what a router returns ---------------------------------------------------------------


def in_words(value) -> str:
    """What an error says of a value that it did not want: of a tensor its type and shape."""
    return re.escape(f"{value.dtype} {tuple(value.shape)}").replace(r"\ ", ".*", 1) if torch.is_tensor(value) else ".+"


ROWS = torch.ones(3)
NOT_IDS = [None, [1, 2, 3], ROWS, ROWS.bool(), ROWS.cfloat(), ROWS[:2].long(), ROWS[:, None].long()]


@pytest.mark.parametrize("token_ids", NOT_IDS, ids=in_words)
def test_token_ids_that_are_none(token_ids):
    with refused(f"token_ids must be one whole number for each of the 3 tokens, got {in_words(token_ids)}"):
        HashRouter(8, 10)(torch.zeros(3, 4), token_ids)


def test_other_bad_input_of_a_hash_router():
    for x, got in (([1.0], "list"), (torch.tensor(1.0), r".*\(\)"), (torch.zeros(2, 3, 4), r".*\(2, 3, 4\)")):
        with refused(rf"x must have the shape \(T, D\), got {got}"):
            HashRouter(8, 10)(x, torch.zeros(1).long())
    for low, high in ((0, 10), (-1, 5)):
        with refused(f"token_ids must be between 0 and 9, got {low} to {high}"):
            HashRouter(8, 10)(torch.zeros(3, 4), torch.tensor([high, low, 3]))
    moe = MoE(4, 8, 5, 1, router=HashRouter(5, 30))
    with refused(r"token_ids must have the shape \(2, 3\), got \(3, 2\)"):
        moe(torch.zeros(2, 3, 4), torch.zeros(3, 2).long())  # as many ids, in another order
    with refused("token_ids must be one whole number for each of the 6 tokens, got None.*"):
        moe(torch.zeros(2, 3, 4))


MASK = torch.ones(6).bool()


@pytest.mark.parametrize("mask", [MASK[:5], MASK[:, None], MASK.float(), MASK.long(), [True] * 6], ids=in_words)
def test_bad_mask(mask):
    with refused(rf"mask must be a bool tensor of shape \(6,\), got {in_words(mask)}"):
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
        (Changed(4), r"router must return router_probs of shape \(3, 5\), got \(3, 4\)"),
        (Changed(6), r"router must return router_probs of shape \(3, 5\), got \(3, 6\)"),
        (Changed(router_probs=lambda probs: probs[:2]), r"router must .* \(3, 5\), got \(2, 5\)"),
        (Changed(weight=lambda weight: weight[:5]), r"router must .* one shape \(A,\), got .*\(6,\), \(5,\)\]"),
        (Changed(token_idx=lambda index: index[:, None]), "router must return token_idx, .*"),
    ],
)
def test_a_router_of_ones_own_must_keep_the_contract(router, message):
    assert MoE(4, 8, 5, 2, router=Changed())(torch.randn(3, 4))[0].shape == (3, 4)  # any module can be the router
    with refused(message):
        MoE(4, 8, 5, 2, router=router)(torch.randn(3, 4))
