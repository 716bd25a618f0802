"""What lesson 00 says under 'What to notice', measured as the lesson does it, over several seeds."""

from copy import deepcopy
from dataclasses import replace
from statistics import mean, median

import numpy as np
import pytest
import torch
from everywhere import seeds

from moe_lessons.analysis import count_parameters, decode_speed, flops_per_token
from moe_lessons.analysis.quality import quality_matched_width
from moe_lessons.nn import SAME_ACTIVE, SAME_TOTAL, LanguageModel, TransformerConfig, seeded
from moe_lessons.training import PRESETS, PlaneSetting, SeedBand, plane_runs, train

SEEDS = seeds(6)
MANY_SEEDS = [*seeds(10), *seeds(10, first=100)]
COLLAPSE = PlaneSetting(top_k=1, router_aux_loss_coef=0.0, router_start="soft spread")


@pytest.fixture(scope="module")
def healthy():
    """For each seed the three runs of the first cell, after its 200 steps."""
    runs_by_seed = [plane_runs(PRESETS["healthy"], seed) for seed in SEEDS]
    for runs in runs_by_seed:
        train(runs.values(), 200)
    return runs_by_seed


@pytest.fixture(scope="module")
def healthy_later(healthy):
    """Copies of the mixture and its FLOP-matched baseline, trained on to 400 steps."""
    runs_by_seed = [{name: deepcopy(runs[name]) for name in ("MoE", SAME_ACTIVE)} for runs in healthy]
    for runs in runs_by_seed:
        train(runs.values(), 200)
    return runs_by_seed


@pytest.mark.claim("healthy-keeps-every-expert")
def test_every_expert_keeps_work(healthy):
    records = [[record.load[0] for record in runs["MoE"].records[-20:]] for runs in healthy]
    recent = torch.tensor(records).mean(dim=1)  # (seeds, E); an even share is .125
    assert (recent > 0.01).float().mean() > 0.95 and (recent > 0.01).sum(dim=1).min() >= 7
    first = torch.tensor([runs["MoE"].records[0].load[0] for runs in healthy])
    assert (first < 0.01).any(dim=1).float().mean() > 0.3  # torch's own start leaves some with hardly any


@pytest.mark.claim("moe-beats-its-flop-matched-baseline")
def test_mixture_beats_its_same_active_baseline(healthy, healthy_later):
    means = []
    for runs_by_seed in (healthy, healthy_later):
        gaps = [runs["MoE"].evaluate()["accuracy"] - runs[SAME_ACTIVE].evaluate()["accuracy"] for runs in runs_by_seed]
        assert mean(gaps) > 0.04 and sum(gap > 0 for gap in gaps) >= 5  # of 6
        means.append(mean(gaps))
    assert means[0] > means[1]
    mixture, active = healthy[0]["MoE"].model, healthy[0][SAME_ACTIVE].model
    assert 3 < count_parameters(mixture).total / count_parameters(active).total < 3.5
    assert 1.2 < flops_per_token(mixture) / flops_per_token(active) < 1.3


@pytest.mark.claim("as-good-as-its-parameter-matched-baseline")
def test_as_good_as_its_equal_total_baseline(healthy):
    accuracy = {name: mean(runs[name].evaluate()["accuracy"] for runs in healthy) for name in healthy[0]}
    assert abs(accuracy["MoE"] - accuracy[SAME_TOTAL]) < (accuracy["MoE"] - accuracy[SAME_ACTIVE]) / 2
    ratio = flops_per_token(healthy[0][SAME_TOTAL].model) / flops_per_token(healthy[0]["MoE"].model)
    assert round(ratio, 1) == 2.5


@pytest.mark.alone
@pytest.mark.claim("faster-than-the-one-in-between")
def test_faster_than_the_one_in_between():
    sizes = {"d_model": 512, "num_layers": 2, "num_heads": 8, "num_kv_heads": 4}
    widths = {width: width * 2048 for width in (1, 4, 8)}  # in multiples of the active width
    experts = {"num_experts": 16, "top_k": 2}
    speeds = []
    for seed in seeds(3):
        with seeded(seed):
            models = {"MoE": LanguageModel(TransformerConfig(**sizes, d_ff=1024, **experts))}
            dense = {n: LanguageModel(TransformerConfig(**sizes, d_ff=w, moe_layers=())) for n, w in widths.items()}
        speeds.append(decode_speed(models | dense, (1,), num_tokens=3, repeats=9).set_index("model").tokens_per_second)
    times = {name: median(speed["MoE"] / speed[name] for speed in speeds) for name in widths}
    assert 1 < times[4] < times[8] and times[1] < times[4]  # as the bytes say: 1, 3.4 and 6.5
    active, between, total = (count_parameters(dense[name]).total for name in widths)
    mixture = count_parameters(models["MoE"])
    assert mixture.total == pytest.approx(total, rel=0.001) and mixture.active == pytest.approx(active, rel=0.01)
    assert active < between < total
    found = quality_matched_width("facts", 16)  # what the lesson prints
    assert 3 < found.low < found.width < found.high < 7


@pytest.mark.claim("some-experts-starve-never-all-but-one")
def test_some_experts_starve_never_all_but_one():
    """Section 3, after three times its 200 steps, from each of the 20 seeds that the lesson names."""
    band = SeedBand(COLLAPSE, MANY_SEEDS)
    train(band, 600)
    records = band.records
    assert records[0].dead.max() == 0  # an even share at the start
    assert (records[9].dead >= 1).mean() > 0.8  # within ten steps
    for step in (200, 600):
        dead = records[step - 1].dead  # (seeds,) of 8
        assert ((dead >= 2) & (dead <= 4)).mean() > 0.8 and dead.max() < 7
    starved = records[9].loads < 0.01  # (seeds, E)
    back = starved & (np.mean([record.loads for record in records[180:200]], axis=0) > 0.01)
    assert back.any(axis=1).sum() >= 3 and back.sum() < 0.4 * starved.sum()  # some return, most do not


@pytest.mark.claim("the-auxiliary-loss-keeps-them")
def test_the_auxiliary_loss_keeps_them():
    """The control of section 3: from the same start, with the same top-k, and the coefficient of section 1."""
    band = SeedBand(replace(COLLAPSE, router_aux_loss_coef=PlaneSetting().router_aux_loss_coef), MANY_SEEDS)
    train(band, 600)
    for step in (200, 600):
        dead = band.records[step - 1].dead  # measured: one in six of the 20 after 200 steps, in one after 600
        assert (dead <= 1).mean() > 0.8 and dead.mean() < 0.8
