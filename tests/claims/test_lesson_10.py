"""What lesson 10 says under 'What to notice': of releases by date, of whom they fit, and of a model under the lens."""

import numpy as np
import pandas as pd
import pytest
import torch
from everywhere import seeds

from moe_lessons.analysis import expert_shares, trace
from moe_lessons.analysis.releases import BYTES, modern_models, release_costs
from moe_lessons.analysis.results import load_results
from moe_lessons.analysis.roofline import WEIGHT_BYTES, machines, published_sizes
from moe_lessons.analysis.speedup import edges
from moe_lessons.exercises import choice
from moe_lessons.hub import Lens
from moe_lessons.nn import LanguageModel, TransformerConfig, seeded
from moe_lessons.tasks import TextTask
from moe_lessons.training import Run, train

COSTS, MODELS = release_costs(), modern_models()
YEAR = MODELS.day.dt.year
SIX = ["Kimi K3", "DeepSeek-V4-Pro", "DeepSeek-V3", "gpt-oss-120b", "Qwen3-30B-A3B", "gpt-oss-20b"]


@pytest.mark.claim("a-release-in-five-numbers")
def test_a_release_in_five_numbers():
    """Against the counts of the configurations, where both are stored: what a token uses, and all."""
    assert COSTS.sparsity.groupby(COSTS.day.dt.year).median().loc[[2024, 2025, 2026]].tolist() == [8, 32, 32]
    counted = published_sizes()
    for name in set(COSTS.index) & set(counted):
        own, sizes = MODELS.set_index("name").loc[name], counted[name]
        if own.isna().active_params_b:
            continue
        routed = sum(group.layers * group.size for group in sizes.groups) / 1e9
        used = routed * own.top_k / own.num_experts
        rest = (sizes.total / 1e9 - routed) * BYTES[own.other_weights]
        assert COSTS.gb[name] == pytest.approx(routed * BYTES[own.expert_weights] + rest, rel=0.08), name
        loaded = used * BYTES[own.expert_weights] + rest - BYTES[own.other_weights] * sizes.looked_up / 1e9
        assert COSTS.gb_per_token[name] == pytest.approx(loaded, rel=0.2), name  # makers count the embedding or not
    assert COSTS.upper["DeepSeek-V3"] == pytest.approx(206.1 * 32 / 4, rel=0.01)
    assert COSTS.upper["gpt-oss-120b"] == pytest.approx(206.1 * 32 / 4 * 4.25 / 16, rel=0.01)
    assert COSTS.lower.dropna().between(4, 7.3).all()
    routed = (COSTS.gb - COSTS.gb_per_token) / (1 - 1 / COSTS.sparsity)
    with_copies = np.ceil(routed / (141 - (COSTS.gb - routed)))  # of all but the experts, on each device
    three = ["Kimi K3", "DeepSeek-V3", "gpt-oss-120b"]
    assert COSTS.devices[three].tolist() == [12, 5, 1] and with_copies[three].tolist() == [47, 6, 1]
    own_slice = (COSTS.gb - routed + routed / 144)["Kimi K3"] / 141  # of a card, of 144
    assert own_slice == pytest.approx(0.85, abs=0.005)
    assert all(WEIGHT_BYTES[kind] == pytest.approx(size, rel=0.07) for kind, size in BYTES.items())


@pytest.mark.claim("four-bits-lower-the-upper-edge")
def test_four_bits_lower_the_upper_edge():
    in_4_bits = COSTS.weights == "4-bit"
    median = COSTS[~in_4_bits].groupby(COSTS.day.dt.year).upper.median()
    assert median.loc[[2024, 2025, 2026]].round().tolist() == [550, 1649, 1649]
    in_2024 = COSTS[COSTS.day.dt.year == 2024]
    assert (in_2024.upper.count(), len(in_2024), in_4_bits[in_2024.index].sum()) == (11, 15, 0)
    assert COSTS.upper[COSTS.day.dt.year > 2024].notna().all()
    per_sparsity = COSTS.upper / COSTS.sparsity
    in_fp8 = MODELS.set_index("name").other_weights == "fp8"  # computed
    for own, share in ((in_4_bits & ~in_fp8, 0.27), (in_4_bits & in_fp8, 0.54)):
        assert own.any() and (per_sparsity[own] / per_sparsity[~in_4_bits].min()).between(share - 0.05, share).all()
    assert in_fp8[["DeepSeek-V4-Pro", "DeepSeek-V4-Flash"]].all() and not in_fp8["gpt-oss-120b"]
    in_bf16, computed_in_4 = (edges(128, 4, 4, 206 * rate, size)[1] for rate, size in ((1, 2), (4, 4.25 / 8)))
    assert computed_in_4 == pytest.approx(in_bf16, rel=0.1)  # at four times the rate
    assert in_4_bits.sum() >= 10 and np.isnan(COSTS.upper["Mixtral 8x7B"])


@pytest.mark.claim("the-choice-by-the-edges")
def test_the_choice_by_the_edges():
    from transformers import GptOssConfig

    table = [tuple(row) for row in COSTS.loc[SIX, ["gb", "lower", "upper"]].to_numpy()]
    assert MODELS.set_index("name").total_params_b[SIX].is_monotonic_decreasing
    users = {(1, 24): "gpt-oss-20b", (500, 141): "gpt-oss-120b", (32 * 144, 144 * 141): "Kimi K3"}
    for user, name in users.items():
        assert SIX[choice.answer(table, *user)] == name
    assert choice.answer(table, 16, 141) == choice.answer(table, 16, 10_000) == -1
    for width in (1, 2, 4):  # of the dense model
        assert release_costs(width=width).dropna().eval("lower < 16 < upper").all()
    config = GptOssConfig()  # the 120b; of the layers with a window little is kept
    cached = 2 * 2 * config.num_key_value_heads * config.head_dim * config.layer_types.count("full_attention")
    assert (141e9 - 1e9 * COSTS.gb["gpt-oss-120b"]) / 500 / cached == pytest.approx(4000, rel=0.07)
    fits = [name for name in SIX if COSTS.gb[name] <= 0.8 * 24]
    assert fits == ["gpt-oss-20b"] and 32 * 144 > COSTS.upper[SIX].max() and 1 < COSTS.lower[SIX].min()
    assert 4 * 117 / 2 > 0.8 * 141 and 206 * 32 / 4 > 3.5 * 438  # gpt-oss-120b in bfloat16


@pytest.mark.claim("finer-sparser-shared-and-a-bias")
def test_finer_sparser_shared_and_a_bias():
    assert len(MODELS) == 66 and MODELS.name.is_unique and MODELS.source.ne("").all()
    assert (MODELS.top_k <= MODELS.num_experts).all() and not (MODELS.active_params_b > MODELS.total_params_b).any()
    shared = (MODELS.shared_experts > 0).groupby(YEAR).agg(["sum", "size"])
    assert shared.loc[2026].tolist() == [22, 28] and shared.loc[2024, "sum"] < shared.loc[2024, "size"] / 2
    since_may = MODELS[MODELS.day >= "2026-05-01"].shared_experts > 0
    assert (since_may.sum(), len(since_may)) == (9, 13)
    by_name = MODELS.set_index("name")
    assert by_name.shared_experts[["Qwen3-30B-A3B", "Qwen3-Next-80B-A3B"]].tolist() == [0, 1]
    bias = MODELS[MODELS.balancing.str.startswith("bias")]
    assert bias.name.iloc[0] == "DeepSeek-V3" and (bias.day.dt.year == 2026).sum() == 15
    assert (bias[bias.day.dt.year == 2026].balancing_from == "code").sum() == 11
    assert by_name.d_model["Kimi K3"] == 2 * 3584 and by_name.top_k["Kimi K3"] * 3584 == 8 * by_name.d_model["Kimi K3"]
    assert "3584-wide latent" in by_name.note["Kimi K3"]


@pytest.mark.claim("experts-get-wider-again")
@pytest.mark.parametrize("first_only", [False, True])
def test_experts_get_wider_again(first_only):
    """Of large releases: in some seasons small ones, whose experts are narrow, are many."""
    models = MODELS.drop_duplicates(["num_experts", "top_k", "d_model", "d_ff"]) if first_only else MODELS
    days = ("2025-07-01", "2025-12-31"), ("2026-01-01", "2026-04-30"), ("2026-05-01", "2026-12-31")
    for least in (100, 200, 250):  # billion parameters
        large = models[models.total_params_b > least]
        assert [large[large.day.between(*each)].d_ff.median() for each in days] == [2048, 2048, 3072]
    assert first_only or large[large.day.between(*days[2])].d_ff.count() == 6
    D, F, bandwidth = 7168, 3072, 50e9  # of DeepSeek-V4-Pro; the exchange of an assignment hides at 2·F at most
    for flops, hides in ((1.9 * F * bandwidth, True), (2.1 * F * bandwidth, False)):
        assert (6 * D * F / flops > 3 * D / bandwidth) == hides
    own = MODELS.set_index("name").loc["DeepSeek-V4-Pro"]
    routed = (own.total_params_b - own.active_params_b) / (own.num_experts / own.top_k - 1)  # that a token uses
    assert own.d_ff == F and 2 * F == 6144 < 7912 and routed / own.active_params_b == pytest.approx(0.5, abs=0.05)
    in_bf16, in_fp8 = 0.4 * machines().loc["NVIDIA H200 SXM", ["bf16_flops_per_second", "fp8_flops_per_second"]]
    assert in_bf16 / bandwidth == pytest.approx(7912, abs=4)  # and of all arithmetic, not of the experts alone:
    assert 2 * own.active_params_b / in_fp8 < routed / F / bandwidth < 2 * own.active_params_b / in_bf16


@pytest.mark.claim("hash-routing-does-well-on-bytes")
def test_hash_routing_does_well_on_bytes():
    """Each at the best of three rates; single seeds agree."""
    results = load_results("source")
    loss = results[results.step == 4000].groupby("model").loss.agg(["mean", "min", "max", "size"])
    learned, hashed = loss.loc["MoE"], loss.loc["hash routing"]
    assert learned["size"] == hashed["size"] == 3 and hashed["max"] < learned["min"]
    assert hashed["mean"] == pytest.approx(1.11, abs=0.005) and learned["mean"] == pytest.approx(1.15, abs=0.005)


@pytest.mark.claim("the-lens-reads-a-model-of-transformers")
@pytest.mark.parametrize("seed", seeds(3))
def test_the_lens_reads_a_model_of_transformers(seed):
    """Trained as in the lesson; what the lens saw is what the model's own router chose."""
    from transformers import OlmoeConfig, OlmoeForCausalLM

    sizes = dict(vocab_size=256, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    task, batches = TextTask(), torch.Generator().manual_seed(seed)
    with seeded(seed):
        config = OlmoeConfig(
            **sizes, num_experts=8, num_experts_per_tok=2, output_router_logits=True, eos_token_id=None
        )
        olmoe = OlmoeForCausalLM(config)
        ours = LanguageModel(TransformerConfig(d_model=64, d_ff=32, num_layers=2, num_heads=4, num_experts=8, top_k=2))
    run = Run(ours, task, lr=0.005, batch_size=16, seed=seed)
    run.knobs.router_aux_loss_coef = 0.01
    train(run, 150)
    optimizer = torch.optim.AdamW(olmoe.parameters(), lr=0.005)
    for _ in range(150):
        ids, _ = task.batch(16, batches)
        optimizer.zero_grad()
        olmoe(ids, labels=ids).loss.backward()
        optimizer.step()
    ids, _, domain = task.held_out(32)
    with Lens(olmoe.eval()) as lens, torch.no_grad():
        logits = olmoe(ids).router_logits[-1]
    routing = list(lens.routings.values())[-1]
    assert torch.equal(routing.topk_indices.sort().values, logits.topk(2).indices.sort().values)
    kinds = [task.domains[domain[token // ids.shape[1]]] for token in routing.token_idx]
    theirs = pd.crosstab(kinds, routing.expert_idx.numpy(), normalize="index")
    mine = expert_shares(trace(ours, task), layer=1)
    assert min(theirs.max(axis=None), mine.max(axis=None)) > 2 / 8
