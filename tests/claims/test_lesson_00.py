"""What lesson 00 says under 'What to notice', measured as the lesson does it, over several seeds."""

from dataclasses import replace
from statistics import mean, median

import pytest
import torch

from moe_lessons.analysis import count_parameters, decode_speed, flops_per_token
from moe_lessons.nn import EQUAL_ACTIVE, EQUAL_TOTAL, LanguageModel, TransformerConfig, seeded
from moe_lessons.training import DEAD_SHARE, PRESETS, PlaneSetting, SeedBand, plane_model, plane_runs, train

SEEDS = range(6)
COLLAPSE = PRESETS["collapse"]


def trained(band: SeedBand, steps: int = 300) -> SeedBand:
    train(band, steps)
    return band


@pytest.fixture(scope="module")
def healthy():
    """For each seed the three runs of the first cell, after its 400 steps."""
    runs_by_seed = [plane_runs(PRESETS["healthy"], seed) for seed in SEEDS]
    for runs in runs_by_seed:
        train(runs.values(), 400)
    return runs_by_seed


@pytest.mark.claim("healthy-keeps-every-expert")
def test_every_expert_keeps_work(healthy):
    for runs in healthy:
        recent = torch.tensor([record.load[0] for record in runs["MoE"].records[-20:]]).mean(dim=0)
        assert recent.min() > 0.02  # of an even share of 0.125


@pytest.mark.claim("moe-beats-its-equal-active-twin")
def test_mixture_beats_its_same_active_twin(healthy):
    accuracy = {name: [runs[name].evaluate()["accuracy"] for runs in healthy] for name in healthy[0]}
    gaps = [a - b for a, b in zip(accuracy["MoE"], accuracy[EQUAL_ACTIVE], strict=True)]
    assert min(gaps) > 0 and mean(gaps) > 0.04
    mixture, active = healthy[0]["MoE"].model, healthy[0][EQUAL_ACTIVE].model
    assert 3 < count_parameters(mixture).total / count_parameters(active).total < 3.5
    assert 1.2 < flops_per_token(mixture) / flops_per_token(active) < 1.3


@pytest.mark.claim("as-good-as-its-equal-total-twin")
def test_as_good_as_its_equal_total_twin(healthy):
    accuracy = {name: mean(runs[name].evaluate()["accuracy"] for runs in healthy) for name in healthy[0]}
    assert abs(accuracy["MoE"] - accuracy[EQUAL_TOTAL]) < 0.02 < 0.04 < accuracy["MoE"] - accuracy[EQUAL_ACTIVE]
    ratio = flops_per_token(healthy[0][EQUAL_TOTAL].model) / flops_per_token(healthy[0]["MoE"].model)
    assert round(ratio, 1) == 2.5


@pytest.mark.alone
@pytest.mark.claim("faster-than-the-one-in-between")
def test_faster_than_the_one_in_between():
    sizes = {"d_model": 512, "num_layers": 2, "num_heads": 8, "num_kv_heads": 4}
    widths = {EQUAL_ACTIVE: 2048, "text": 3072, "facts": 6144, EQUAL_TOTAL: 16384}
    experts = {"num_experts": 16, "top_k": 2}
    speeds = []
    for seed in range(3):
        with seeded(seed):
            models = {"MoE": LanguageModel(TransformerConfig(**sizes, d_ff=1024, **experts))}
            dense = {n: LanguageModel(TransformerConfig(**sizes, d_ff=w, moe_layers=())) for n, w in widths.items()}
        speeds.append(decode_speed(models | dense, (1,), num_tokens=3, repeats=9).set_index("model").tokens_per_second)
    times = {name: median(speed["MoE"] / speed[name] for speed in speeds) for name in widths}
    assert times["facts"] > 1.3 and times[EQUAL_TOTAL] > 2 and times[EQUAL_ACTIVE] < 1
    assert times[EQUAL_ACTIVE] < times["text"] < 1.2 and times["facts"] > 1.25 * times["text"]
    active, *between, total = (count_parameters(dense[name]).total for name in widths)
    mixture = count_parameters(models["MoE"])
    assert mixture.total == pytest.approx(total, rel=0.001) and mixture.active == pytest.approx(active, rel=0.01)
    assert active < between[0] < between[1] < total


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


@pytest.mark.claim("noise-helps-from-the-start-as-little")
def test_noise_helps_from_the_start_as_little(collapsed):
    dead = (collapsed.clean_loads() < DEAD_SHARE).sum(axis=1)
    for std in (1.0, 5.0, 10.0):
        noisy = trained(SeedBand(replace(COLLAPSE, noise_std=std), SEEDS))
        clean = (noisy.clean_loads() < DEAD_SHARE).sum(axis=1)
        assert clean.mean() >= dead.mean() and clean.min() >= 2
    assert noisy.records[-1].dead.max() == 0  # strong noise spreads the tokens while it is on
    assert noisy.evaluate()["accuracy"] < collapsed.evaluate()["accuracy"] - 0.05


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
