"""What lesson 05 says under 'What to notice': of facts learned anew, of speeds, and of the stored sweeps."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from everywhere import seeds
from test_lesson_12 import known

from data import make_sweeps
from moe_lessons.analysis import (
    Machine,
    count_parameters,
    effective_width,
    flops_per_token,
)
from moe_lessons.analysis.quality import (
    quality_matched_width,
    times_as_wide,
    times_the_cost,
    width_over_steps,
)
from moe_lessons.analysis.results import last_of, load_ends, load_results
from moe_lessons.analysis.roofline import sizes_of
from moe_lessons.analysis.speedup import shape_of, speedups
from moe_lessons.course.own_figures import MIXTURE, decoders
from moe_lessons.nn import dense_baseline, dense_name
from moe_lessons.nn.baselines import dense_width
from moe_lessons.training import facts_model, facts_runs, train

SEEDS = seeds(3, first=1)  # the first are those of the stored sweeps
ACTIVE, TOTAL, AS_GOOD = "dense, 1×", "dense, 8×", "dense, 4×"


@pytest.mark.claim("the-mixture-knows-more-for-the-same-work")
@pytest.mark.parametrize("seed", SEEDS)
def test_the_mixture_knows_more_for_the_same_work(seed):
    runs = facts_runs(num_entries=300, seed=seed)
    train(runs.values(), 85)
    moe, active, total = (known(run) for run in runs.values())
    assert flops_per_token(runs["MoE"].model) < 1.05 * flops_per_token(runs[ACTIVE].model)
    assert flops_per_token(runs[TOTAL].model) > 4 * flops_per_token(runs["MoE"].model)
    assert 50 < moe > 2.5 * active and total > 1.5 * moe


@pytest.fixture(scope="module")
def ends() -> pd.DataFrame:
    """How each run of the book of 8,000 ended."""
    return load_ends("book_8000")


def by_seed(runs: pd.DataFrame, values: str, **when: int) -> pd.DataFrame:
    """Return what runs had at a `step`, or after so many `steps`, a row for each seed, a column for each model."""
    ((column, at),) = when.items()
    found = runs[runs[column] == at].pivot(index="seed", columns="model", values=values)
    assert len(found) == 3 and found.notna().all(axis=None)
    return found


@pytest.mark.claim("the-best-dense-model-takes-more-flops")
def test_the_best_dense_model_takes_more_flops(ends):
    times = {(experts, steps): times_the_cost(ends, f"MoE, E={experts}", steps)
             for experts in (4, 8, 16, 32) for steps in (2000, 3000, 6000)}  # fmt: skip
    assert 2.3 < times[16, 3000].low and times[16, 3000].high < 3.3 and 2.5 < times[16, 3000].width < 3
    assert 3.5 < times[32, 2000].low and times[32, 2000].high < 4.5 and 3.5 < times[32, 3000].width < 4
    other = [times_the_cost(ends, MIXTURE, steps).width for steps in (1500, 2000, 6000)]
    assert (round(min(other), 1), round(max(other), 1)) == (2.1, 2.6)
    assert times[16, 2000].low > 2 and times[16, 6000].low > 1.8 and times[8, 6000].low > 1.3
    assert times[4, 2000].high < 1.5 and times[4, 6000].high < 1
    short = ends[(ends.steps == 2000) & ends.width.gt(1)].groupby("width")[["known", "flops"]].mean()  # wider ones
    four, known = ends[(ends.model == "MoE, E=4") & (ends.steps == 6000)], short.known
    assert np.interp(four.known.mean(), known, short.flops) < 0.95 * four.flops.min()


@pytest.mark.claim("as-good-as-a-clearly-wider-dense-model")
def test_as_good_as_a_clearly_wider_dense_model(ends):
    for steps in (1500, 2000, 3000):
        found, known = times_as_wide(ends, MIXTURE, steps), by_seed(ends, "known", steps=steps)
        assert 3 < found.low and 3.9 < found.width < 5.1 and found.high < 5.5
        assert (known[MIXTURE] < known[TOTAL]).all()
    assert (known[MIXTURE] > known[AS_GOOD]).all()  # after 3,000 steps
    at_end, found = by_seed(ends, "known", steps=6000), times_as_wide(ends, MIXTURE, 6000)
    assert 3.1 < found.low and 4 < found.width < 5 and found.high < 6
    assert (at_end[AS_GOOD] - at_end[MIXTURE]).abs().max() < 2
    facts = last_of("book_2000_500", "known")  # a book that the smallest model can hold, and a sixth of the readings
    family = {width: list(facts[name]) for name in facts if (width := dense_width(name)) > 0}
    small = effective_width(family, list(facts[MIXTURE]))
    assert 1.7 < small.low < small.high < 4 and (facts[MIXTURE] < facts[TOTAL]).all()


def test_a_stored_run_begins_as_it_is_trained_here():
    stored = load_results("book_8000_2000").set_index(["model", "seed", "step"]).loss[MIXTURE, 1, 200]
    short = replace(make_sweeps.SWEEPS["book_8000_2000"], steps=200, measurements=1)
    again = make_sweeps.train_model(short, MIXTURE, 0.003, 1)
    assert again["loss"][-1] == pytest.approx(stored, rel=0.003)  # a third of the rate: 0.006


@pytest.mark.claim("faster-than-the-equally-good-dense-model")
def test_faster_than_the_equally_good_dense_model():
    """By the roofline of machines like CPUs, the quality-matched width has a corner, a valley and a top."""
    sizes, batches = sizes_of(shape_of(decoders()["MoE"])), 2.0 ** np.arange(13)
    widths = np.array([quality_matched_width(task, 16).width for task in ("source", "facts")])
    for ridge in (2, 4, 9, 16, 30):
        over = speedups(sizes, Machine(1e10, ridge * 1e10), "float32", batches).at(widths)
        lead, least = over[0] - 1, over[2:8].min(axis=0) - 1
        assert (lead > 2).all() and (least < 0.5 * lead).all() and (over[-1] - 1 > 0.5 * lead).all()


@pytest.mark.claim("more-experts-more-facts")
def test_more_experts_more_facts(ends):
    for steps in (1500, 2000, 3000):
        known = by_seed(ends, "known", steps=steps)[[ACTIVE, *(f"MoE, E={experts}" for experts in (4, 8, 16, 32))]]
        assert (known.diff(axis=1).iloc[:, 1:] > 0).all(axis=None)  # with each seed
    assert (known.diff(axis=1).iloc[:, 1:].mean() > 5).all() and times_as_wide(ends, "MoE, E=32", 3000).low > 6
    assert flops_per_token(facts_model(num_experts=32)) < 1.1 * flops_per_token(dense_baseline(facts_model()))


ONE, TWO, FOUR, EIGHT = map(dense_name, (1, 2, 4, 8))


@pytest.fixture(scope="module")
def source() -> pd.DataFrame:
    return load_results("source")


@pytest.mark.claim("on-real-text-the-width-grows")
def test_on_real_text_the_width_grows(source):
    found = {experts: width_over_steps("source", f"MoE, E={experts}").set_index("step") for experts in (4, 8, 16, 32)}
    sixteen = found[16]
    assert 1.6 < sixteen.width[500] < 2.6 and sixteen.width[[1000, 1500, 2000]].between(3.3, 4.7).all()
    assert sixteen.width[2500:].between(4, 6).all() and sixteen.width[250] < 1.2
    assert (sixteen.low[[3000, 3500, 4000]] > 3.6).all() and sixteen.high[4000] > 8
    assert (found[4].width < 2).all() and (found[8].width[[2000, 3000, 4000]] < sixteen.width[[2000, 3000, 4000]]).all()
    assert (found[32].width[[2000, 3000, 4000]] > sixteen.width[[2000, 3000, 4000]]).all()
    prose, losses = width_over_steps("prose", MIXTURE).set_index("step"), load_results("prose")
    assert prose.width[500] < 2 and prose.width[1000:].between(2.7, 5.5).all()
    mean = losses.groupby(["model", "step"]).loss.mean().unstack()
    assert mean[4000][EIGHT] > mean.loc[EIGHT].min() + 0.002  # the widest overfits: its loss has turned


@pytest.mark.parametrize("text", ["source", "prose"])
def test_each_model_has_the_best_rate_of_those_that_were_tried(text):
    tried = load_results(f"{text}_rates")
    best = tried[tried.step == 1000].pivot(index="model", columns="lr", values="loss")
    for model, rate in (
        load_results(text).groupby("model").lr.first().drop("no auxiliary loss", errors="ignore").items()
    ):
        assert best.loc[model].idxmin() == rate


def test_on_the_book_five_models_have_the_best_of_four_rates(ends):
    known = load_results("book_rates").groupby(["model", "lr"]).known.last().unstack()  # the last reading
    assert known.shape == (5, 4) and (known.idxmax(axis=1) == ends.groupby("model").lr.first()[known.index]).all()


def test_the_best_rate_after_1000_steps_is_as_good_as_the_second_at_the_end(source):
    others, best = load_results("source_other_rates"), by_seed(source, "loss", step=4000).loc[1]
    other = others[others.step == 4000].set_index("model").loss
    assert len(other) == 5 and (other > best[other.index] - 0.003).all()


@pytest.mark.claim("where-a-learned-router-pays")
def test_where_a_learned_router_pays(source):
    for step in (2000, 3000, 4000):
        losses = by_seed(source, "loss", step=step)
        gain = losses.rsub(losses[ONE], axis=0)  # over the FLOP-matched baseline
        frozen, learned, table = (gain[name] for name in ("frozen router", MIXTURE, "hash routing"))
        assert (frozen.mean() > 0.5 * learned.mean()) and (frozen > 0.03).all()
        assert (learned - frozen).mean() > 0.02 and (learned - frozen > 0.005).all()
        assert (gain["no auxiliary loss"] - frozen).mean() < 0.5 * (learned - frozen).mean()
        assert step < 4000 or 0.6 < frozen.mean() / learned.mean() < 0.7
        assert (table - learned > 0.005).all() and (table > gain[EIGHT] + 0.005).all()
        prose = by_seed(load_results("prose"), "loss", step=step).mean()
        assert prose["frozen router"] > prose[MIXTURE] + 0.005 > prose["hash routing"] + 0.01


@pytest.mark.claim("at-equal-quality-it-depends-on-the-cost")
def test_at_equal_quality_it_depends_on_the_cost(source):
    mean = source.groupby(["model", "step"])[["loss", "flops"]].mean()
    goal, paid = mean.loc[(MIXTURE, 4000)]
    behind = mean[mean.loss > goal]  # the readings at which a model is not as good yet
    assert all(len(behind.loc[name]) == len(mean.loc[name]) for name in (ONE, TWO, FOUR))
    assert len(behind.loc[EIGHT]) < len(mean.loc[EIGHT]) and behind.loc[EIGHT].flops.max() > 3 * paid


@pytest.mark.claim("the-mixture-tolerates-a-high-rate-less")
def test_the_mixture_tolerates_a_high_rate_less():
    tolerance = load_results("tolerance")
    loss = tolerance.pivot(index="seed", columns=["model", "lr"], values="loss")
    behind = loss["MoE, E=8"] - loss[ACTIVE]  # (3 seeds, 5 rates)
    assert behind[0.005].max() < -0.01 and behind[0.02].min() > 0.05
    best = tolerance.groupby(["model", "lr"]).loss.mean().unstack().idxmin(axis=1)
    assert best["MoE, E=8"] == best[ACTIVE] == tolerance.lr.min() == 0.005 < best[FOUR]
    factor = {model: loss[model][0.02] / loss[model].min(axis=1) for model in ("MoE, E=8", ACTIVE, FOUR)}
    assert (factor["MoE, E=8"] - factor[ACTIVE]).min() > 0.15 and (factor[ACTIVE] - factor[FOUR]).min() > 0.1
    assert not tolerance.diverged.any() and not load_results("capacity").diverged.any()


@pytest.mark.claim("most-of-the-memory-waits")
def test_most_of_the_memory_waits():
    count = count_parameters(facts_model())
    assert 0.2 < count.active / count.total < 0.25
