"""What lesson 12 says under 'What to notice'. Its other statements are those of the lessons that it names."""

import pytest

from moe_lessons.course.measure import MIXTURE, times_as_wide, trained
from moe_lessons.nn import EQUAL_ACTIVE, EQUAL_TOTAL, dense_twin
from moe_lessons.tasks import Facts
from moe_lessons.training import Run, facts_model, train


@pytest.mark.claim("the-answer-in-one-picture")
def test_memory_like_the_large_one_work_like_the_small_one_and_learning_in_between():
    runs = trained()
    size, used, known = (runs.pivot(index="seed", columns="model", values=n) for n in ("parameters", "active", "known"))
    assert len(known) >= 3
    assert size[MIXTURE].max() == pytest.approx(size[EQUAL_TOTAL].max(), rel=0.02)
    assert used[MIXTURE].max() == pytest.approx(used[EQUAL_ACTIVE].max(), rel=0.05)
    assert (known[MIXTURE] / known[EQUAL_ACTIVE]).min() > 3
    as_good = [name for name in known if name != MIXTURE and known[name].mean() >= known[MIXTURE].mean()]
    assert len(as_good) > 2 and used[as_good].min().min() > 1.9 * used[MIXTURE].max()
    assert 1.7 < times_as_wide().low < times_as_wide().high < 8


@pytest.fixture(scope="module")
def known() -> list[dict[str, int]]:
    """Of 300 facts, for each seed, what the mixture and its twin know after 100 steps, the twin after 400, and the
    mixture with another K."""
    found = []
    for seed in (1, 2, 3):
        task, models = Facts(300, seed), {"mixture": facts_model(seed)}
        models |= {name: dense_twin(models["mixture"]) for name in ("twin", "twin, for longer")}
        for name, model in models.items():
            steps = 400 if "longer" in name else 100
            run = Run(model, task, lr=0.006, seed=seed, warmup_steps=20, decay_steps=steps, max_grad_norm=1.0)
            if run.num_experts:
                run.knobs.router_aux_loss_coef = 0.01
            train([run], steps)
        counts = {name: int(task.known(model).sum()) for name, model in models.items()}
        for k in (1, 4):
            for layer in models["mixture"].layers:
                layer.ffn.router.top_k = k
            counts[f"K = {k}"] = int(task.known(models["mixture"]).sum())
        found.append(counts)
    return found


@pytest.mark.claim("longer-training-catches-up")
def test_longer_training_catches_up(known):
    for counts in known:
        assert counts["mixture"] > 1.5 * counts["twin"]
        assert counts["twin, for longer"] > counts["mixture"] + 10


@pytest.mark.claim("k-is-trained-in")
def test_k_is_trained_in(known):
    for counts in known:
        assert counts["K = 1"] < 0.45 * counts["mixture"] and counts["K = 4"] < 0.8 * counts["mixture"]
