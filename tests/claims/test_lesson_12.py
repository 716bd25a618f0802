"""What lesson 12 says under 'What to notice'. Its other statements are those of the lessons that it names."""

import pytest
import torch
from everywhere import seeds

from moe_lessons.analysis import count_parameters
from moe_lessons.analysis.results import load_results
from moe_lessons.course.own_figures import MIXTURE
from moe_lessons.nn import SAME_ACTIVE, SAME_TOTAL, MoE, seeded
from moe_lessons.nn.routing import HashRouter
from moe_lessons.training import facts_runs, train


@pytest.mark.claim("the-answer-in-one-picture")
def test_memory_like_the_large_one_work_like_the_small_one_and_learning_in_between():
    counts = {name: count_parameters(run.model) for name, run in facts_runs().items()}
    mixture, small, large = (counts[name] for name in ("MoE", SAME_ACTIVE, SAME_TOTAL))
    assert mixture.total == pytest.approx(large.total, rel=0.02)
    assert mixture.active == pytest.approx(small.active, rel=0.05)
    runs = load_results("book_2000_500")
    for step in (300, 400, 500):  # of the same book
        known = runs[runs.step == step].pivot(index="seed", columns="model", values="known")
        assert len(known) >= 3
        assert (known[MIXTURE] > 2 * known[SAME_ACTIVE]).all() and (known[MIXTURE] < known[SAME_TOTAL]).all(), step


@pytest.mark.claim("longer-training-catches-up")
@pytest.mark.claim("k-is-trained-in")
def test_longer_training_catches_up_and_k_is_trained_in():
    for seed in seeds(3, first=1):
        runs = facts_runs(num_entries=300, seed=seed)
        moe, baseline = runs["MoE"], runs[SAME_ACTIVE]
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
