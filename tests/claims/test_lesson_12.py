"""What lesson 12 says under 'What to notice', and what only its interview says. Its other statements are those of the
lessons that it names."""

import numpy as np
import pytest
import torch
from everywhere import seeds

from moe_lessons.analysis import union_law
from moe_lessons.analysis.roofline import machine_for, machines, on_machine, published_sizes
from moe_lessons.analysis.speedup import edges_of, matched_width, speedups
from moe_lessons.nn import MoE, seeded
from moe_lessons.nn.routing import HashRouter
from moe_lessons.training import facts_runs, train


@pytest.mark.claim("the-answer-on-the-map")
def test_the_answer_on_the_map():
    """At the quality-matched width, by the roofline of an H200 with 1,024 tokens in the cache of each text."""
    sizes, row = published_sizes()["Mixtral 8x7B"], machines().loc["NVIDIA H200 SXM"]
    found, batches = matched_width("source", 8, 2), np.array([1.0, *range(4, 361)])
    assert [round(width, 1) for width in (found.width, found.low, found.high)] == [3.2, 2.5, 5.1]
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


@pytest.mark.claim("longer-training-catches-up")
@pytest.mark.claim("k-is-trained-in")
def test_longer_training_catches_up_and_k_is_trained_in():
    for seed in seeds(3, first=1):
        runs = facts_runs(num_entries=300, seed=seed)
        moe, baseline = runs["MoE"], runs["dense, 1×"]
        train([moe, baseline], 100)
        mixture, before = known(moe), known(baseline)
        train([baseline], 100)
        assert 1.5 * before < mixture < known(baseline) - 10
        for k, share in ((1, 0.5), (4, 0.8)):
            for layer in moe.model.layers:
                layer.ffn.router.top_k = k
            assert known(moe) < share * mixture


@pytest.mark.claim("an-expert-without-tokens-may-move")
@pytest.mark.parametrize("seed", seeds(3))
def test_an_expert_without_tokens_may_move(seed):
    """Three experts: E0 has tokens, E1 had some before, E2 never. Ours (no decay), and with a decay of .1."""
    moved = {}
    for decay in (0.0, 0.1):
        with seeded(seed):
            moe, x = MoE(16, 8, num_experts=3, top_k=1, router=HashRouter(3, vocab_size=1)), torch.randn(64, 16)
        optimizer = torch.optim.AdamW(moe.experts.parameters(), lr=0.01, weight_decay=decay)
        for chosen in (0, 1) * 10 + (0,):  # the last step has no token for E1
            before = moe.experts.down_proj.detach().clone()
            moe.router.table.fill_(chosen)
            optimizer.zero_grad()
            moe(x, torch.zeros(64, dtype=torch.long))[0].square().mean().backward()
            optimizer.step()
        assert (moe.experts.down_proj.grad[[1, 2]] == 0).all()
        moved[decay] = (moe.experts.down_proj.detach() - before).abs().amax(dim=(1, 2))
    assert moved[0.0][1] > 0.001 and moved[0.0][2] == 0 < moved[0.1][2]
    (group,) = facts_runs(num_entries=10)["MoE"].optimizer.param_groups
    assert group["weight_decay"] == 0


def known(run) -> int:
    return int(run.task.known(run.model).sum())
