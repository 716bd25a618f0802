"""What lesson 05 says under 'What to notice': of facts and a race learned anew, and of the stored sweeps."""

import time
from statistics import median

import numpy as np
import pytest
from everywhere import seeds
from test_lesson_12 import known

from moe_lessons.analysis import Machine, count_parameters, effective_width, flops_per_token
from moe_lessons.analysis.quality import SIZES, lead_by_clock, race_by_clock, size_losses, width_over_size
from moe_lessons.analysis.results import load_results
from moe_lessons.analysis.roofline import sizes_of
from moe_lessons.analysis.speedup import edges, shape_of, speedups
from moe_lessons.course.own_figures import decoders
from moe_lessons.exercises import matched_widths
from moe_lessons.nn import dense_name, torch_threads
from moe_lessons.training import facts_model, facts_runs, race_runs, train

SEEDS = seeds(3, first=1)


@pytest.mark.claim("the-mixture-knows-more-for-the-same-work")
@pytest.mark.parametrize("seed", SEEDS)
def test_the_mixture_knows_more_for_the_same_work(seed):
    runs = facts_runs(seed=seed)
    train(runs.values(), 300)
    moe, active, total = (known(run) for run in runs.values())
    first, second, third = (flops_per_token(run.model) for run in runs.values())
    assert first < 1.08 * second and 3.5 * first < third < 4 * first
    assert moe > 0.8 * 400 and active < 0.58 * 400 and total > moe
    train(runs.values(), 300)
    assert known(runs["MoE"]) > known(runs[dense_name(1)]) + 10
    faster = [run for name, run in facts_runs(seed=seed).items() if name in ("MoE", dense_name(1))]
    for run in faster:
        run.knobs.lr = 0.02
    train(faster, 300)
    assert known(faster[0]) > known(faster[1]) + 50


@pytest.mark.claim("most-of-the-memory-waits")
def test_most_of_the_memory_waits():
    count = count_parameters(facts_model())
    assert 0.25 < count.active / count.total < 0.28


@pytest.mark.claim("last-by-the-clock")
@pytest.mark.parametrize("seed", SEEDS)
def test_last_by_the_clock(seed):
    """In the same FLOPs, which are the time on a machine that computes all alike; half as many as in the lesson."""
    runs = race_runs(seed)
    work = {name: flops_per_token(run.model, training=True) for name, run in runs.items()}
    moe, small, large = work
    assert work[moe] < 1.05 * work[small] and work[large] > 3 * work[moe]
    for name, run in runs.items():
        train([run], round(150 * work[large] / work[name]))
    loss = {name: run.evaluate(192)["loss"] for name, run in runs.items()}
    assert loss[large] > max(loss[moe], loss[small]) + 0.06


@pytest.mark.claim("over-the-same-steps-the-order-is-another")
def test_over_the_same_steps_the_order_is_another():
    """The stored runs of D = 64: at each reading, mean of the seeds and most of them."""
    runs = load_results("size_64").pivot(index="seed", columns=["step", "model"], values="loss")
    for step in (250, 500, 750, 1000):
        large, moe, small = (runs[step][name] for name in ("dense, 8×", "MoE", "dense, 1×"))
        assert (moe - large).mean() > 0.01 and (small - moe).mean() > 0.01
        assert (large < moe).mean() > 0.6 and (moe < small).mean() > 0.6


@pytest.mark.claim("its-lead-by-the-clock-grows")
@pytest.mark.parametrize("slower", [1, 1.15])
def test_its_lead_by_the_clock_grows(slower):
    """Also where a step of the MoE, beside one of the others, takes longer than on the machine that trained them."""
    race = race_by_clock()
    race["seconds"] *= np.where(race.model == "MoE", slower, 1)
    mean, half = lead_by_clock(race, (10, 20, 70), "dense, 1×")
    assert mean[0] < 0.02 and mean[1] < half[1] and mean[2] > max(0.02, half[2] if slower == 1 else 0)
    mean, half = lead_by_clock(race, (10, 20, 40, 70), "dense, 2×")
    assert (mean < half).all()  # no lead is clear
    end = race[race.step == race.steps].pivot(index="seed", columns="model", values="loss")
    at_end = effective_width({1: end["dense, 1×"], 2: end["dense, 2×"]}, end["MoE"])
    assert at_end.width > 2 and 1.5 < at_end.low < 2  # over the same steps


@pytest.mark.alone
@pytest.mark.claim("a-step-of-the-largest-takes-longest")
def test_a_step_of_the_largest_takes_longest():
    times: dict[str, list[float]] = {}
    runs = race_runs()
    with torch_threads(1):
        for _ in range(12):
            for name, run in runs.items():
                start = time.thread_time()
                run.step()
                times.setdefault(name, []).append(time.thread_time() - start)
    moe, _, large = map(median, times.values())
    assert large > 1.3 * moe  # its FLOPs: over 3 times as many


@pytest.mark.claim("its-quality-lies-in-between")
def test_its_quality_lies_in_between():
    """What is said of the six seeds together, and of single ones. Above the widest dense model the interval may be
    open; of D = 256 only the mean lies in between."""
    for d_model, found in width_over_size().iterrows():
        assert 1 < found.width < found.widest and (d_model == 256 or found.low > 1), d_model
    assert width_over_size().high[64] < 8
    assert width_over_size().low.max() < width_over_size().high.min()  # the intervals overlap
    dense, moe = size_losses(64)
    own = matched_widths.answer(list(dense), np.transpose(list(dense.values())).tolist(), moe.tolist())
    assert len(own) == 6 and max(own) > 4 * min(own)


@pytest.mark.claim("faster-than-the-equally-good-dense-model")
def test_faster_than_the_equally_good_dense_model():
    """By the roofline of lesson 04's models, at both ends of the interval too: faster, slower, and faster again, and
    the edges say about where."""
    sizes, batches = sizes_of(shape_of(decoders()["MoE"])), 2.0 ** np.arange(0, 13, 0.25)
    found = width_over_size().loc[64]
    for width in (found.low, found.width, found.high):
        for ridge, dtype, size in ((4, "float32", 4), (9, "float32", 4), (16, "float32", 4), (206, "bfloat16", 2)):
            over = speedups(sizes, Machine(1e10, ridge * 1e10), dtype, batches).at(np.array([width]))[:, 0]
            lower, upper = edges(16, 2, width, ridge, size)
            assert 1 <= lower < width + 4 and (size == 2) == (upper > 300 / width)
            assert width < 1.5 or over[0] > 1
            slower = batches[over < 1]
            assert lower / 2 < slower.min() < 2 * lower and upper / 2 < slower.max() < 2 * upper


def test_each_model_has_the_best_rate_between_one_below_and_one_above():
    for d_model in SIZES:
        tried = load_results(f"size_{d_model}_rates")
        loss = tried[tried.step == tried.steps].pivot(index="model", columns="lr", values="loss")
        for name, (rate,) in load_results(f"size_{d_model}").groupby("model").lr.unique().items():
            own = loss.loc[name].dropna()
            assert own.idxmin() == rate and own.index.min() < rate < own.index.max(), (d_model, name)


def test_each_router_has_the_best_of_three_rates():
    tried, used = load_results("source_rates"), load_results("source").groupby("model").lr.first()
    loss = tried[tried.step == 1000].pivot(index="model", columns="lr", values="loss")
    assert (loss.idxmin(axis=1) == used[loss.index]).all()


@pytest.mark.claim("where-a-learned-router-pays")
def test_where_a_learned_router_pays():
    source = load_results("source")
    for step in (2000, 3000, 4000):
        losses = source[source.step == step].pivot(index="seed", columns="model", values="loss")
        gain = losses.rsub(losses["dense, 1×"], axis=0)  # over the FLOP-matched baseline
        frozen, learned, table = (gain[name] for name in ("frozen router", "MoE", "hash routing"))
        assert (frozen.mean() > 0.5 * learned.mean()) and (frozen > 0.03).all()
        assert (learned - frozen).mean() > 0.02 and (learned - frozen > 0.005).all()
        assert (gain["no auxiliary loss"] - frozen).mean() < 0.5 * (learned - frozen).mean()
        assert step < 4000 or 0.6 < frozen.mean() / learned.mean() < 0.7
        assert (table - learned > 0.005).all() and (table > gain["dense, 8×"] + 0.005).all()
