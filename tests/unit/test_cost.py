"""Parameters and FLOPs, against torch's own counters and against the model classes of Hugging Face, and the counts of
published models."""

import csv
import dataclasses

import pandas as pd
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from live_tools import MyMoE
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data import make_published_models as maker
from moe_lessons.analysis.counting import MODEL_SHAPES, TransformerShape, count_parameters, flops_per_token
from moe_lessons.analysis.counting import ParameterCount as Count
from moe_lessons.analysis.inference import bytes_per_step
from moe_lessons.analysis.roofline import published_sizes, sizes_of
from moe_lessons.nn import FeedForward, LanguageModel, MoE, SoftMoE, TransformerConfig, dense_baseline
from moe_lessons.nn.routing import ExpertChoiceRouter, FrozenRouter, NoisyTopKRouter, SigmoidRouter
from moe_lessons.support.data import data_path

ACTIVATIONS = ["swiglu", "gelu", "relu"]
MIXTRAL = MODEL_SHAPES["Mixtral 8x7B"]


def measured_flops(module, *inputs, backward=False) -> int:
    with FlopCounterMode(display=False) as counter:
        out = module(*inputs)
        y = out[0] if isinstance(out, tuple) else out
        if backward:
            y.sum().backward()
    return counter.get_total_flops()


class Classifier(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.block, self.dense, self.norm = block, FeedForward(8, 5), nn.LayerNorm(8)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        y, _ = self.block(self.embedding(tokens))
        return self.head(self.norm(self.dense(y)))


@given(
    d_model=st.integers(1, 9), d_ff=st.integers(1, 9), num_experts=st.integers(1, 9), data=st.data(),
    activation=st.sampled_from(ACTIVATIONS), shared=st.sampled_from([0, 5]),
)  # fmt: skip
def test_a_mixture_against_its_formula_and_numel(d_model, d_ff, num_experts, data, activation, shared):
    top_k = data.draw(st.integers(1, num_experts))
    block = MoE(d_model, d_ff, num_experts, top_k, activation=activation, shared_d_ff=shared)
    matrices = 3 if activation == "swiglu" else 2
    expert = matrices * d_model * d_ff
    always = matrices * d_model * shared
    router = num_experts * d_model
    count = count_parameters(block)
    assert count == Count(num_experts * expert + always + router, top_k * expert + always + router)
    assert count.total == sum(p.numel() for p in block.parameters())


def test_biases_are_no_matrix_and_soft_moe_has_no_cost_for_one_token():
    plain, biased = MoE(8, 12, 4, 2), MoE(8, 12, 4, 2)
    for name, width in (("gate_up_proj_bias", 24), ("down_proj_bias", 8)):
        biased.experts.register_parameter(name, nn.Parameter(torch.zeros(4, width)))
    before, after = count_parameters(plain), count_parameters(biased)
    assert (after.total - before.total, after.active - before.active) == (4 * (24 + 8), 2 * (24 + 8))
    assert flops_per_token(plain) == flops_per_token(biased)
    with pytest.raises(ValueError, match="^module must have a cost for each token, got a SoftMoE"):
        flops_per_token(SoftMoE(8, 12, 4))
    assert count_parameters(SoftMoE(8, 12, 4)).total == 4 * 3 * 8 * 12 + 4 * 8


def test_a_learners_class_and_a_model_that_contains_it():
    block, tokens = MyMoE(8, 12, num_experts=4, top_k=2), torch.randint(0, 11, (16,))
    del block.d_model, block.d_ff
    expert, router = 3 * 8 * 12, 4 * 8
    assert count_parameters(block) == Count(4 * expert + router, 2 * expert + router)
    assert bytes_per_step(block) == 4 * count_parameters(block).active
    rest = 11 * 8 + 3 * 8 * 5 + 2 * 8  # the tied embedding once, the dense block, the norm
    model = Classifier(block)
    assert count_parameters(model) == Count(4 * expert + router + rest, 2 * expert + router + rest)
    # the tied head counts, the look-up in the embedding does not
    assert measured_flops(model, tokens) == 16 * flops_per_token(model)


@pytest.mark.parametrize("count", [count_parameters, flops_per_token, bytes_per_step])
def test_a_mixture_without_experts_is_refused_by_name(count):
    class Hidden(nn.Module):
        num_experts, top_k, router = 2, 1, None

    with pytest.raises(ValueError, match="keep its experts in an attribute named experts, got Hidden$"):
        count(nn.Sequential(Hidden()))


BLOCKS = [{"top_k": 1}, {"top_k": 4}, *({"activation": activation} for activation in ACTIVATIONS)]
BLOCKS += [{"shared_d_ff": 5}]
ROUTERS = NoisyTopKRouter, FrozenRouter, SigmoidRouter, ExpertChoiceRouter
BLOCKS += [{"router": router(8, 4, 2)} for router in ROUTERS]


@pytest.mark.parametrize("arguments", BLOCKS)
@pytest.mark.parametrize("num_tokens, training", [(8, False), (32, False), (16, True)])
def test_flops_are_exact(arguments, num_tokens, training):
    block = MoE(8, 12, num_experts=4, **{"top_k": 2, "dispatch": "loop"} | arguments).train()
    x = torch.randn(num_tokens, 8, requires_grad=training)
    for module in (block, dense_baseline(block)):
        assert measured_flops(module, x, backward=training) == num_tokens * flops_per_token(module, training)


def test_the_kv_cache_is_that_of_a_model_and_presets_are_the_published_ones():
    config = TransformerConfig(d_model=64, num_layers=3, num_heads=4, num_kv_heads=2)
    shape = TransformerShape(256, 64, 3, 4, 2, config.head_dim, 64, num_experts=8, top_k=2)
    cache = LanguageModel(config).to(torch.bfloat16).new_cache(batch_size=1, max_length=200)
    assert 2 * sizes_of(shape).cache(200) == cache.nbytes
    assert MIXTRAL.count == Count(46_702_792_704, 12_879_925_248)  # to the last digit
    assert MODEL_SHAPES["Mistral 7B (dense)"].count == Count(7_241_732_096, 7_241_732_096)
    norms, biases = 16 * 2 * 2048, 24 * (3 * 2048 + 2048)  # of queries and keys; of the attention, with a shared gate
    olmoe, qwen = Count(6_919_161_856, 1_282_017_280), Count(14_315_784_192, 2_689_173_504)
    for name, published, missing in (("OLMoE 1B-7B", olmoe, norms), ("Qwen1.5-MoE", qwen, biases)):
        assert MODEL_SHAPES[name].count == Count(published.total - missing, published.active - missing)


SMALL = TransformerShape(96, 32, 3, 4, 2, 8, 48, num_experts=6, top_k=2)


@pytest.mark.parametrize("changes", [{}, {"tied_embedding": True}, {"head_dim": 16}, {"top_k": 5}])
def test_shape_against_hugging_face_parameters_and_flops(changes):
    shape = dataclasses.replace(SMALL, **changes)
    config = transformers.MixtralConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.d_model, num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads, num_key_value_heads=shape.num_kv_heads, head_dim=shape.head_dim,
        intermediate_size=shape.d_ff, num_local_experts=shape.num_experts, num_experts_per_tok=shape.top_k,
        tie_word_embeddings=shape.tied_embedding, attn_implementation="eager", experts_implementation="eager",
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config).eval()
    model.tie_weights()
    assert shape.count.total == sum(p.numel() for p in model.parameters())
    length = 10  # eager attention computes the whole square: every token sees all `length` tokens
    tokens = torch.arange(length)[None] % shape.vocab_size
    with torch.no_grad():
        assert measured_flops(model.forward, tokens) == length * shape.flops_per_token(context_length=length)


def test_counted_agrees_with_published_except_where_the_note_says_why():
    frame = pd.read_csv(data_path("published_models.csv"))
    assert len(frame) == len(maker.PUBLISHED) == 16
    assert (frame.total_params / 1e9 / frame.total_published_b - 1).abs().max() < 0.012
    active = frame.dropna(subset="active_published_b")
    off = (active.active_params / 1e9 / active.active_published_b - 1).abs()
    assert set(active.name[off > 0.025]) == {"gpt-oss-20b", "GLM-4.5"}
    assert active.note[off > 0.025].str.contains("embedding").all()


@pytest.mark.parametrize("model", maker.PUBLISHED, ids=lambda model: model.name)
def test_csv_equals_the_model_class(model):
    if not hasattr(transformers, model.hf_class):
        pytest.skip(f"transformers {transformers.__version__} has no {model.hf_class}")
    with data_path("published_models.csv").open(encoding="utf-8", newline="") as file:
        stored = {row["name"]: row for row in csv.DictReader(file)}
    assert {column: str(value) for column, value in maker.row(model).items()} == stored[model.name]
    assert published_sizes()[model.name] == maker.count_sizes(model)
