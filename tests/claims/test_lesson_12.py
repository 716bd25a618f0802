"""What lesson 12 says under 'What to notice'. Its other statements are those of the lessons that it names."""

import pytest
from everywhere import seeds

from moe_lessons.analysis import count_parameters
from moe_lessons.analysis.results import load_results
from moe_lessons.course.own_figures import MIXTURE
from moe_lessons.nn import SAME_ACTIVE, SAME_TOTAL
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


def known(run) -> int:
    return int(run.task.known(run.model).sum())
