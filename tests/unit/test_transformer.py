"""The language model: each part against the formula it states, and the whole against itself run another way."""

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from moe_lessons.analysis.counting import count_parameters
from moe_lessons.nn import DISPATCH, FeedForward, LanguageModel, MoE, TransformerConfig, dense_baseline, seeded
from moe_lessons.nn.attention import Attention, rotary, rotate
from moe_lessons.nn.transformer import ROUTERS, draw

F64 = torch.float64
TINY = TransformerConfig(
    vocab_size=11, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, max_positions=24, d_ff=8, num_experts=4
)
CAUSAL = [name for name in ROUTERS if name != "expert choice"]
routers = pytest.mark.parametrize("router", ROUTERS)


def model_of(seed: int = 0, **changes) -> LanguageModel:
    """In eval mode and float64, with weights in which no part is near zero, and that do not repeat their last token."""
    with seeded(seed):
        model = LanguageModel(dataclasses.replace(TINY, **changes)).to(F64).eval()
        nn.init.normal_(model.embed.weight, std=0.2)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def some_ids(batch: int = 2, length: int = 9, seed: int = 0, vocab_size: int = 11, device="cpu") -> torch.Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed)).to(device)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@given(st.integers(1, 8), st.lists(st.integers(0, 10_000), min_size=1, max_size=5), st.sampled_from([10.0, 1e4, 1e6]))
def test_rotation_is_a_product_of_complex_numbers(pairs, positions, theta):
    x = torch.randn(2, len(positions), 3, 2 * pairs, dtype=F64, generator=torch.Generator().manual_seed(pairs))
    y = rotate(x, *rotary(torch.tensor(positions), 2 * pairs, theta, F64))
    for t, position in enumerate(positions):
        for i in range(pairs):
            turned = torch.complex(x[:, t, :, i], x[:, t, :, i + pairs])
            turned = turned * complex(*(f(position * theta ** (-2 * i / (2 * pairs))) for f in (math.cos, math.sin)))
            close(y[:, t, :, i], turned.real)
            close(y[:, t, :, i + pairs], turned.imag)


def attention_by_loops(attention: Attention, x: torch.Tensor) -> torch.Tensor:
    """One sequence, one head and one token at a time; head i of the queries asks head i // (H / G) of the keys."""
    H, G, h = attention.num_heads, attention.num_kv_heads, attention.head_dim
    cos, sin = rotary(torch.arange(x.shape[1]), h, dtype=x.dtype)
    rows = []
    for sequence in x:
        out = torch.zeros(len(sequence), H, h, dtype=x.dtype)
        heads = (attention.qkv_proj.weight @ sequence.T).T.view(len(sequence), H + 2 * G, h)
        turned = rotate(heads[None], cos, sin)[0]
        for i in range(H):
            shared = i // (H // G)
            q, k, v = turned[:, i], turned[:, H + shared], heads[:, H + G + shared]
            for t in range(len(sequence)):
                weights = torch.exp(k[: t + 1] @ q[t] / math.sqrt(h))
                out[t, i] = (weights / weights.sum()) @ v[: t + 1]
        rows.append(out.flatten(1) @ attention.out_proj.weight.T)
    return torch.stack(rows)


def logits_by_hand(model: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    """The formulas of the docstrings, with the loop above for the attention; the MoE has its own oracles."""

    def norm(x, module):
        return x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + model.config.norm_eps) * module.weight

    x = model.embed.weight[ids]
    for layer in model.layers:
        x = x + attention_by_loops(layer.attention, norm(x, layer.attention_norm))
        out = layer.ffn(norm(x, layer.ffn_norm))
        x = x + (out[0] if isinstance(out, tuple) else out)
    return norm(x, model.norm) @ model.head.weight.T


HEADS = [{"num_kv_heads": 1}, {"num_kv_heads": 4}, {"num_heads": 2}]


@pytest.mark.parametrize("changes", [{}, {"moe_layers": ()}, {"moe_layers": (1,)}, {"shared_d_ff": 5}, *HEADS])
@pytest.mark.parametrize("norm_eps", [1e-5, 0.5])
def test_the_whole_against_its_formulas(changes, norm_eps):
    model = model_of(norm_eps=norm_eps, **changes)
    close(model(some_ids())[0], logits_by_hand(model, some_ids()))


@pytest.mark.parametrize("moe_layers, numbers", [(None, [0, 1, 2]), ((), []), ((1,), [1]), ([2, 0], [0, 2])])
def test_which_layers_are_mixtures(moe_layers, numbers):
    model = model_of(num_layers=3, moe_layers=moe_layers)
    kinds = [MoE if i in numbers else FeedForward for i in range(3)]
    assert [type(layer.ffn) for layer in model.layers] == kinds
    logits, routings = model(some_ids(3, 5))
    assert logits.shape == (3, 5, 11) and [routing.num_tokens for routing in routings] == [15] * len(numbers)


def test_tied_and_untied():
    tied, untied = model_of(), model_of(tied_embedding=False)
    assert tied.head.weight is tied.embed.weight and untied.head.weight is not untied.embed.weight
    baseline = copy.deepcopy(tied)
    assert baseline.head.weight is baseline.embed.weight is not tied.embed.weight
    assert count_parameters(untied).total - count_parameters(tied).total == 11 * 16


def test_hash_routing_follows_the_ids_one_sequence_after_the_other_by_a_table_for_each_layer():
    model, ids = model_of(router="hash"), some_ids()
    first, second = (layer.ffn.router.table for layer in model.layers)
    assert not torch.equal(first, second) and torch.equal(model(ids.int())[0], model(ids)[0])
    for table, routing in zip((first, second), model(ids)[1]):
        assert torch.equal(routing.topk_indices, table[ids.flatten()])


@pytest.mark.parametrize("router", CAUSAL)
@pytest.mark.parametrize("dispatch", DISPATCH)
def test_a_later_token_changes_nothing_before_it(router, dispatch):
    model = model_of(router=router, num_experts=8, shared_d_ff=4)
    assert model.causal
    for layer in model.layers:
        layer.ffn.dispatch = dispatch
    ids = some_ids(1, 12)
    before = model(ids)[0]
    for position in (3, 11):
        changed = ids.clone()
        changed[0, position] = (changed[0, position] + 1) % 11
        after = model(changed)[0]
        close(after[:, :position], before[:, :position])
        assert (after[:, position:] - before[:, position:]).abs().amax(dim=-1).min() > 1e-6


@pytest.mark.parametrize(
    "changes", [{"router": "expert choice"}, {"capacity_factor": 0.5}, {"capacity_factor": 0.5, "top_k": 1}], ids=str
)
def test_models_that_are_not_causal(changes):
    """Where experts choose, and where they can be full, some later token changes what an earlier one gets."""
    model, ids = model_of(**changes), some_ids(2, 12)
    baseline = dense_baseline(model)
    assert not model.causal and baseline.causal and baseline.generate(ids, 3).shape == (2, 15)
    pairs = [(some_ids(1, 12, seed), some_ids(1, 12, seed + 100)) for seed in range(5)]
    differences = [model(torch.cat(pair, dim=1))[0][:, :12] - model(pair[0])[0] for pair in pairs]
    assert max(difference.abs().max() for difference in differences) > 1e-3
    assert (in_pieces(model, ids, [4] + [1] * 8) - model(ids)[0]).abs().max() > 1e-3  # so it generates without a cache:
    model.new_cache = None
    assert model.generate(ids, 3).shape == (2, 15)


@torch.no_grad()
def in_pieces(model: LanguageModel, ids: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    """Its cache is longer than needed, and what is not taken is not read."""
    cache = model.new_cache(len(ids))
    cache.keys.fill_(math.nan), cache.values.fill_(math.nan)
    logits = [model(piece, cache)[0] for piece in ids.split(pieces, dim=1)]
    assert (cache.max_length, cache.length) == (24, ids.shape[1])
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 7], [1, 3, 1, 7]], ids=str)
@pytest.mark.parametrize("dispatch", [*DISPATCH, "auto"])
@pytest.mark.parametrize("changes", [{}, {"router": "sigmoid", "num_kv_heads": 1}, {"router": "hash"}])
def test_in_pieces_as_at_once(changes, dispatch, pieces, device):
    model, ids = model_of(**changes, shared_d_ff=3, moe_layers=(1,)).to(device), some_ids(3, 12, device=device)
    model.layers[1].ffn.dispatch = dispatch
    close(in_pieces(model, ids, pieces), model(ids)[0])


@routers
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_is_a_loop_of_argmax(router, use_cache, device):
    model, ids = model_of(router=router).to(device), some_ids(3, 4, device=device)
    expected = ids
    with torch.no_grad():
        for _ in range(10):
            likeliest = model(expected)[0][:, -1].argmax(-1, keepdim=True)
            expected = torch.cat([expected, likeliest], dim=1)
    for greedy in ({"temperature": 0}, {"top_k": 1}, {"temperature": 1e-30}):
        assert torch.equal(model.generate(ids, 10, **greedy, use_cache=use_cache), expected)


def test_seeds_and_the_random_state():
    model, again, other = (model_of(seed=seed).layers[0].attention.qkv_proj.weight for seed in (3, 3, 4))
    assert torch.equal(model, again) and not torch.equal(model, other)
    model, ids, before = model_of(), some_ids(2, 3), torch.random.get_rng_state()
    first, again, other = (model.generate(ids, 20, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, model.generate(ids, 20, use_cache=False))
    assert torch.equal(first[:, :3], ids) and first.dtype == ids.dtype


def test_draws_have_the_stated_probabilities():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0, -50.0]]).expand(20_000, 5)
    generator = torch.Generator().manual_seed(0)
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, 3), (1.0, 1)):
        drawn = draw(logits, temperature, top_k, generator)
        shares = torch.bincount(drawn.flatten(), minlength=5) / len(drawn)
        kept = logits[0] if top_k is None else logits[0].where(logits[0] > 3 - top_k, -math.inf)
        torch.testing.assert_close(shares, (kept / temperature).softmax(0), rtol=0, atol=0.015)
    assert draw(torch.tensor([[0.0, 1e10]]), 1e-30, None, generator) == 1  # 1e40 is more than float32 has


@pytest.mark.parametrize("router", ["gaussian noise", "learned noise"])
def test_generate_is_without_noise_and_gradients_and_keeps_the_mode_of_every_part(router):
    model = model_of(router=router)
    expected = model.generate(some_ids(), 8)
    model.train().layers[0].eval()  # a part that is frozen stays so
    modes = [part.training for part in model.modules()]
    assert torch.equal(model.generate(some_ids(), 8), expected)
    assert [part.training for part in model.modules()] == modes
    model(model.generate(some_ids(), 1))[0].sum().backward()  # training may read what was generated


@routers
@pytest.mark.parametrize("tied_embedding", [True, False])
def test_gradients_reach_all_parameters(router, tied_embedding, device):
    model = model_of(router=router, shared_d_ff=4, moe_layers=(1,), tied_embedding=tied_embedding).to(device).train()
    logits, _ = model(some_ids(4, 16, device=device))
    F.cross_entropy(logits[:, :-1].flatten(0, 1), some_ids(4, 16, device=device)[:, 1:].flatten()).backward()
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == (["layers.1.ffn.router.weight"] if router == "frozen" else [])
    for name, parameter in model.named_parameters():
        if name in frozen:
            continue
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        assert torch.isfinite(parameter.grad).all(), name
