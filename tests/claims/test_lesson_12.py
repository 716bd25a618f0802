"""What lesson 12 says under 'What to notice'. Its other statements are those of the lessons that it names."""

import pytest

from moe_lessons.course.own_figures import MIXTURE, trained
from moe_lessons.nn import EQUAL_ACTIVE, EQUAL_TOTAL
from moe_lessons.training import facts_runs, train


@pytest.mark.claim("the-answer-in-one-picture")
def test_memory_like_the_large_one_work_like_the_small_one_and_learning_in_between():
    runs = trained()
    size, used, known = (runs.pivot(index="seed", columns="model", values=n) for n in ("parameters", "active", "known"))
    assert len(known) >= 3
    assert size[MIXTURE].max() == pytest.approx(size[EQUAL_TOTAL].max(), rel=0.02)
    assert used[MIXTURE].max() == pytest.approx(used[EQUAL_ACTIVE].max(), rel=0.05)
    assert (known[MIXTURE] / known[EQUAL_ACTIVE]).min() > 10
    as_good = [name for name in known if name != MIXTURE and known[name].mean() >= known[MIXTURE].mean()]
    assert len(as_good) > 1 and used[as_good].min().min() > 3 * used[MIXTURE].max()


@pytest.mark.claim("longer-training-catches-up")
@pytest.mark.claim("k-is-trained-in")
def test_longer_training_catches_up_and_k_is_trained_in():
    for seed in (1, 2, 3):
        runs = facts_runs(num_entries=300, seed=seed)
        moe, twin = runs["MoE"], runs[EQUAL_ACTIVE]
        train([moe, twin], 100)
        mixture, before = known(moe), known(twin)
        train([twin], 100)
        assert 1.5 * before < mixture < known(twin) - 10
        for k, share in ((1, 0.5), (4, 0.8)):
            for layer in moe.model.layers:
                layer.ffn.router.top_k = k
            assert known(moe) < share * mixture


def known(run) -> int:
    return int(run.task.known(run.model).sum())
