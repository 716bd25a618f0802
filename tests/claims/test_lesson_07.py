"""What lesson 07 says under 'What to notice', measured as the lesson does it, over several seeds."""

from dataclasses import replace
from itertools import product
from statistics import mean

import numpy as np
import pytest
import torch
from everywhere import seeds
from torch.nn import functional as F

from moe_lessons.analysis import load_statistics
from moe_lessons.analysis.collapse import (
    GRADIENTS,
    NUM_POINTS,
    band_of,
    cut_gradient,
    let_learn,
    practise,
    watched_run,
    weight_gradients,
)
from moe_lessons.analysis.results import dead_over_steps, last_of, load_collapse_map, load_results
from moe_lessons.nn import Routing, TopKRouter, seeded
from moe_lessons.tasks import PlaneTask
from moe_lessons.training import PRESETS, Run, SeedBand, train

COLLAPSE = PRESETS["collapse"]
SEEDS = seeds(6)


def trained(steps: int, seed: int, learns: str = "all", **kwargs):
    run = watched_run(COLLAPSE, seed, learns, **kwargs)
    train(run, steps)
    return run


def loads(run) -> np.ndarray:
    """Return the load shares of each step: (steps, E)."""
    return np.array([record.load[0] for record in run.records])


def dead_at(loads, step: int) -> np.ndarray:
    """Say which experts are dead after a step, by the mean of 20 steps: (steps, S, E) -> (S, E)."""
    return loads[step - 20 : step].mean(axis=0) < 0.01


def raised(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return minus the gradient of the task's loss on each logit, on held-out points, summed over the tokens that chose
    the expert (E,), and over all others (E,). Its noise is the same each time."""
    x, y = run.held_out(NUM_POINTS)
    with seeded(run.seed):
        logits, (routing,) = run.model(x)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y), routing.router_logits)  # (T, E)
    is_own = torch.zeros_like(gradient)
    is_own[routing.token_idx, routing.expert_idx] = 1  # (T, E)
    own, others = -(gradient * is_own).sum(dim=0), -(gradient * (1 - is_own)).sum(dim=0)
    return own.cpu().numpy(), others.cpu().numpy()


def give_others_random_signs(router: TopKRouter, args: tuple, routing: Routing) -> None:
    """Multiply the gradient on each expert's logit from tokens that did not choose it by 1 or −1, anew at each step."""
    own = torch.zeros_like(routing.router_logits)  # (T, E)
    own[routing.token_idx, routing.expert_idx] = 1
    signs = own + (1 - own) * (2 * torch.randint(2, own.shape[1:]) - 1)
    if routing.router_logits.requires_grad:
        routing.router_logits.register_hook(lambda gradient: gradient * signs)


def run_of(band, steps: int) -> np.ndarray:
    """Train a band and return its loads: (steps, S, E)."""
    return np.array([band.step().loads for _ in range(steps)])


@pytest.fixture(scope="module")
def cases() -> dict:
    """The loads of twenty collapses for what learns and by which gradient, (steps, seeds, E): with both terms twice as
    long as in the lesson. And the accuracy of each."""
    found, accuracies = {}, {}
    for case in product(("all", "router only"), GRADIENTS):
        band = SeedBand(COLLAPSE, seeds(20))
        let_learn(band.model, case[0])
        cut_gradient(band.model, case[1])
        found[case] = run_of(band, 600 if case[1] == "both terms" else 300)
        accuracies[case] = band.evaluate()["accuracy"]
    return found | {"accuracy": accuracies}


@pytest.fixture(scope="module")
def band(cases):
    return cases["all", "both terms"]


@pytest.mark.claim("a-balanced-router-loses-experts")
def test_a_balanced_router_loses_experts(band):
    dead = (band < 0.01).sum(axis=2)  # (steps, seeds)
    assert band[0].min() > 0.04 and dead[0].max() == 0
    for step in (300, 600):
        each = dead_at(band, step).sum(axis=1)
        assert each.min() >= 1 and each.max() <= 6 and 3 < each.mean() < 4.2
        assert dead[5:25].mean() > 0.6 * each.mean()  # most of them within 25 steps
        assert dead_at(band, step)[dead_at(band, 40)].mean() > 0.9  # and they stay
        assert (band[20] < 0.01)[dead_at(band, step)].mean() > 0.6  # most of those that die


@pytest.mark.claim("imbalance-costs-time")
def test_imbalance_costs_time(band):
    busiest = 8 * band.max(axis=2)  # (steps, seeds): over the mean of eight devices
    assert 1.15 < busiest[0].mean() < 1.45
    for end in (45, 100, 300, 600):
        assert 2.1 < busiest[end - 20 : end].mean() < 3


class NextClass(PlaneTask):
    """The task with wrong labels: each class is taken for the next one."""

    def batch(self, num_points: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = super().batch(num_points, generator)
        return x, (y + 1) % 8


@pytest.mark.claim("practice-wins")
def test_practice_wins():
    died, without, after, after_wrong = [], [], [], []
    for seed in seeds(5):
        plain = loads(trained(200, seed))[-20:].mean(axis=0)
        died.extend(plain < 0.01)
        for expert in range(0, 8, 2):
            run = watched_run(COLLAPSE, seed)
            practise(run, expert)
            train(run, 200)
            without.append(plain[expert])
            after.append(loads(run)[-20:, expert].mean())
            run = watched_run(COLLAPSE, seed)
            task, run.task = run.task, NextClass(run.task.name, run.task.seed)
            practise(run, expert)
            run.task = task
            train(run, 200)
            after_wrong.append(loads(run)[-20:, expert].mean())
    assert mean(after_wrong) < 1.2 * mean(without) and mean(after) > 1.5 * mean(after_wrong)
    assert 1.5 * mean(without) < mean(after) < 2.6 * mean(without)
    assert np.mean(died) > 1 / 3 and (np.array(after) < 0.01).mean() < 0.2


@pytest.mark.claim("the-router-alone-collapses")
def test_the_router_alone_collapses_and_has_learned_nearly_nothing(cases):
    for step in (300, 600):
        assert 2.9 < dead_at(cases["router only", "both terms"], step).sum(axis=1).mean() < 4.4
    assert cases["accuracy"]["router only", "both terms"] < 0.25 and cases["accuracy"]["all", "both terms"] > 0.85
    still = SeedBand(COLLAPSE, seeds(10))
    let_learn(still.model, "all but the router")
    assert dead_at(run_of(still, 300), 300).sum(axis=1).mean() < 0.6


@pytest.mark.claim("no-single-gradient-is-needed")
def test_no_single_gradient_is_needed(cases):
    dead = {case: dead_at(cases[case], 300).sum(axis=1).mean() for case in product(("all", "router only"), GRADIENTS)}
    assert min(dead.values()) > 1.5 and max(dead.values()) < 4.7
    assert 0.3 < dead["all", "both terms"] - dead["all", "own tokens"] < 2.2
    assert dead["router only", "own tokens"] > 2.6 and dead["router only", "both terms"] > 2.9
    for learns in ("all", "router only"):
        assert dead[learns, "others only"] > dead[learns, "both terms"] - 0.4
    plain, noisy = SeedBand(COLLAPSE, seeds(40)), SeedBand(COLLAPSE, seeds(40))
    cut_gradient(plain.model, "own tokens")
    for router in noisy.model.block.router.routers:
        router.register_forward_hook(give_others_random_signs)
    torch.manual_seed(seeds(1)[0])
    counts = [dead_at(run_of(each, 300), 300).sum(axis=1) for each in (noisy, plain)]
    more = counts[0] - counts[1]  # of each seed
    assert more.std(ddof=1) / 40**0.5 < more.mean() < 1.2 and counts[0].mean() < dead["all", "both terms"]


@pytest.mark.claim("no-token-no-gradient")
def test_no_token_no_gradient():
    for seed in SEEDS:
        run = trained(100, seed)
        load, gradient = loads(run), np.array(run.expert_gradients)
        assert (load == 0).any() and (gradient[load == 0] == 0).all() and (gradient[load > 0] > 0).all()


@pytest.mark.claim("own-tokens-raise-the-logit-others-lower-it")
def test_own_tokens_raise_the_logit_and_others_lower_it_for_some_ten_steps():
    runs = [watched_run(COLLAPSE, seed) for seed in seeds(20)]
    for step, about, within in ((0, 0.5, 0.4), (2, 0.97, 0.07), (10, 0.77, 0.2), (20, 0.5, 0.2)):
        train(runs, step - len(runs[0].records)) if step else None
        own, others = np.array([raised(run) for run in runs]).transpose(1, 0, 2)  # (seeds, E)
        for share in ((own[own != 0] > 0).mean(), (others < 0).mean()):
            assert abs(share - about) < within, (step, share)


@pytest.mark.claim("the-first-gradient-tells-who-dies")
def test_the_first_gradient_tells_who_dies_and_the_load_hardly_does(cases):
    """In how many pairs of an expert that dies and one that does not the first one has less; .5: by chance."""

    def lower(values: np.ndarray, dies: np.ndarray) -> float:
        return (values[dies][:, None] < values[~dies]).mean()

    def runs_of(setting) -> tuple[np.ndarray, np.ndarray]:
        runs = [watched_run(setting, seed) for seed in seeds(20)]
        load = [np.bincount(weight_gradients(run)[1], minlength=8) for run in runs]
        return np.array([sum(raised(run)) for run in runs]), np.array(load)  # each (seeds, E)

    raises, load = runs_of(COLLAPSE)
    for learns in ("all", "router only"):
        for step in (100, 300, 600):
            dies = dead_at(cases[learns, "both terms"], step)
            told, told_by_load = lower(raises, dies), lower(load, dies)
            assert told > 0.72 and told > told_by_load + 0.1 and told_by_load < 0.7
    random = replace(COLLAPSE, router_start="random")  # its load is not uniform
    dies = dead_at(run_of(SeedBand(random, seeds(20)), 300), 300)
    raises, load = runs_of(random)
    assert lower(load, dies) > max(0.7, lower(raises, dies) - 0.05)
    slower = replace(COLLAPSE, lr=0.003)
    dies = dead_at(run_of(SeedBand(slower, seeds(20)), 300), 300)
    raises, load = runs_of(slower)
    assert lower(raises, dies) > 0.7 and lower(raises, dies) > lower(load, dies) + 0.1


@pytest.mark.claim("what-decides")
def test_what_decides():
    cells = load_collapse_map()

    def dead(start: str, step: int, *weights: str) -> np.ndarray:
        """Return the mean of ten seeds for each weight and, by rising rate, each rate: (weights · rates,)."""
        rows = cells[(cells.start == start) & (cells.step == step) & cells.weights.isin(weights)]
        return rows.sort_values("lr").dead.to_numpy(float)

    one, two = ("K = 1, p",), ("K = 2, p", "K = 2, p / sum")
    for step in (300, 600):
        flat, sharp = dead("soft spread", step, *one), dead("spread", step, *one)
        assert flat.min() > 3.2 and flat.max() < 4 and sharp.max() < 1.8 and 0.5 < sharp.mean() < 1.4
        pairs = [*dead("soft spread", step, *two), *dead("random", step, *two)]
        assert 1.2 < min(pairs) < max(pairs) < 3 and dead("spread", step, *two).max() < 0.6
        assert step < 600 or min(pairs) > 1.5
        still = dead("soft spread", step, "K = 1, p / sum"), dead("random", step, "K = 1, p / sum")
        assert still[0].max() < 0.5 and 2.5 < still[1].min() < still[1].max() < 3.6  # alive or dead, as they began
    others = band_of(replace(COLLAPSE, router_start="spread"), False, seeds(10, first=10))
    assert dead_at(run_of(others, 300), 300).sum(axis=1).mean() < 2  # other seeds than the stored
    for start, p in (("soft spread", 0.3), ("spread", 0.61)):
        runs = [watched_run(replace(COLLAPSE, router_start=start), seed) for seed in SEEDS]
        assert abs(torch.cat([weight_gradients(run)[0].max(dim=1).values for run in runs]).mean() - p) < 0.05


@pytest.mark.claim("collapse-in-a-language-model")
def test_collapse_in_a_language_model():
    runs = load_results("source_dead")
    runs["all"] = [sum(map(len, dead)) for dead in runs.dead]
    dead, loss = (runs.pivot(index="step", columns=["model", "seed"], values=name) for name in ("all", "loss"))
    assert dead.shape == (40, 12)
    steps, counts = dead_over_steps("source_dead")  # what the lesson draws
    assert steps == list(dead.index) and all((counts[name].T == dead[name]).all(axis=None) for name in counts)
    one, two = dead["top-1"], dead["top-2"]
    assert one.loc[1000].min() >= 6 and two.loc[1000].between(2, 5).all()
    assert one.loc[1000].max() == 13
    for name in ("top-1", "top-2"):  # some are revived, and others die
        who = runs[runs.model == name].set_index(["seed", "step"]).dead
        pairs = [(who[seed, 100][i], who[seed, 1000][i]) for seed in one.columns for i in range(3)]
        assert sum(len({*early} - {*late}) for early, late in pairs) >= 3
        assert sum(len({*late} - {*early}) for early, late in pairs) >= 3
    for name in ("top-1", "top-2"):
        assert (dead[f"{name}, auxiliary loss"].loc[300:] <= 1).all(axis=None)
    more = {name: (loss[name] - loss[f"{name}, auxiliary loss"]).loc[1000].mean() for name in ("top-1", "top-2")}
    assert abs(more["top-1"]) < 0.006 and 0.005 < more["top-2"] < 0.02
    loss = last_of("source_dead")
    higher = (loss["top-2"] - loss["top-2, auxiliary loss"]).round(3)
    assert (higher.min(), higher.max()) == (0.003, 0.021) and (loss["top-1"] < loss["top-1, auxiliary loss"]).any()
    loss = load_results("source").pivot(index="seed", columns=["step", "model"], values="loss")
    for step in (1000, 4000):
        cost, gain = (loss[step][name] - loss[step]["MoE"] for name in ("no auxiliary loss", "dense, 1×"))
        assert cost.mean() == pytest.approx(0.02, abs=0.005)
    assert cost.round(3).min() == -0.003 and cost.round(3).max() == 0.045
    assert 0.2 < cost.mean() / gain.mean() < 0.3


@pytest.mark.claim("dead-at-initialisation")
def test_dead_at_initialisation():
    def dead(run) -> int:
        x, _ = run.task.batch(2048, torch.Generator().manual_seed(1))
        with torch.no_grad():
            return load_statistics(run.model(x)[1][0]).dead

    random = replace(COLLAPSE, router_start="random")
    one = [dead(watched_run(random, seed)) for seed in seeds(100)]
    two = [dead(watched_run(replace(random, top_k=2), seed)) for seed in seeds(100)]
    assert mean(number >= 1 for number in one) > 0.95 and 2.6 < mean(one) < 3.4
    assert 0.8 < mean(two) < 1.6
    assert max(dead(watched_run(COLLAPSE, seed)) for seed in seeds(10)) == 0
    torch.manual_seed(seeds(1)[0])
    few, many = ([load_statistics(TopKRouter(d, 8, 1)(torch.randn(2048, d))).dead for _ in range(100)] for d in (2, 64))
    assert 2 < mean(few) < 3.5 and max(many) == 0


@pytest.mark.claim("a-router-that-learns-nothing-looks-healthy")
def test_a_router_that_learns_nothing_looks_healthy():
    still, ours = (band_of(COLLAPSE, divided, seeds(12)) for divided in (True, False))
    dead = run_of(still, 600)[-20:] < 0.01
    assert dead.sum(axis=2).mean() < 0.8 and (run_of(ours, 600)[-20:] < 0.01).sum(axis=2).mean() > 2.5
    router = TopKRouter(16, 8, 1, norm_topk_prob=True).double()  # the gradient that is left out is 0
    (router(torch.randn(64, 16).double()).weight * torch.randn(64)).sum().backward()
    assert router.weight.grad.abs().max() < 1e-14
    gaps = still.evaluate()["accuracies"] - ours.evaluate()["accuracies"]
    assert abs(gaps.mean()) < 0.03
