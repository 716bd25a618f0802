"""Parameters and FLOPs, against torch's own counters and against the model classes of Hugging Face."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from moe_lessons.analysis.cost import (
    MODEL_SHAPES,
    ParameterCount,
    TransformerShape,
    count_parameters,
    flops_per_token,
)
from moe_lessons.nn import (
    ExpertChoiceRouter,
    FeedForward,
    HashRouter,
    MoE,
    NoisyTopKRouter,
    SigmoidRouter,
    SoftMoE,
    dense_twin,
)

GATED = ["swiglu", "clamped_swiglu"]
ACTIVATIONS = [*GATED, "gelu", "relu"]
MIXTRAL = MODEL_SHAPES["Mixtral 8x7B"]


def measured_flops(module, x, backward=False) -> int:
    with FlopCounterMode(display=False) as counter:
        out = module(x)
        y = out[0] if isinstance(out, tuple) else out
        if backward:
            y.sum().backward()
    return counter.get_total_flops()


class LearnerMoE(nn.Module):
    """What a learner writes: a list of experts, a plain linear router, biases here and there."""

    def __init__(self, d_model=8, d_ff=12, num_experts=4, top_k=2):
        super().__init__()
        self.d_model, self.d_ff, self.num_experts, self.top_k = d_model, d_ff, num_experts, top_k
        self.router = nn.Linear(d_model, num_experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d_model, d_ff), nn.ReLU(), nn.Linear(d_ff, d_model)) for _ in range(num_experts)
        )

    def forward(self, x):
        weights, chosen = self.router(x).softmax(-1).topk(self.top_k)  # (T, K)
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, choice = (chosen == e).nonzero(as_tuple=True)
            y = y.index_add(0, token, expert(x[token]) * weights[token, choice, None])
        return y


class Classifier(nn.Module):
    """Blocks inside a larger model, with an embedding, a norm and a tied head."""

    def __init__(self, block):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList([block, FeedForward(8, 5)])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        h = self.embedding(tokens)
        for block in self.blocks:
            out = block(h)
            h = h + (out[0] if isinstance(out, tuple) else out)
        return self.head(self.norm(h))


# --- count_parameters ---


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_block_uses_all_it_has(activation):
    block = FeedForward(8, 12, activation)
    matrices = 3 if activation in GATED else 2
    assert count_parameters(block) == ParameterCount(matrices * 8 * 12, matrices * 8 * 12)
    assert count_parameters(block).total == sum(p.numel() for p in block.parameters())


@given(
    d_model=st.integers(1, 9), d_ff=st.integers(1, 9), num_experts=st.integers(1, 9), data=st.data(),
    activation=st.sampled_from(ACTIVATIONS),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_moe_against_formula_and_numel(d_model, d_ff, num_experts, data, activation):
    top_k = data.draw(st.integers(1, num_experts))
    block = MoE(d_model, d_ff, num_experts, top_k, activation=activation)
    expert = (3 if activation in GATED else 2) * d_model * d_ff
    count = count_parameters(block)
    assert count == ParameterCount(num_experts * (expert + d_model), top_k * expert + num_experts * d_model)
    assert count.total == sum(p.numel() for p in block.parameters())


def test_top_k_equal_to_num_experts_uses_all():
    count = count_parameters(MoE(8, 12, num_experts=4, top_k=4))
    assert count.active == count.total


def test_twins_differ_from_the_moe_by_its_router_alone():
    block = MoE(8, 12, num_experts=4, top_k=2)
    count = count_parameters(block)
    assert count.active - count_parameters(dense_twin(block, "active")).total == 4 * 8
    assert count.total - count_parameters(dense_twin(block, "total")).total == 4 * 8


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("activation, matrices", [("swiglu", 3), ("relu", 2)])
def test_a_shared_expert_is_active_for_every_token(gate, activation, matrices):
    block = MoE(8, 12, 4, 2, activation=activation, shared_d_ff=5, shared_expert_gate=gate)
    expert, always = matrices * 8 * 12, matrices * 8 * 5 + 4 * 8 + 8 * gate  # shared, router, gate
    assert count_parameters(block) == ParameterCount(4 * expert + always, 2 * expert + always)
    assert count_parameters(block).total == sum(p.numel() for p in block.parameters())


@pytest.mark.parametrize("activation, rows", [("swiglu", 24), ("relu", 12)])
def test_biases_of_the_experts_count_as_the_experts_do(activation, rows):
    plain, biased = (count_parameters(MoE(8, 12, 4, 2, activation=activation, bias=b)) for b in (False, True))
    assert biased.total - plain.total == 4 * (rows + 8)
    assert biased.active - plain.active == 2 * (rows + 8)


def test_routers_count_with_what_is_learned():
    def routers_share(router):
        return count_parameters(MoE(8, 12, 4, 2, router=router)).active - 2 * 3 * 8 * 12

    assert routers_share(SigmoidRouter(8, 4, 2)) == 4 * 8  # the expert_bias is not learned
    assert routers_share(ExpertChoiceRouter(8, 4, 2)) == 4 * 8
    assert routers_share(HashRouter(4, 50, 2)) == 0


def test_a_learners_class_and_a_model_that_contains_it():
    block = LearnerMoE()
    expert = 8 * 12 + 12 + 12 * 8 + 8
    router = 8 * 4 + 4
    assert count_parameters(block) == ParameterCount(4 * expert + router, 2 * expert + router)
    rest = 11 * 8 + 3 * 8 * 5 + 2 * 8  # the tied embedding once, the dense block, the norm
    assert count_parameters(Classifier(block)) == ParameterCount(4 * expert + router + rest, 2 * expert + router + rest)


def test_a_mixture_without_experts_is_refused_by_name():
    class Hidden(nn.Module):
        num_experts, top_k, router = 2, 1, None

    with pytest.raises(ValueError, match="keep its experts in an attribute named experts, got Hidden without one"):
        count_parameters(nn.Sequential(Hidden()))


# --- flops_per_token ---


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("num_tokens", [1, 7, 32])
def test_forward_flops_are_exact(activation, num_tokens):
    x = torch.randn(num_tokens, 8)
    dense = FeedForward(8, 12, activation)
    assert measured_flops(dense, x) == num_tokens * flops_per_token(dense)
    for top_k in (1, 2, 4):
        block = MoE(8, 12, num_experts=4, top_k=top_k, activation=activation, dispatch="loop")
        assert measured_flops(block, x) == num_tokens * flops_per_token(block)


def test_training_flops_are_exact_where_the_input_needs_a_gradient():
    x = torch.randn(16, 8, requires_grad=True)
    for block in (FeedForward(8, 12), MoE(8, 12, 4, 2, dispatch="loop")):
        assert measured_flops(block, x, backward=True) == 16 * flops_per_token(block, training=True)


def test_training_flops_without_the_gradient_of_the_input():
    """A first layer needs no gradient for its input: the product that would make it is not computed."""
    x = torch.randn(16, 8)
    dense = FeedForward(8, 12)
    missing = 2 * (2 * 12 * 8)  # of gate and up
    assert measured_flops(dense, x, backward=True) == 16 * (flops_per_token(dense, training=True) - missing)
    block = MoE(8, 12, num_experts=4, top_k=2, dispatch="loop")
    missing = 2 * (2 * (2 * 12 * 8) + 4 * 8)  # of gate and up in both experts, and of the router
    assert measured_flops(block, x, backward=True) == 16 * (flops_per_token(block, training=True) - missing)


def test_dense_dispatch_computes_every_expert():
    x = torch.randn(16, 8)
    block = MoE(8, 12, num_experts=4, top_k=1, dispatch="dense")
    assert measured_flops(block, x) == 16 * flops_per_token(MoE(8, 12, num_experts=4, top_k=4))


def test_flops_of_models_learners_classes_and_noisy_routers():
    tokens = torch.randint(0, 11, (16,))
    model = Classifier(LearnerMoE())
    # the tied head counts, the look-up in the embedding does not
    assert measured_flops(model, tokens) == 16 * flops_per_token(model)
    block = MoE(8, 12, 4, 2, router=NoisyTopKRouter(8, 4, 2), dispatch="loop").train()
    assert measured_flops(block, torch.randn(16, 8)) == 16 * flops_per_token(block)


def test_stacked_biases_are_no_matrix():
    block = MoE(8, 12, num_experts=4, top_k=2)
    assert flops_per_token(MoE(8, 12, num_experts=4, top_k=2, bias=True)) == flops_per_token(block)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("arguments", [{}, {"shared_expert_gate": True}, {"weight_input": True}])
def test_flops_with_a_shared_expert_are_exact(arguments, training):
    block = MoE(8, 12, 4, 2, shared_d_ff=5, dispatch="loop", **arguments)
    x = torch.randn(16, 8, requires_grad=training)
    assert measured_flops(block, x, backward=training) == 16 * flops_per_token(block, training)


def test_flops_of_other_routers():
    x, ids = torch.randn(16, 8), torch.randint(0, 50, (16,))
    for router in (SigmoidRouter(8, 4, 2), ExpertChoiceRouter(8, 4, 2)):
        block = MoE(8, 12, 4, 2, router=router, dispatch="loop")
        assert measured_flops(block, x) == 16 * flops_per_token(block)
    block = MoE(8, 12, 4, 2, router=HashRouter(4, 50, 2), dispatch="loop")
    with FlopCounterMode(display=False) as counter:
        block(x, ids)
    assert counter.get_total_flops() == 16 * flops_per_token(block)


# --- TransformerShape ---


def test_mixtral_to_the_last_digit():
    assert MIXTRAL.count == ParameterCount(46_702_792_704, 12_879_925_248)
    assert sum(part.total for part in MIXTRAL.parameters().values()) == 46_702_792_704
    assert MIXTRAL.memory_gb() == pytest.approx(93.405585408)


def test_presets_against_the_published_models():
    assert MODEL_SHAPES["Mistral 7B (dense)"].count == ParameterCount(7_241_732_096, 7_241_732_096)
    query_and_key_norms = 16 * 2 * 2048
    assert MODEL_SHAPES["OLMoE 1B-7B"].count == ParameterCount(
        6_919_161_856 - query_and_key_norms, 1_282_017_280 - query_and_key_norms
    )
    biases_and_gate = 24 * (3 * 2048 + 2048)
    assert MODEL_SHAPES["Qwen1.5-MoE"].count == ParameterCount(
        14_315_784_192 - biases_and_gate, 2_689_173_504 - biases_and_gate
    )


SMALL = TransformerShape(96, 32, 3, 4, 2, 8, 48, num_experts=6, top_k=2)


def hugging_face_twin(shape: TransformerShape):
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    config = transformers.MixtralConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.d_model, num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads, num_key_value_heads=shape.num_kv_heads, head_dim=shape.head_dim,
        intermediate_size=shape.d_ff, num_local_experts=shape.num_experts, num_experts_per_tok=shape.top_k,
        tie_word_embeddings=shape.tied_embedding, attn_implementation="eager", experts_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config).eval()
    model.tie_weights()
    return model


@pytest.mark.parametrize("changes", [{}, {"tied_embedding": True}, {"head_dim": 16}, {"top_k": 5}])
def test_shape_against_hugging_face_parameters_and_flops(changes):
    shape = dataclasses.replace(SMALL, **changes)
    model = hugging_face_twin(shape)
    assert shape.count.total == sum(p.numel() for p in model.parameters())
    length = 10  # eager attention computes the whole square: every token sees all `length` tokens
    tokens = torch.arange(length)[None] % shape.vocab_size
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(tokens)
    assert counter.get_total_flops() == length * shape.flops_per_token(context_length=length)


def test_dense_shape_has_no_router_and_uses_all():
    dense = dataclasses.replace(SMALL, num_experts=1, top_k=1)
    assert dense.parameters()["router"].total == 0
    assert dense.count.total == dense.count.active
    plain = dataclasses.replace(dense, gated=False)
    assert dense.count.total - plain.count.total == 3 * 32 * 48  # one matrix less in each of three layers


def test_more_experts_add_to_the_total_and_only_the_router_to_the_active():
    few, many = (dataclasses.replace(SMALL, num_experts=n) for n in (6, 12))
    assert many.count.active - few.count.active == 3 * 6 * 32
    assert many.count.total > 1.5 * few.count.total


def test_context_adds_attention_scores():
    extra = MIXTRAL.flops_per_token(4096) - MIXTRAL.flops_per_token()
    assert extra == 4 * 32 * 32 * 128 * 4096


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"top_k": 7}, r"top_k must be between 1 and num_experts \(6\), got 7"),
        ({"top_k": 0}, r"top_k must be between 1 and num_experts \(6\), got 0"),
        ({"num_experts": 0}, "num_experts must be a whole number of at least 1, got 0"),
        ({"d_ff": 0}, "d_ff must be a whole number of at least 1, got 0"),
        ({"d_model": 32.0}, "d_model must be a whole number of at least 1, got 32.0"),
        ({"vocab_size": True}, "vocab_size must be a whole number of at least 1, got True"),
        ({"num_kv_heads": 3}, r"num_kv_heads must divide num_heads \(4\), got 3"),
        ({"shared_experts": -1}, "shared_experts must be a whole number from 0 up, got -1"),
    ],
)
def test_bad_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="context_length must be a finite number of at least 0, got -1"):
        SMALL.flops_per_token(-1)
    with pytest.raises(ValueError, match="bytes_per_parameter must be a finite number above 0, got 0"):
        SMALL.memory_gb(0)


def test_soft_moe_has_no_cost_for_one_token():
    with pytest.raises(ValueError, match="^module must have a cost for each token, got a SoftMoE"):
        flops_per_token(SoftMoE(8, 12, 4))
    assert count_parameters(SoftMoE(8, 12, 4)).total == 4 * 3 * 8 * 12 + 4 * 8
