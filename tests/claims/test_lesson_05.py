"""What lesson 05 says under 'What to notice', measured as the lesson does it, over several seeds."""

from dataclasses import replace
from functools import partial
from statistics import mean

import numpy as np
import pytest
import torch

from moe_lessons.analysis import load_statistics
from moe_lessons.analysis.collapse import make_alike, practise, score_pushes, watched_run
from moe_lessons.exercises.lesson_05 import NewRouter
from moe_lessons.nn import MoE, TopKRouter
from moe_lessons.training import PRESETS, SeedBand, train

COLLAPSE = PRESETS["collapse"]
SEEDS = range(6)


def trained(steps: int, seed: int, learns: str = "all", **kwargs):
    run = watched_run(COLLAPSE, seed, learns, **kwargs)
    train(run, steps)
    return run


def loads(run) -> np.ndarray:
    """(steps, E) the load shares."""
    return np.array([record.load[0] for record in run.records])


def rank_correlation(a, b) -> float:
    """Spearman's: 1 where the order is the same, -1 where it is the opposite."""
    return np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]


@pytest.fixture(scope="module")
def collapsed():
    return [trained(100, seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def band():
    """(steps, seeds, E): the loads of twenty collapses."""
    band = SeedBand(COLLAPSE, seeds=range(20))
    return np.array([band.step().loads for _ in range(100)])


@pytest.mark.claim("a-balanced-router-loses-experts")
def test_a_balanced_router_loses_experts(band):
    dead = (band < 0.01).sum(axis=2)  # (steps, seeds)
    assert band[0].min() > 0.04 and dead[0].max() == 0
    assert dead[24].min() >= 2 and dead[24].mean() >= 2.7
    assert dead[99].min() >= 2 and dead.max() <= 5
    moved = [np.abs(band[to] - band[at]).sum(axis=1).mean() / 2 for at, to in ((0, 9), (49, 58))]
    assert moved[0] > 2 * moved[1]  # of the tokens: the first ten steps and ten later ones
    died = band[40:60].mean(axis=0) < 0.01  # (seeds, E)
    assert 0.35 < (band[0][died] > 1 / 8).mean() < 0.6  # about half of them began above the even share


@pytest.mark.claim("imbalance-costs-time")
def test_imbalance_costs_time(band):
    busiest = 8 * band.max(axis=2)  # (steps, seeds): over the mean of eight devices
    assert 1.15 < busiest[0].mean() < 1.45 and 2.2 < busiest[20:30].mean() < 2.8
    assert busiest[20:30].mean(axis=0).min() > 1.9
    assert 1 - 1 / busiest[20:30].mean() > 0.52  # the share of the hardware's time that is waited


@pytest.mark.claim("no-token-no-gradient")
def test_no_token_no_gradient(collapsed):
    for run in collapsed:
        load, gradient = loads(run), np.array(run.expert_gradients)
        assert (load == 0).any() and (gradient[load == 0] == 0).all() and (gradient[load > 0] > 0).all()
        alive = [rank_correlation(a[a > 0.01], b[a > 0.01]) for a, b in zip(load[:25], gradient[:25], strict=True)]
        assert mean(alive) > 0.25  # not only because the dead have neither


def test_more_gradient_is_no_longer_step():
    """The second half of the claim above: Adam."""
    busy, idle = [], []  # of the busiest expert, and of the least busy that is alive: tokens, gradient, step
    for seed in SEEDS:
        run = watched_run(COLLAPSE, seed)
        for _ in range(25):
            before = run.model.block.experts.down_proj.detach().clone()
            run.step()
            moved = (run.model.block.experts.down_proj.detach() - before).flatten(1).norm(dim=1).numpy()
            load = loads(run)[-1]
            three = np.array([load, run.expert_gradients[-1], moved])  # (3, E)
            busy.append(three[:, load.argmax()])
            idle.append(three[:, np.where(load < 0.01, 1, load).argmin()])
    tokens, gradient, step = np.mean(busy, axis=0) / np.mean(idle, axis=0)
    assert tokens > 2 and gradient > 2 and 0.85 < step < 1.2


@pytest.mark.claim("practice-wins")
def test_practice_wins():
    died, without, after = [], [], []
    for seed in range(5):
        plain = loads(trained(60, seed))[-20:].mean(axis=0)
        died.extend(plain < 0.01)
        for expert in range(0, 8, 2):
            run = watched_run(COLLAPSE, seed)
            practise(run, expert)
            train(run, 60)
            without.append(plain[expert])
            after.append(loads(run)[-20:, expert].mean())
    assert 1.7 * mean(without) < mean(after) < 2.6 * mean(without)
    assert np.mean(died) > 1 / 3 and (np.array(after) < 0.01).mean() < 0.1


@pytest.mark.claim("the-router-alone-collapses")
def test_the_router_alone_collapses():
    late = {"all": [], "router only": [], "alike": []}
    for seed in range(10):
        for name, values in late.items():
            run = watched_run(COLLAPSE, seed, "all" if name == "all" else "router only")
            if name == "alike":
                make_alike(run.model.block.experts)
            kept = [weight.clone() for weight in run.model.block.experts.parameters()]
            train(run, 60)
            if name != "all":
                assert all(torch.equal(a, b) for a, b in zip(kept, run.model.block.experts.parameters(), strict=True))
            values.append(mean(record.dead_experts for record in run.records[-20:]))
    assert 2.6 < mean(late["all"]) < 3.6 < mean(late["router only"]) < 4.6
    more = np.array(late["router only"]) - late["all"]
    assert more.mean() > 0.4 and more.mean() > 2 * more.std(ddof=1) / 10**0.5
    assert min(late["alike"]) >= 2 and mean(late["alike"]) > 2.7
    for seed in SEEDS:
        assert max(record.dead_experts for record in trained(100, seed, "experts only").records) == 0


@pytest.mark.claim("own-tokens-push-up-the-others-down")
def test_own_tokens_push_up_the_others_down():
    up, down, favour, rise = [], [], [], []
    for seed in range(8):
        run = trained(2, seed)
        own, others = score_pushes(run)
        up.append((own[own != 0] > 0).mean())
        down.append((others < 0).mean())
        favour.append(rank_correlation(loads(run)[1], own + others))
        train(run, 3)
        change = loads(run)[2:] - loads(run)[1]  # after one, two and three steps
        rise.append([rank_correlation(loads(run)[1], change[0]), *(rank_correlation(own + others, c) for c in change)])
    assert mean(up) > 0.85 and mean(down) > 0.95
    assert mean(favour) > 0.35  # an expert with more tokens is pushed up more
    assert np.mean(rise, axis=0).min() > 0.2 and np.mean(rise, axis=0)[-1] > 0.5  # and then has more


@pytest.mark.claim("ten-steps-decide")
def test_ten_steps_decide(band):
    end = band[40:60].mean(axis=0)  # (seeds, E)
    dies = end < 0.01
    assert abs(band[0][dies].mean() - band[0][~dies].mean()) < 0.01  # at step 1: the same share, on average
    assert abs(mean(rank_correlation(a, b) for a, b in zip(band[0], end, strict=True))) < 0.2
    settled = [a[b].max() < a[~b].min() for a, b in zip(band[9], dies, strict=True)]
    assert np.mean(settled) > 0.85  # at step 10 those that die are below all that live
    living = [rank_correlation(a[~b], c[~b]) for a, b, c in zip(band[9], dies, end, strict=True)]
    assert 0.2 < mean(living) < 0.8  # whose shares agree in part


def test_territory_and_weights_together_make_the_winners(band):
    """With the same territories and the experts' weights passed on by one, others win: neither the same experts nor
    the same weights."""
    places, weights = [], []
    for seed in range(10):
        run = watched_run(COLLAPSE, seed)
        with torch.no_grad():
            for weight in run.model.block.experts.parameters():
                weight.copy_(weight.roll(1, dims=0))
        train(run, 60)
        before, after = band[40:60, seed].mean(axis=0), loads(run)[40:].mean(axis=0)
        places.append(rank_correlation(before, after))
        weights.append(rank_correlation(np.roll(before, 1), after))
    assert mean(places) < 0.65 and mean(weights) < 0.4


@pytest.mark.claim("born-dead")
def test_born_dead():
    def dead(run) -> int:
        x, _ = run.task.batch(2048, torch.Generator().manual_seed(1))
        with torch.no_grad():
            return load_statistics(run.model(x)[1][0]).dead

    random = replace(COLLAPSE, router_start="random")
    one = [dead(watched_run(random, seed)) for seed in range(100)]
    two = [dead(watched_run(replace(random, top_k=2), seed)) for seed in range(100)]
    assert min(one) >= 1 and 2.6 < mean(one) < 3.4
    assert 0.8 < mean(two) < 1.6
    assert max(dead(watched_run(COLLAPSE, seed)) for seed in range(10)) == 0
    torch.manual_seed(0)
    assert max(load_statistics(TopKRouter(64, 8, 1)(torch.randn(2048, 64))).dead for _ in range(100)) == 0


@pytest.mark.claim("collapse-costs-where-experts-are-scarce")
def test_collapse_costs_where_experts_are_scarce():
    settings = COLLAPSE, replace(COLLAPSE, router_aux_loss_coef=1.0), replace(COLLAPSE, num_experts=4)
    gap, four_experts = {}, {}  # mean of the seeds of the difference to the collapsed one, on the same data
    for d_ff, seeds in ((8, range(8)), (2, range(24))):
        bands = [SeedBand(replace(setting, d_ff=d_ff), seeds) for setting in settings]
        for band in bands:
            train(band, 300)
        assert bands[0].records[-1].dead.min() >= 1 and bands[1].records[-1].dead.max() == 0
        collapsed, balanced, four = (band.evaluate(2048)["accuracies"] for band in bands)
        gap[d_ff], four_experts[d_ff] = balanced - collapsed, four - collapsed  # (seeds,)
    assert abs(gap[8].mean()) < 0.01 and abs(four_experts[8].mean()) < 0.01
    assert 0.02 < gap[2].mean() < 0.05 and gap[2].mean() > 2 * gap[2].std(ddof=1) / 24**0.5
    assert abs(four_experts[2].mean()) < gap[2].mean() / 2 and (balanced - four).mean() > 0.02


@pytest.mark.claim("a-router-that-learns-nothing-looks-healthy")
def test_a_router_that_learns_nothing_looks_healthy():
    gaps, new_block = [], partial(MoE, router=NewRouter)
    for seed in range(5):
        start = watched_run(COLLAPSE, seed, block=new_block).model.block.router.weight
        suspect, ours = trained(200, seed, block=new_block), trained(200, seed)
        assert np.max(suspect.router_gradients) == 0 and torch.equal(suspect.model.block.router.weight, start)
        assert np.max(ours.router_gradients) > 0.01
        assert suspect.records[-1].loss < suspect.records[0].loss / 2
        assert suspect.records[-1].dead_experts == 0 and ours.records[-1].dead_experts >= 2
        gaps.append(suspect.evaluate()["accuracy"] - ours.evaluate()["accuracy"])
    assert min(gaps) > -0.05 and mean(gaps) > -0.02
