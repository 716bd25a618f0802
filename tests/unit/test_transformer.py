"""The language model: each part against the formula it states, and the whole against itself run another way."""

import copy
import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moe_lessons.analysis.cost import ParameterCount, TransformerShape, count_parameters, flops_per_token
from moe_lessons.nn import (
    DISPATCH,
    Attention,
    FeedForward,
    HashRouter,
    KVCache,
    LanguageModel,
    MoE,
    SigmoidRouter,
    SwitchRouter,
    TransformerConfig,
    dense_twin,
    load_balancing_loss,
    seeded,
)
from moe_lessons.nn.attention import rotary, rotate
from moe_lessons.nn.norm import RMSNorm
from moe_lessons.nn.transformer import ROUTERS, draw
from moe_lessons.training import Run

F64 = torch.float64
TINY = TransformerConfig(
    vocab_size=11, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, max_positions=24, d_ff=8, num_experts=4
)
CAUSAL = [name for name in ROUTERS if name != "expert choice"]


def model_of(config: TransformerConfig = TINY, seed: int = 0, **changes) -> LanguageModel:
    """In eval mode and float64, with weights in which no part is near zero, and that do not repeat their last token."""
    with seeded(seed):
        model = LanguageModel(dataclasses.replace(config, **changes)).to(F64).eval()
        nn.init.normal_(model.embed.weight, std=0.2)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def some_ids(batch: int = 2, length: int = 9, seed: int = 0, vocab_size: int = 11, device="cpu") -> torch.Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed)).to(device)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


# --- positions ---


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


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 500))
def test_scores_depend_on_the_distance_alone(first, second, shift):
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=F64, generator=torch.Generator().manual_seed(0))

    def score(a: int, b: int) -> torch.Tensor:
        turned = [rotate(x, *rotary(torch.tensor([at]), 8, dtype=F64)) for x, at in ((q, a), (k, b))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(first, second), score(first + shift, second + shift), rtol=0, atol=1e-9)
    assert abs(score(0, 0) - score(0, 3)) > 1e-3


def test_angles_are_precise_in_bfloat16():
    """Positions beyond 256 are no bfloat16 numbers: the angle is computed in float32 and rounded once."""
    cos, sin = rotary(torch.tensor([257, 1001]), 8, dtype=torch.bfloat16)
    exact = rotary(torch.tensor([257, 1001]), 8, dtype=F64)
    assert cos.dtype == torch.bfloat16
    torch.testing.assert_close(cos.double(), exact[0], rtol=0, atol=0.004)
    torch.testing.assert_close(sin.double(), exact[1], rtol=0, atol=0.004)


def test_the_order_of_the_tokens_matters():
    model, ids = model_of(), torch.tensor([[1, 2, 3, 4]])
    swapped = ids[:, [1, 0, 2, 3]]
    assert (model(ids)[0][:, -1] - model(swapped)[0][:, -1]).abs().max() > 1e-3


# --- attention ---


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


@pytest.mark.parametrize("num_heads, num_kv_heads", [(1, 1), (4, 4), (4, 2), (4, 1), (6, 3)])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_attention_against_loops(num_heads, num_kv_heads, length):
    torch.manual_seed(0)
    attention = Attention(24, num_heads, num_kv_heads).to(F64)
    x = torch.randn(2, length, 24, dtype=F64)
    y = attention(x, rotary(torch.arange(length), 24 // num_heads, dtype=F64))
    close(y, attention_by_loops(attention, x))


def test_groups_are_heads_that_share_their_keys():
    """Grouped heads are full ones in which the keys and values of a group are the same."""
    torch.manual_seed(0)
    grouped, full = Attention(24, 4, 2).to(F64), Attention(24, 4, 4).to(F64)
    q, k, v = grouped.qkv_proj.weight.view(8, 6, 24).split([4, 2, 2])
    with torch.no_grad():
        heads = torch.cat([q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)])
        full.qkv_proj.weight.copy_(heads.flatten(0, 1))
        full.out_proj.weight.copy_(grouped.out_proj.weight)
    x, turn = torch.randn(2, 5, 24, dtype=F64), rotary(torch.arange(5), 6, dtype=F64)
    close(grouped(x, turn), full(x, turn))


# --- the whole ---


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


@pytest.mark.parametrize("changes", [{}, {"moe_layers": ()}, {"moe_layers": (1,)}, {"shared_d_ff": 5}])
@pytest.mark.parametrize("norm_eps", [1e-5, 0.5])
def test_the_whole_against_its_formulas(changes, norm_eps):
    model = model_of(norm_eps=norm_eps, **changes)
    close(model(some_ids())[0], logits_by_hand(model, some_ids()))


@pytest.mark.parametrize("moe_layers, numbers", [(None, [0, 1, 2]), ((), []), ((1,), [1]), ([2, 0], [0, 2])])
def test_which_layers_are_mixtures(moe_layers, numbers):
    model = model_of(num_layers=3, moe_layers=moe_layers)
    assert [i for i, layer in enumerate(model.layers) if isinstance(layer.ffn, MoE)] == numbers
    logits, routings = model(some_ids(3, 5))
    assert logits.shape == (3, 5, 11) and len(routings) == len(numbers)
    assert all(routing.num_tokens == 15 for routing in routings)


def test_a_routing_has_one_sequence_after_the_other():
    model, ids = model_of(), some_ids(3, 5)
    (both, _), (alone, _) = model(ids)[1], model(ids[1:2])[1]
    assert torch.equal(both.topk_indices[5:10], alone.topk_indices)


def test_one_expert_is_a_dense_model():
    moe = model_of(num_experts=1, top_k=1)
    dense = model_of(moe_layers=())
    state = {name.replace(".experts.", "."): value for name, value in moe.state_dict().items() if "router" not in name}
    state = {name: value[0] if "ffn." in name else value for name, value in state.items()}
    dense.load_state_dict(state)
    close(moe(some_ids())[0], dense(some_ids())[0])


def test_tied_and_untied():
    tied, untied = model_of(), model_of(tied_embedding=False)
    assert tied.head.weight is tied.embed.weight and untied.head.weight is not untied.embed.weight
    assert copy.deepcopy(tied).head.weight is not tied.head.weight
    assert (twin := copy.deepcopy(tied)).head.weight is twin.embed.weight
    assert count_parameters(untied).total - count_parameters(tied).total == 11 * 16


@pytest.mark.parametrize("router", ROUTERS)
def test_router_by_name(router):
    model = model_of(router=router, num_experts=6, top_k=2)
    for layer in model.layers:
        assert (layer.ffn.router.num_experts, layer.ffn.router.top_k) == (6, 2)
    noise = {"gaussian noise": "gaussian", "top-k": "gaussian", "learned noise": "learned"}
    assert getattr(model.layers[0].ffn.router, "noise", None) == noise.get(router)
    ids = some_ids()
    close(model(ids)[0], model(ids)[0])
    model.train()
    noisy = router in ("gaussian noise", "learned noise")
    assert torch.equal(model(ids)[0], model(ids)[0]) != noisy


def test_router_by_class_or_function():
    assert isinstance(model_of(router=SigmoidRouter).layers[1].ffn.router, SigmoidRouter)
    model = model_of(top_k=1, router=lambda d_model, num_experts, top_k: SwitchRouter(d_model, num_experts))
    assert isinstance(model.layers[1].ffn.router, SwitchRouter)
    assert isinstance(model_of(router=HashRouter).layers[0].ffn.router, HashRouter)


def test_each_layer_hashes_by_a_table_of_its_own():
    first, second = (layer.ffn.router.table for layer in model_of(router="hash", vocab_size=256).layers)
    assert not torch.equal(first, second)


def test_hash_routing_follows_the_ids():
    ids = some_ids()
    model = model_of(router="hash")
    for layer, routing in zip(model.layers, model(ids)[1]):
        assert torch.equal(routing.topk_indices, layer.ffn.router.table[ids.flatten()])


@pytest.mark.parametrize("router", [name for name in ROUTERS if name != "hash"])
def test_router_std(router):
    config = dataclasses.replace(TINY, d_model=64, num_experts=32, router=router, router_std=0.02)
    with seeded(0):
        model = LanguageModel(config)
    for layer in model.layers:
        assert layer.ffn.router.weight.std().item() == pytest.approx(0.02, rel=0.1)
    with pytest.raises(ValueError, match="router_std must be None where the router has no weight, got 0.02"):
        LanguageModel(dataclasses.replace(config, router="hash"))


def test_a_learners_block_in_the_place_of_ours():
    class Learner(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    model, expected = model_of(), model_of()
    model.layers[0].ffn = Learner(model.layers[0].ffn)
    logits, routings = model(some_ids())
    close(logits, expected(some_ids())[0])
    assert len(routings) == 2


def test_weights_come_from_the_random_state():
    first, again, other = (model_of(seed=seed) for seed in (3, 3, 4))
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters())]
    assert all(same) and not torch.equal(
        first.layers[0].attention.qkv_proj.weight, other.layers[0].attention.qkv_proj.weight
    )


def test_starts_knowing_nothing():
    """Logits like N(0, 1): ln V for a guess among all, and half their variance for guessing unevenly."""
    for seed in range(3):
        with seeded(seed):
            model = LanguageModel(TransformerConfig())
        ids = some_ids(4, 33, seed, 256)
        logits, _ = model(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        assert loss.item() == pytest.approx(math.log(256) + 1 / 2, abs=0.15)


# --- who sees whom ---


@pytest.mark.parametrize("router", CAUSAL)
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("dispatch", DISPATCH)
def test_a_later_token_changes_nothing_before_it(router, top_k, dispatch):
    model = model_of(router=router, top_k=top_k, num_experts=8, shared_d_ff=4)
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
    "changes", [{"router": "expert choice"}, {"capacity_factor": 0.5}, {"capacity_factor": 0.5, "top_k": 1}]
)
def test_models_that_are_not_causal(changes):
    """Where experts choose, and where they can be full, some later token changes what an earlier one gets."""
    model = model_of(**changes)
    assert not model.causal
    differences = []
    for seed in range(5):
        ids = some_ids(1, 12, seed)
        longer = torch.cat([ids, some_ids(1, 12, seed + 100)], dim=1)
        differences.append((model(longer)[0][:, :12] - model(ids)[0]).abs().max().item())
    assert max(differences) > 1e-3


def test_a_dense_model_is_causal_and_so_is_a_dense_twin():
    assert model_of(moe_layers=()).causal
    assert dense_twin(model_of(router="expert choice")).causal


# --- with a cache ---


@torch.no_grad()
def in_pieces(model: LanguageModel, ids: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    cache = model.new_cache(*ids.shape)
    logits = [model(piece, cache)[0] for piece in ids.split(pieces, dim=1)]
    assert cache.length == ids.shape[1]
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 7], [1, 3, 1, 7], [11, 1]], ids=str)
@pytest.mark.parametrize("dispatch", [*DISPATCH, "auto"])
@pytest.mark.parametrize("router", ["top-k", "sigmoid", "hash"])
def test_in_pieces_as_at_once(router, dispatch, pieces, device):
    model, ids = model_of(router=router, shared_d_ff=3).to(device), some_ids(3, 12, device=device)
    for layer in model.layers:
        layer.ffn.dispatch = dispatch
    close(in_pieces(model, ids, pieces), model(ids)[0])


@pytest.mark.parametrize("changes", [{"moe_layers": ()}, {"num_kv_heads": 1}, {"num_kv_heads": 4}])
def test_other_models_in_pieces(changes):
    model, ids = model_of(**changes), some_ids(2, 12)
    close(in_pieces(model, ids, [4, 1, 1, 6]), model(ids)[0])


def test_a_longer_cache_than_needed_changes_nothing():
    model, ids = model_of(), some_ids(1, 6)
    with torch.no_grad():
        cache = model.new_cache()
        assert cache.max_length == 24
        cache.keys.fill_(math.nan)  # places that are not taken are not read
        cache.values.fill_(math.nan)
        close(model(ids, cache)[0], model(ids)[0])


def test_bytes_of_the_cache():
    shape = TransformerShape(11, 16, 2, 4, 2, 4, 8, num_experts=4, top_k=2)
    for dtype in (torch.bfloat16, torch.float32, F64):
        cache = model_of().to(dtype).new_cache(3, 10)
        assert cache.keys.dtype == dtype
        assert cache.nbytes == 3 * shape.kv_bytes(10, dtype.itemsize) == 2 * 2 * 3 * 2 * 10 * 4 * dtype.itemsize


# --- what it costs ---

MODELS = [{}, {"tied_embedding": False}, {"num_kv_heads": 4}, {"shared_d_ff": 8}, {"moe_layers": ()}, {"top_k": 1}]


def shape_of(config: TransformerConfig) -> TransformerShape:
    names = {field.name for field in dataclasses.fields(TransformerShape)} - {"shared_experts", "gated", "head_dim"}
    shape = {name: getattr(config, name) for name in names}
    if config.moe_layers == ():
        shape |= {"num_experts": 1, "top_k": 1}
    return TransformerShape(head_dim=config.head_dim, shared_experts=int(config.shared_d_ff is not None), **shape)


@pytest.mark.parametrize("changes", MODELS, ids=str)
def test_parameters(changes):
    config = dataclasses.replace(TINY, **changes)
    model = LanguageModel(config)
    assert count_parameters(model) == shape_of(config).count
    assert count_parameters(model).total == sum(p.numel() for p in model.parameters())


def test_parameters_as_a_sum():
    V, D, L, h, F_, E, K = 11, 16, 2, 4, 8, 4, 2
    rest = V * D + L * (D * (4 + 2 * 2) * h + D * D + E * D + 2 * D) + D
    assert count_parameters(model_of()) == ParameterCount(rest + L * E * 3 * D * F_, rest + L * K * 3 * D * F_)


@pytest.mark.parametrize("changes", MODELS, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_flops(changes, training):
    """Plain attention computes the whole square of scores, so that each token looks at all nine."""
    config = dataclasses.replace(TINY, **changes)
    with seeded(0):
        model = LanguageModel(config)
    for layer in model.layers:
        layer.ffn.dispatch = "loop"  # of no meaning to a dense block
    ids, shape = some_ids(2, 9), shape_of(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits, _ = model(ids)
        if training:
            logits.sum().backward()
    scores = shape.flops_per_token(context_length=9) - shape.flops_per_token()
    assert scores == 2 * 4 * 9 * 4 * 2 * 2  # L · H · T · h, for q·k and for the sum of v, a multiply and an add each
    per_token = flops_per_token(model, training) + (3 if training else 1) * scores
    assert counter.get_total_flops() == ids.numel() * per_token
    assert flops_per_token(model) == shape.flops_per_token()


@pytest.mark.parametrize("match, width", [("active", 16 + 8), ("total", 32 + 8)])
@pytest.mark.parametrize("router", ROUTERS)
def test_dense_twins(match, width, router):
    model = model_of(router=router, shared_d_ff=8)
    twin = dense_twin(model, match)
    assert [layer.ffn.d_ff for layer in twin.layers] == [width] * 2
    assert twin.head.weight is twin.embed.weight and twin.head.weight is not model.head.weight
    logits, routings = twin(some_ids())
    assert logits.shape == (2, 9, 11) and routings == []
    assert twin.generate(some_ids(), 3).shape == (2, 12)
    routers = sum(p.numel() for layer in model.layers for p in layer.ffn.router.parameters())
    assert getattr(count_parameters(model), match) - count_parameters(twin).total == routers


# --- generate ---


@pytest.mark.parametrize("router", [*CAUSAL, "expert choice"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_is_a_loop_of_argmax(router, use_cache, device):
    model, ids = model_of(router=router).to(device), some_ids(3, 4, device=device)
    expected = ids
    with torch.no_grad():
        for _ in range(10):
            likeliest = model(expected)[0][:, -1].argmax(-1, keepdim=True)
            expected = torch.cat([expected, likeliest], dim=1)
    assert torch.equal(model.generate(ids, 10, temperature=0, use_cache=use_cache), expected)
    assert torch.equal(model.generate(ids, 10, top_k=1, use_cache=use_cache), expected)
    assert torch.equal(model.generate(ids, 10, temperature=1e-44, use_cache=use_cache), expected)


@pytest.mark.parametrize("changes", [{"router": "expert choice"}, {"capacity_factor": 0.5}], ids=str)
def test_without_causality_there_is_no_cache(changes):
    """A cache would give other logits, for each new token chooses among itself alone."""
    model, ids = model_of(**changes), some_ids(2, 12)
    assert (in_pieces(model, ids, [4] + [1] * 8) - model(ids)[0]).abs().max() > 1e-3
    causal = model_of()
    model.new_cache = causal.new_cache = None
    assert model.generate(ids, 3).shape == causal.generate(ids, 3, use_cache=False).shape == (2, 15)
    with pytest.raises(TypeError):
        causal.generate(ids, 3)


def test_a_prompt_and_its_continuation_fill_all_positions():
    assert model_of().generate(some_ids(1, 23), 1).shape == (1, 24)
    assert model_of().generate(some_ids(1, 1), 23).shape == (1, 24)


def test_seeds_and_the_random_state():
    model, ids = model_of(), some_ids(2, 3)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
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


@pytest.mark.parametrize("router", ["gaussian noise", "learned noise"])
def test_generate_is_without_noise_and_gradients_and_keeps_the_mode(router):
    model = model_of(router=router)
    expected = model.generate(some_ids(), 8)
    model.train()
    assert torch.equal(model.generate(some_ids(), 8), expected)
    assert model.training and model.layers[0].ffn.router.training
    model.eval()
    model(model.generate(some_ids(), 1))[0].sum().backward()
    assert not model.training


def test_the_mode_is_kept_where_generate_fails():
    model = model_of().train()
    with torch.no_grad():
        model.layers[0].ffn.router.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="finite"):
        model.generate(some_ids(), 3)
    assert model.training


# --- training ---


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("tied_embedding", [True, False])
def test_gradients_reach_all_parameters(router, tied_embedding, device):
    model = model_of(router=router, shared_d_ff=4, moe_layers=(1,), tied_embedding=tied_embedding).to(device).train()
    logits, _ = model(some_ids(4, 16, device=device))
    F.cross_entropy(logits[:, :-1].flatten(0, 1), some_ids(4, 16, device=device)[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        assert torch.isfinite(parameter.grad).all(), name


def test_gradcheck():
    model = model_of(vocab_size=3, d_model=4, num_heads=2, num_kv_heads=1, d_ff=2, num_experts=2, num_layers=1)
    model.layers[0].ffn.dispatch = "loop"
    names, values = zip(*model.named_parameters())
    ids = torch.tensor([[0, 2, 1]])

    def run(*parameters):
        return torch.func.functional_call(model, dict(zip(names, parameters)), (ids,))[0]

    assert torch.autograd.gradcheck(run, values)


class CountingTask:
    """The next token is one more than this one: nothing is easier to learn."""

    def batch(self, num, generator):
        ids = (torch.randint(11, (num, 1), generator=generator) + torch.arange(9)) % 11
        return ids[:, :-1], ids[:, 1:]


@pytest.mark.parametrize("router", ROUTERS)
def test_a_run_trains_it(router):
    with seeded(0):
        model = LanguageModel(dataclasses.replace(TINY, router=router))
    run = Run(model, CountingTask(), lr=0.01, batch_size=16)
    run.knobs.router_aux_loss_coef = 0.01
    records = [run.step() for _ in range(60)]
    assert records[0].loss > 2.2 and records[-1].loss < 0.5
    assert len(records[-1].load) == 2
    if router != "expert choice":  # trained on whole sequences, it is lost on short ones
        assert model.generate(torch.tensor([[3, 4]]), 5, temperature=0).tolist() == [[3, 4, 5, 6, 7, 8, 9]]


@pytest.mark.parametrize("how", ["to", "autocast"])
@pytest.mark.parametrize("router", ROUTERS)
def test_in_bfloat16(router, how, device):
    exact, ids = model_of(router=router, num_experts=2).float().to(device), some_ids(2, 12, device=device)
    model = copy.deepcopy(exact)
    if how == "to":
        model = model.to(torch.bfloat16)
        logits, routings = model(ids)
    else:
        with torch.autocast(device, torch.bfloat16):
            logits, routings = model(ids)
    assert logits.dtype == torch.bfloat16 and routings[0].router_logits.dtype == torch.float32
    expected = exact(ids)[0]
    if router != "expert choice":  # there, a near-tie decides whether a token is served at all
        assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    (load_balancing_loss(routings[0]) + logits.float().square().mean()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.generate(ids, 4).shape == (2, 16)


# --- the configuration ---


def test_configuration_survives_json():
    for config in (TINY, dataclasses.replace(TINY, moe_layers=(1,), router="hash")):
        assert TransformerConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vocab_size": 0}, "vocab_size must be a whole number of at least 1, got 0"),
        ({"d_model": 0}, "d_model must be a whole number of at least 1, got 0"),
        ({"d_model": 20}, r"d_model must be a multiple of 2·num_heads \(8\), got 20"),
        ({"num_layers": 2.0}, "num_layers must be a whole number of at least 1, got 2.0"),
        ({"num_heads": 0}, "num_heads must be a whole number of at least 1, got 0"),
        ({"num_kv_heads": 3}, r"num_kv_heads must divide num_heads \(4\), got 3"),
        ({"num_kv_heads": 8}, r"num_kv_heads must divide num_heads \(4\), got 8"),
        ({"max_positions": -1}, "max_positions must be a whole number of at least 1, got -1"),
        ({"d_ff": True}, "d_ff must be a whole number of at least 1, got True"),
        ({"num_experts": 0}, "num_experts must be a whole number of at least 1, got 0"),
        ({"top_k": 5}, r"top_k must be between 1 and num_experts \(4\), got 5"),
        ({"moe_layers": (0, 2)}, r"moe_layers must be numbers from 0 to 1, got \(0, 2\)"),
        ({"moe_layers": 1}, "moe_layers must be numbers from 0 to 1, got 1"),
        ({"router": "top-2"}, "router must be one of 'top-k', .*'hash', got 'top-2'"),
        ({"router_std": 0}, "router_std must be a finite number above 0, got 0"),
        ({"shared_d_ff": 0}, "shared_d_ff must be a whole number of at least 1, got 0"),
        ({"capacity_factor": math.nan}, "capacity_factor must be a finite number above 0, got nan"),
        ({"activation": "tanh"}, "activation must be one of .*, got 'tanh'"),
        ({"rope_theta": 0}, "rope_theta must be a finite number above 0, got 0"),
        ({"norm_eps": -1}, "norm_eps must be a finite number of at least 0, got -1"),
    ],
)
def test_bad_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize(
    "ids, message",
    [
        ([[1, 2]], r"ids must be a tensor of whole numbers .* \(B, T\), got list"),
        (torch.zeros(1, 2), "got torch.float32 of shape"),
        (torch.zeros(1, 2, dtype=torch.bool), "got torch.bool of shape"),
        (torch.zeros(2, dtype=torch.long), r"of shape \(B, T\), got torch.int64 of shape \(2,\)"),
        (torch.zeros(1, 0, dtype=torch.long), r"ids must hold at least one token, got shape \(1, 0\)"),
        (torch.zeros(0, 3, dtype=torch.long), r"ids must hold at least one token, got shape \(0, 3\)"),
        (torch.tensor([[0, 11]]), "ids must be between 0 and 10, got 0 to 11"),
        (torch.tensor([[-1, 3]]), "ids must be between 0 and 10, got -1 to 3"),
        (torch.zeros(1, 25, dtype=torch.long), r"at most max_positions \(24\) tokens, got 25"),
    ],
)
def test_bad_ids(ids, message):
    """The same door for a forward and for a prompt; the good ones beside them pass."""
    model = model_of()
    for call in (model, lambda bad: model.generate(bad, 1)):
        with pytest.raises(ValueError, match=message):
            call(ids)
    assert model(some_ids(1, 24))[0].shape == (1, 24, 11)
    assert torch.equal(model(some_ids().int())[0], model(some_ids())[0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0"),
        ({"max_new_tokens": 16}, r"max_new_tokens must be at most max_positions \(24\) less the 9 .* got 16"),
        ({"max_new_tokens": 15, "temperature": -1}, "temperature must be a finite number of at least 0, got -1"),
        ({"max_new_tokens": 15, "top_k": 0}, "top_k must be a whole number of at least 1, got 0"),
        ({"max_new_tokens": 15, "top_k": 12}, r"top_k must be at most vocab_size \(11\), got 12"),
    ],
)
def test_bad_requests(arguments, message):
    with pytest.raises(ValueError, match=message):
        model_of().generate(some_ids(), **arguments)
    assert model_of().generate(some_ids(), 15, top_k=11).shape == (2, 24)


@torch.no_grad()
def test_what_a_cache_refuses():
    model, ids = model_of(), some_ids(2, 9)
    cache = model.new_cache(2, 10)
    model(ids, cache)
    kept = cache.keys.clone()
    with pytest.raises(ValueError, match=r"fit into the cache \(2 sequences, 1 of 10 places left\), got \(2, 2\)"):
        model(ids[:, :2], cache)
    with pytest.raises(ValueError, match=r"fit into the cache .* got \(1, 1\)"):
        model(ids[:1, :1], cache)
    assert cache.length == 9 and torch.equal(cache.keys, kept)
    assert model(ids[:, :1], cache)[0].shape == (2, 1, 11) and cache.length == 10
    for arguments, message in (
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"max_length": 0}, "max_length must be a whole number of at least 1, got 0"),
        ({"max_length": 25}, r"max_length must be at most max_positions \(24\), got 25"),
    ):
        with pytest.raises(ValueError, match=message):
            model.new_cache(**arguments)
    assert isinstance(model.new_cache(1, 24), KVCache)


def test_repr_and_dense_blocks():
    text = repr(model_of(moe_layers=(1,)))
    assert "num_heads=4, num_kv_heads=2" in text and "MoE(" in text and "FeedForward(" in text
    assert isinstance(model_of(moe_layers=(1,)).layers[0].ffn, FeedForward)


# --- RMSNorm ---------------------------------------------------------------------------------------------


def test_rms_norm_is_that_of_torch():
    ours, theirs = RMSNorm(6, eps=0.1).to(F64), torch.nn.RMSNorm(6, eps=0.1).to(F64)
    ours.weight = theirs.weight = torch.nn.Parameter(torch.randn(6, dtype=F64))
    x = torch.randn(2, 3, 6, dtype=F64, requires_grad=True)
    torch.testing.assert_close(ours(x), theirs(x))
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.bfloat16()(x.bfloat16()), theirs.bfloat16()(x.bfloat16()))  # not computed in bfloat16


def test_the_backward_pass_of_rms_norm():
    def norm(x, weight):
        return torch.func.functional_call(RMSNorm(6, eps=0.1), {"weight": weight}, x)

    inputs = [torch.randn(*shape, dtype=F64, requires_grad=True) for shape in ((2, 3, 6), (6,))]
    assert torch.autograd.gradcheck(norm, inputs)
