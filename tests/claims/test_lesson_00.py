"""What lesson 00 says under 'What to notice', measured as the lesson does it, over several seeds."""

from dataclasses import replace
from statistics import mean

import pytest
import torch

from moe_lessons.analysis.cost import count_parameters, flops_per_token
from moe_lessons.training import DEAD_SHARE, PRESETS, PlaneSetting, SeedBand, plane_model, plane_runs

SEEDS = range(6)
COLLAPSE = PRESETS["collapse"]


def trained(band: SeedBand, steps: int = 300) -> SeedBand:
    for _ in range(steps):
        band.step()
    return band


@pytest.fixture(scope="module")
def healthy():
    """For each seed the three runs of the first cell, after its 400 steps."""
    runs_by_seed = [plane_runs(PRESETS["healthy"], seed) for seed in SEEDS]
    for runs in runs_by_seed:
        for _ in range(400):
            for run in runs.values():
                run.step()
    return runs_by_seed


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
    slower = [sum(r.ms_per_step for r in t["MoE"]) / sum(r.ms_per_step for r in t["dense, same active"]) for t in times]
    assert min(slower) > 1.2


@pytest.fixture(scope="module")
def collapsed() -> SeedBand:
    """The mixture of experiment 1, after its 300 steps, from each seed."""
    return trained(SeedBand(COLLAPSE, SEEDS))


@pytest.mark.claim("some-experts-starve-never-all-but-one")
def test_some_experts_starve_never_all_but_one(collapsed):
    records = collapsed.records
    assert records[0].dead.max() == 0  # balanced at the start
    assert records[59].dead.min() >= 2  # within a few dozen steps
    assert records[-1].dead.min() >= 2 and records[-1].dead.max() <= 5  # of 8: three or more go on


@pytest.mark.claim("collapse-hardly-costs-accuracy-here")
def test_collapse_hardly_costs_accuracy_here(collapsed):
    balanced = trained(SeedBand(PRESETS["rescued"], SEEDS))
    assert balanced.records[-1].dead.max() == 0
    assert abs(balanced.evaluate()["accuracy"] - collapsed.evaluate()["accuracy"]) < 0.03


@pytest.mark.claim("noise-does-not-revive-the-auxiliary-loss-does")
def test_noise_does_not_revive_the_auxiliary_loss_does(collapsed):
    noisy = trained(collapsed.branch(replace(COLLAPSE, noise_std=1.0)))
    rescued = trained(noisy.branch(replace(COLLAPSE, router_aux_loss_coef=1.0)))
    before, with_noise, after = (band.records[-1].dead for band in (collapsed, noisy, rescued))
    clean = (noisy.clean_loads() < DEAD_SHARE).sum(axis=1)
    assert (with_noise > before / 2).all() and min(with_noise.mean(), clean.mean()) >= before.mean() - 0.5
    assert (after <= before / 2).all() and after.mean() <= 0.5


@pytest.mark.claim("more-experts-at-the-same-work")
def test_more_experts_at_the_same_work():
    one, eight = (PlaneSetting(num_experts=n, top_k=1, router_aux_loss_coef=0.3) for n in (1, 8))
    with_one, with_eight = (trained(SeedBand(setting, SEEDS)).evaluate()["accuracies"] for setting in (one, eight))
    assert (with_eight - with_one).min() > 0.25
    small, large = (plane_model(setting, 0)[0] for setting in (one, eight))
    assert 4.5 < count_parameters(large).total / count_parameters(small).total < 5
    more = flops_per_token(large) - flops_per_token(small)
    assert more == 2 * 7 * large.block.router.d_model  # the router's seven new rows
    assert round(100 * more / flops_per_token(small)) == 30
