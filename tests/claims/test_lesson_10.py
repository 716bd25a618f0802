"""What lesson 10 says under 'What to notice': of mixtures by date, and of finer experts in stored sweeps and anew."""

from functools import partial

import numpy as np
import pytest
import torch
from everywhere import seeds

from data.make_sweeps import FINER_TEXT
from moe_lessons.analysis import flops_per_token
from moe_lessons.analysis.counting import modern_models
from moe_lessons.analysis.results import interval, last_of, load_results
from moe_lessons.nn import MoE, TopKRouter, seeded
from moe_lessons.training import Run

FINE, SCALED = "4 times as fine", "4 times as fine, scaled"


def start(name: str, seed: int) -> Run:
    options = {"batch_size": 32, "warmup_steps": 20, "max_grad_norm": 1.0}
    run = Run(FINER_TEXT.make_model(name, seed), FINER_TEXT.text, lr=0.01, seed=seed, **options)
    run.knobs.router_aux_loss_coef = 0.01
    return run


@pytest.mark.claim("finer-sparser-shared-and-a-bias")
@pytest.mark.parametrize("first_only", [False, True])
def test_finer_sparser_shared_and_a_bias(first_only):
    models = modern_models()
    if first_only:  # without designs that came out again
        models = models.drop_duplicates(["num_experts", "top_k", "d_model", "d_ff"])
    year = models.groupby(models.day.dt.year)
    sparse, width = (
        (models.num_experts / models.top_k).groupby(models.day.dt.year).median(),
        models.d_ff / models.d_model,
    )
    assert sparse[2024] == 8 and sparse[2026] == 32 and 25 < sparse[2025] <= 32
    assert (width[models.day.dt.year < 2025] > 3).sum() >= 3 and width[models.day.dt.year >= 2025].max() < 2
    assert width.groupby(models.day.dt.year).median()[[2025, 2026]].between(0.35, 0.47).all()
    shared = year.shared_experts.agg(lambda own: (own > 0).mean())
    assert shared[2024] < 0.5 < shared[2025] and shared[2026] > 0.85
    bias = models[models.balancing.str.startswith("bias")]
    assert bias.name.iloc[0] == "DeepSeek-V3" and str(bias.day.iloc[0])[:7] == "2024-12"
    stated = models[(models.day.dt.year >= 2025) & (models.balancing != "")]
    assert stated.balancing.str.startswith("bias").mean() > 0.7
    assert first_only or len(models) == 58


@pytest.mark.claim("a-mean-of-four-times-as-many-outputs-is-half-as-long")
@torch.no_grad()
def test_a_mean_of_four_times_as_many_outputs_is_half_as_long():
    layers, experts = [], []  # of each seed: how long a fine output is, over a classical one
    for seed in seeds(10):
        with seeded(seed):
            x, *pair = torch.randn(1000, 64), MoE(64, 32, 8, 2), MoE(64, 8, 32, 8)
        classical, fine = (moe(x)[0].norm() for moe in pair)
        wide, narrow = (mean_length(moe.experts, x) for moe in pair)
        layers.append(fine / classical)
        experts.append(narrow / wide)
    assert 0.42 < min(layers) and max(layers) < 0.6 and 0.46 < np.mean(layers) < 0.55
    assert 0.9 < np.mean(experts) < 1.1  # a narrow expert's output is as long


def mean_length(experts, x: torch.Tensor) -> torch.Tensor:
    """The mean length of what every expert gives for every token."""
    pairs = zip(experts.in_proj, experts.down_proj)
    return torch.stack([experts.hidden(x @ w.mT, torch.ones(len(x))) @ down.mT for w, down in pairs]).norm(dim=2).mean()


@pytest.mark.claim("one-standard-deviation-needs-the-factor-times")
@pytest.mark.parametrize("times", [2, 4])
@torch.no_grad()
def test_one_standard_deviation_needs_the_factor_times(times):
    norms = {"ours, √times": [], "one for all, times": [], "a narrow expert": []}  # over the classical block's
    for seed in seeds(10):
        with seeded(seed):
            x, classical = torch.randn(1000, 64), MoE(64, 32, 8, 2)
            fine = {
                factor: MoE(64, 32 // times, 8 * times, 2 * times, router=scaled_router(factor))
                for factor in (times**0.5, float(times))
            }
            norms["ours, √times"].append(fine[times**0.5](x)[0].norm() / classical(x)[0].norm())
            assert 1 < flops_per_token(fine[times]) / flops_per_token(classical) < 1.15  # the router's
            for moe in (classical, fine[times]):
                for weight in moe.experts.parameters():
                    weight.normal_(std=0.02)
        norms["one for all, times"].append(fine[times](x)[0].norm() / classical(x)[0].norm())
        norms["a narrow expert"].append(mean_length(fine[times].experts, x) / mean_length(classical.experts, x))
    assert 0.85 < min(norms["ours, √times"]) and max(norms["ours, √times"]) < 1.2
    assert 0.85 < min(norms["one for all, times"]) and max(norms["one for all, times"]) < 1.2
    assert max(norms["a narrow expert"]) < times**-0.5 * 1.1


def scaled_router(factor: float):
    return partial(TopKRouter, routed_scaling_factor=factor)


def test_the_first_two_models_have_the_best_of_three_rates():
    loss = load_results("modern_finer_rates").groupby(["model", "lr"]).loss.last().unstack()
    assert loss.shape == (2, 3) and set(loss.idxmin(axis=1)) == {0.01}


@pytest.mark.claim("finer-experts-need-their-scale")
def test_finer_experts_need_their_scale():
    last = last_of("modern_finer_250")
    assert len(last) == 10
    (fine, half), (scaled, reach) = (interval(last["classical"] - last[name]) for name in (FINE, SCALED))
    assert -0.06 < fine < -half - 0.005 and abs(scaled) < reach < 0.03 and scaled - fine > 0.015
    assert (last[SCALED] < last[FINE]).all()
    loss = load_results("modern_finer_250").pivot(index="step", columns=["model", "seed"], values="loss")
    gains = {name: (loss["classical"] - loss[name]).mean(axis=1) for name in (FINE, SCALED)}
    assert -0.25 < gains[FINE][25] < -0.15 and gains[FINE][50] < gains[SCALED][50] - 0.05
    assert load_results("modern_finer_500").flops.max() < 3e18 / 1e6
    behind = []  # anew: at step 50, in nats
    for seed in seeds(4, first=21):
        runs = {name: start(name, seed) for name in ("classical", FINE, SCALED)}
        losses = {name: np.mean([run.step().loss for _ in range(60)][-20:]) for name, run in runs.items()}
        behind.append([losses[FINE] - losses[name] for name in ("classical", SCALED)])
    assert np.mean(behind, axis=0).min() > 0.03 and np.min(behind, axis=0)[1] > 0
