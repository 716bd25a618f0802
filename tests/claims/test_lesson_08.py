"""What lesson 08 says under 'What to notice': of races of three seeds, and of the long sweeps that are stored.

That the stored sweeps are whole and belong to the code is seen to in tests/unit/test_sweep.py.
"""

import numpy as np
import pandas as pd
import pytest
import torch

from moe_lessons.analysis import Ratio, count_parameters, flops_per_token
from moe_lessons.analysis.results import load_results
from moe_lessons.analysis.timing import step_times, take_turns
from moe_lessons.nn import LanguageModel, MoE, TransformerConfig, dense_twin, is_moe, seeded
from moe_lessons.tasks import TextTask
from moe_lessons.training import Run

SEEDS = range(3)
ACTIVE, TOTAL = "dense, same active", "dense, same total"
MIXTURES = [f"MoE, E={num_experts}" for num_experts in (2, 4, 8, 16, 32)]
STEPS = 150


def mixture(num_experts: int, seed: int = 0) -> LanguageModel:
    config = TransformerConfig(d_model=64, num_layers=2, d_ff=32, num_experts=num_experts, top_k=2, max_positions=64)
    with seeded(seed):
        return LanguageModel(config)


def race(seed: int, task: TextTask) -> dict[str, Run]:
    """The lesson's three runs, untrained."""
    moe = mixture(8, seed)
    models = {"MoE": moe, ACTIVE: dense_twin(moe, "active", seed), TOTAL: dense_twin(moe, "total", seed)}
    settings = {"lr": 0.01, "batch_size": 32, "warmup_steps": 20, "decay_steps": STEPS, "max_grad_norm": 1.0}
    runs = {name: Run(model, task, seed=seed, **settings) for name, model in models.items()}
    runs["MoE"].knobs.router_aux_loss_coef = 0.01
    return runs


@pytest.fixture(scope="module")
def task() -> TextTask:
    return TextTask(["english", "code", "json", "greek"], context=64)


@pytest.fixture(scope="module")
def races(task) -> list[dict[str, Run]]:
    """The lesson's race, run from each seed."""
    all_runs = [race(seed, task) for seed in SEEDS]
    for runs in all_runs:
        for run in runs.values():
            for _ in range(STEPS):
                run.step()
    return all_runs


@pytest.fixture(scope="module")
def losses(races) -> pd.DataFrame:
    """The held-out loss at the end: a row for each seed, a column for each model."""
    return pd.DataFrame([{name: run.evaluate(384)["loss"] for name, run in runs.items()} for runs in races])


def final_losses(name: str) -> pd.DataFrame:
    """Of a stored sweep of one rate for each model, the last losses: a row for each seed, a column for each model."""
    results = load_results(name)
    return results[results.step == results.attrs["steps"]].pivot(index="seed", columns="model", values="loss")


def spread(values) -> float:
    return float(np.max(values) - np.min(values))


# --- counts --------------------------------------------------------------------------------------------------


@pytest.mark.claim("more-experts-are-nearly-free-in-flops")
def test_more_experts_are_nearly_free_in_flops():
    few, many = mixture(2), mixture(32)
    assert count_parameters(many).total > 6 * count_parameters(few).total
    more = flops_per_token(many) - flops_per_token(few)
    routers = sum(module.router.weight.numel() for module in many.modules() if is_moe(module))
    assert more == 2 * routers * 30 / 32 and more < 0.1 * flops_per_token(few)


# --- the race ------------------------------------------------------------------------------------------------


@pytest.mark.claim("the-mixture-lies-between-its-twins")
def test_the_mixture_lies_between_its_twins(races, losses):
    ahead, behind = losses[ACTIVE] - losses["MoE"], losses["MoE"] - losses[TOTAL]
    assert ahead.min() > 0.01 and behind.min() > 0.03
    assert ahead.mean() > spread(ahead)
    assert sum(run["MoE"].records[-1].dead_experts for run in races) == 0


@pytest.mark.alone
@pytest.mark.claim("equal-flops-are-not-equal-seconds")
@pytest.mark.parametrize("seed", SEEDS)
def test_equal_flops_are_not_equal_seconds(seed, task):
    runs = race(seed, task)
    work = {name: flops_per_token(run.model) for name, run in runs.items()}
    assert work[ACTIVE] < work["MoE"] < 1.03 * work[ACTIVE] and work[TOTAL] > 2 * work["MoE"]
    active, moe, total = take_turns([runs[name].step for name in (ACTIVE, "MoE", TOTAL)], repeats=9)
    assert Ratio.of(moe, active).median > 1.05 and 1 < Ratio.of(total, moe).median < 1.8


@pytest.mark.alone
@pytest.mark.claim("the-wider-the-layer-the-better-the-deal")
@pytest.mark.parametrize("seed", SEEDS)
def test_the_wider_the_layer_the_better_the_deal(seed):
    """The lesson's two layers, with fewer repeats."""
    narrow, wide = layer_times(seed, 64, 32, 2048, repeats=15), layer_times(seed, 512, 512, 512, repeats=3)
    assert wide["MoE"] < 0.9 * narrow["MoE"]
    assert wide["large"] / wide["MoE"] > 1.4 * narrow["large"] / narrow["MoE"] and wide["large"] > 2.7 * wide["MoE"]


def layer_times(seed: int, d_model: int, d_ff: int, num_tokens: int, repeats: int) -> dict[str, float]:
    """How many times as long as the small twin the mixture and the large twin take: median of paired ratios."""
    with seeded(seed):
        layer, x = MoE(d_model, d_ff, num_experts=8, top_k=2), torch.randn(num_tokens, d_model)
    layers = {"small": dense_twin(layer, "active"), "MoE": layer, "large": dense_twin(layer, "total")}
    times = step_times(layers, x, repeats)
    return {name: Ratio.of(times[name], times["small"]).median for name in ("MoE", "large")}


@pytest.mark.claim("most-of-the-memory-waits")
def test_most_of_the_memory_waits():
    used = {E: count_parameters(mixture(E)).active / count_parameters(mixture(E)).total for E in (2, 8, 32)}
    assert used[2] == 1 and used[2] > used[8] > used[32] and used[32] == pytest.approx(1 / 6, abs=0.01)


# --- the long sweeps that are stored -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def final() -> pd.DataFrame:
    return final_losses("capacity")


@pytest.mark.claim("more-experts-lower-the-loss")
def test_more_experts_lower_the_loss(final):
    """Each against the run of the small twin with the same seed, and so on the same batches."""
    gain = -final.sub(final[ACTIVE], axis=0)  # (3 seeds, 7 models)
    many = gain[MIXTURES[2:]]
    assert many.min().min() > 0.004 and (many.mean() > many.max() - many.min()).all()
    assert 0.5 < many.mean().mean() / spread(final[ACTIVE]) < 2  # 'about as much as two seeds of one model differ'
    mean = gain.mean()
    assert mean["MoE, E=2"] < -0.002 and mean["MoE, E=32"] == mean.drop(TOTAL).max()
    assert mean["MoE, E=32"] - mean["MoE, E=8"] < mean["MoE, E=8"] - mean["MoE, E=2"]  # two doublings each


@pytest.mark.claim("parameters-in-a-mixture-are-worth-less")
def test_parameters_in_a_mixture_are_worth_less(final):
    """The large twin beats even the mixture with three times its parameters, with every seed."""
    size = load_results("capacity").groupby("model").parameters.first()
    assert size["MoE, E=32"] > 3 * size[TOTAL] and size[TOTAL] == pytest.approx(size["MoE, E=8"], rel=0.01)
    ahead = final.drop(columns=TOTAL).min(axis=1) - final[TOTAL]
    assert ahead.min() > 0.003 and ahead.mean() > 0.007


@pytest.mark.claim("per-flop-the-mixture-wins")
def test_per_flop_the_mixture_wins(final):
    """At the FLOPs that the small twin has spent in all. The large twin has not lowered its rate by then, so there
    is also a sweep in which its schedule ends there."""
    curves = load_results("capacity").groupby(["model", "seed"])
    spent = min(runs.flops.max() for _, runs in curves)
    loss = {key: np.interp(spent, runs.flops, runs.loss) for key, runs in curves}
    for seed in (1, 2, 3):
        for model in MIXTURES[2:]:
            assert loss[model, seed] < loss[ACTIVE, seed] - 0.003 and loss[model, seed] < loss[TOTAL, seed] - 0.03
    longest = load_results("flops")
    assert 1 <= longest.flops.max() / spent < 1.05 and longest.step.max() < load_results("capacity").step.max() / 2
    assert (final_losses("flops")[TOTAL] - final[[ACTIVE, *MIXTURES[2:]]].max(axis=1)).min() > 0.01


@pytest.mark.claim("by-the-clock-the-lead-is-gone")
def test_by_the_clock_the_lead_is_gone(final):
    """'A hair': 1 %, at any second until the first of the mixtures is done."""
    curves = load_results("capacity").groupby(["model", "step"])[["seconds", "loss"]].mean()
    curves = {model: curves.loc[model] for model in final}
    seconds = np.linspace(1.5, min(curves[model].seconds.max() for model in MIXTURES), 100)
    loss = pd.DataFrame({model: np.interp(seconds, curve.seconds, curve.loss) for model, curve in curves.items()})
    best_dense, best_mixture = loss[[ACTIVE, TOTAL]].min(axis=1), loss[MIXTURES].min(axis=1)
    assert loss.iloc[0].idxmin() == ACTIVE and final.mean().idxmin() == TOTAL
    assert (best_mixture > 0.99 * best_dense).all()


@pytest.mark.claim("per-second-the-mixture-does-not-win-here")
def test_per_second_the_mixture_does_not_win_here(final):
    """In the seconds that the mixture with 8 experts takes, the small twin gets as far."""
    mixture = load_results("capacity").query("model == 'MoE, E=8'").groupby("seed").seconds.max()
    twin = load_results("seconds").groupby("seed")
    behind = pd.Series({s: np.interp(mixture[s], run.seconds, run.loss) for s, run in twin}) - final["MoE, E=8"]
    assert behind.max() < 0.002 and behind.mean() < -0.001


@pytest.mark.claim("the-mixture-tolerates-a-high-rate-less")
def test_the_mixture_tolerates_a_high_rate_less():
    loss = load_results("tolerance").pivot(index="seed", columns=["model", "lr"], values="loss")
    behind = loss["MoE, E=8"] - loss[ACTIVE]  # (3 seeds, 5 rates)
    assert behind[0.005].max() < -0.01 and behind[0.02].min() > 0.05
    factor = {model: loss[model][0.02] / loss[model].min(axis=1) for model in ("MoE, E=8", ACTIVE, TOTAL)}
    assert (factor["MoE, E=8"] - factor[ACTIVE]).min() > 0.15 and (factor[ACTIVE] - factor[TOTAL]).min() > 0.1
    worse = loss.xs(0.03, axis=1, level="lr").min() / loss.T.groupby("model").min().T.max()  # 'lost too much'
    assert (worse[["MoE, E=8", ACTIVE]] > 1.5).all()


@pytest.mark.claim("what-did-not-show")
def test_what_did_not_show(races, task):
    for name in ("capacity", "tolerance"):
        results = load_results(name)
        assert not results.diverged.any() and results.spikes.sum() == 0
    x, _, _ = task.held_out(32)
    for runs in races:
        assert changed_choices(runs["MoE"].model.eval(), x) < 0.01


@torch.no_grad()
def changed_choices(model: LanguageModel, x: torch.Tensor) -> float:
    """The share of all choices of two experts that come out differently where the router computes in bfloat16."""
    shares = []

    def compare(router, inputs, routing):
        exact, rounded = (
            (inputs[0].to(kind) @ router.weight.to(kind).T).topk(2).indices.sort().values
            for kind in (torch.float32, torch.bfloat16)
        )
        assert torch.equal(exact, routing.topk_indices.sort().values)
        shares.append((exact != rounded).any(dim=-1).float().mean())

    for layer in model.layers:
        layer.ffn.router.register_forward_hook(compare)
    model(x)
    return torch.stack(shares).mean().item()
