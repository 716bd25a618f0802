"""What lesson 12 says under 'What to notice', and what only its interview says. Its other statements are those of the
lessons that it names."""

import numpy as np
import pytest
from everywhere import seeds

from moe_lessons.analysis import union_law
from moe_lessons.analysis.releases import BYTES, modern_models, release_costs
from moe_lessons.analysis.roofline import machine_for, machines, on_machine, published_sizes, step_seconds
from moe_lessons.analysis.speedup import edges_of, speedups
from moe_lessons.nn import dense_name
from moe_lessons.training import facts_runs, train


@pytest.mark.claim("the-answer-on-the-map")
def test_the_answer_on_the_map():
    """At a width of 3.2, by the roofline of an H200 with 1,024 tokens in the cache of each text."""
    sizes, row = published_sizes()["Mixtral 8x7B"], machines().loc["NVIDIA H200 SXM"]
    batches = np.array([1.0, *range(4, 361)])
    over = speedups(sizes, machine_for(row, "bfloat16"), "bfloat16", batches, 1024).at(np.array([3.2]))[:, 0]
    slower = batches[over.round(3) < 1]
    assert slower.min() == 6 and 250 < slower.max() < 260
    assert edges_of(sizes, 3.2, machine_for(row, "bfloat16"), "bfloat16") == pytest.approx((5.6, 258), rel=0.01)
    ridge = row.bf16_flops_per_second / row.bytes_per_second  # of a dense FFN; of experts, E/K times as large
    assert round(ridge) == 206 and 354 < ridge * 8 / 2
    assert over[0] == pytest.approx(2.9, abs=0.05) and over.min() == pytest.approx(0.81, abs=0.01)
    last = on_machine(sizes, row, "bfloat16", 1024)["texts"]
    assert last == 354 and over[batches == last].item() == pytest.approx(1.2, abs=0.05)
    assert union_law(8, 2, 5) < 2 * 3.2 < union_law(8, 2, 6)  # experts loaded by the MoE, and the dense FFN in experts


@pytest.mark.claim("speculative-decoding-in-both-regimes")
def test_speculative_decoding_in_both_regimes():
    """How many times as long a step takes that checks 4 tokens of each sequence instead of 1, by the roofline; of
    routing, all tokens choose by themselves."""
    machine, sizes = machine_for(machines().loc["NVIDIA H200 SXM"], "bfloat16"), published_sizes()["Mixtral 8x7B"]

    def longer(model, batch: int) -> float:
        return step_seconds(model, machine, "bfloat16", 4 * batch) / step_seconds(model, machine, "bfloat16", batch)

    found = {batch: [round(longer(model, batch), 2) for model in (sizes, sizes.dense(3.2))] for batch in (1, 16, 128)}
    assert found == {1: [2.53, 1.0], 16: [1.01, 1.0], 128: [1.05, 2.48]}
    for E, K in ((8, 2), (128, 8), (384, 6)):  # most of the experts, and long before the MoE is compute-bound
        assert union_law(E, K, 3 * E // K) >= 0.95 * E and 3 * E // K < 206 * E / (4 * K)


@pytest.mark.claim("offloading-by-bytes")
def test_offloading_by_bytes():
    bandwidth = machines().bytes_per_second["Desktop CPU with DDR5"]
    costs, models = release_costs(), modern_models().set_index("name")
    for name, size, milliseconds in (("gpt-oss-120b", 1.9, 23), ("DeepSeek-V3", 20, 246)):
        own = models.loc[name]
        rest = (own.active_params_b - own.total_params_b * own.top_k / own.num_experts) / (
            1 - own.top_k / own.num_experts
        )
        experts = costs.gb_per_token[name] - rest * BYTES[own.other_weights]
        assert experts == pytest.approx(size, rel=0.03)
        assert 1e12 * experts / bandwidth == pytest.approx(milliseconds, rel=0.01)
        stored = experts * own.num_experts / own.top_k
        assert name != "DeepSeek-V3" or stored == pytest.approx(654, rel=0.01)
        for hits, is_faster in ((0.68, False), (0.72, True)):  # of a cache whose misses come over a bus of 25 GB/s
            assert ((1 - hits) * experts / 25e9 < experts / bandwidth) == is_faster
    assert 5.1 * 2 / costs.gb_per_token["gpt-oss-120b"] == pytest.approx(2.1, abs=0.05)


@pytest.mark.claim("longer-training-catches-up")
def test_longer_training_catches_up():
    for seed in seeds(3, first=1):
        runs = facts_runs(seed=seed)
        moe, baseline = runs["MoE"], runs[dense_name(1)]
        train([moe, baseline], 200)
        mixture, before = known(moe), known(baseline)
        train([baseline], 400)
        assert 1.5 * before < mixture < known(baseline) - 10


def known(run) -> int:
    return int(run.task.known(run.model).sum())
