"""What lesson 00 says under 'What to notice', measured as the lesson does it, over several seeds."""

from statistics import mean

import pytest
import torch

from moe_lessons.analysis.cost import count_parameters, flops_per_token
from moe_lessons.tasks import PRESETS, PlaneSetting
from moe_lessons.training import dead_experts, plane_runs

SEEDS = range(6)


def train(runs, steps: int):
    for _ in range(steps):
        for run in runs:
            run.step()


@pytest.fixture(scope="module")
def healthy():
    """For each seed the three runs of the first cell, after its 400 steps."""
    trained = [plane_runs(PRESETS["healthy"], seed) for seed in SEEDS]
    for runs in trained:
        train(runs.values(), 400)
    return trained


@pytest.mark.claim("healthy-keeps-every-expert")
def test_every_expert_keeps_work(healthy):
    for runs in healthy:
        recent = torch.tensor([record.load[0] for record in runs["MoE"].records[-20:]]).mean(dim=0)
        assert recent.min() > 0.02  # of an even share of 0.125


@pytest.mark.claim("moe-beats-its-same-active-twin")
def test_mixture_beats_its_same_active_twin(healthy):
    accuracy = {name: [runs[name].evaluate()["accuracy"] for runs in healthy] for name in healthy[0]}
    gaps = [a - b for a, b in zip(accuracy["MoE"], accuracy["dense, same active"], strict=True)]
    assert min(gaps) > 0 and mean(gaps) > 0.04
    models = {name: run.model for name, run in healthy[0].items()}
    ratio = count_parameters(models["MoE"]).total / count_parameters(models["dense, same active"]).total
    assert 3 < ratio < 3.5
    times = [{name: run.records for name, run in runs.items()} for runs in healthy]
    slower = [
        sum(r.ms_per_step for r in t["MoE"]) / sum(r.ms_per_step for r in t["dense, same active"]) for t in times
    ]
    assert min(slower) > 1.2


@pytest.fixture
def collapsed():
    """For each seed the mixture of experiment 1, after its 300 steps."""
    trained = [plane_runs(PRESETS["collapse"], seed)["MoE"] for seed in SEEDS]
    train(trained, 300)
    return trained


@pytest.mark.claim("some-experts-starve-never-all-but-one")
def test_some_experts_starve_never_all_but_one(collapsed):
    for run in collapsed:
        assert run.records[0].dead_experts == 0  # balanced at the start
        assert run.records[59].dead_experts >= 2  # within a few dozen steps
        assert 2 <= run.records[-1].dead_experts <= 5  # of 8: three or more go on


@pytest.mark.claim("collapse-hardly-costs-accuracy-here")
def test_collapse_hardly_costs_accuracy_here(collapsed):
    balanced = [plane_runs(PRESETS["rescued"], seed)["MoE"] for seed in SEEDS]
    train(balanced, 300)
    assert max(run.records[-1].dead_experts for run in balanced) == 0
    gap = mean(run.evaluate()["accuracy"] for run in balanced) - mean(run.evaluate()["accuracy"] for run in collapsed)
    assert abs(gap) < 0.03


@pytest.mark.claim("noise-does-not-revive-the-auxiliary-loss-does")
def test_noise_does_not_revive_the_auxiliary_loss_does(collapsed):
    before = [run.records[-1].dead_experts for run in collapsed]
    for run in collapsed:
        run.knobs.noise_std = 1.0
    train(collapsed, 300)
    noisy = [run.records[-1].dead_experts for run in collapsed]
    clean = [dead_experts(clean_routing(run)) for run in collapsed]
    for run in collapsed:
        run.knobs.noise_std, run.knobs.router_aux_loss_coef = 0.0, 1.0
    train(collapsed, 300)
    rescued = [run.records[-1].dead_experts for run in collapsed]
    assert all(after > dead / 2 for dead, after in zip(before, noisy, strict=True))
    assert mean(noisy) >= mean(before) - 0.5 and mean(clean) >= mean(before) - 0.5
    assert all(after <= dead / 2 for dead, after in zip(before, rescued, strict=True))
    assert mean(rescued) <= 0.5


@torch.no_grad()
def clean_routing(run):
    """How 1,024 new points are routed without noise."""
    x, _ = run.task.batch(1024, torch.Generator().manual_seed(99))
    _, (routing,) = run.model.eval()(x)
    run.model.train()
    return routing


@pytest.mark.claim("more-experts-at-the-same-work")
def test_more_experts_at_the_same_work():
    one, eight = (PlaneSetting(num_experts=n, top_k=1, router_aux_loss_coef=0.3) for n in (1, 8))
    gains = []
    for seed in SEEDS:
        runs = [plane_runs(setting, seed)["MoE"] for setting in (one, eight)]
        train(runs, 300)
        with_one, with_eight = (run.evaluate()["accuracy"] for run in runs)
        gains.append(with_eight - with_one)
    assert min(gains) > 0.25
    small, large = (run.model for run in runs)
    assert 4.5 < count_parameters(large).total / count_parameters(small).total < 5
    more = flops_per_token(large) - flops_per_token(small)
    assert more == 2 * 7 * large.block.router.d_model  # the router's seven new rows
    assert round(100 * more / flops_per_token(small)) == 30
