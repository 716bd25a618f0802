"""What lesson 09 says under 'What to notice': of the changes since Mixtral, in the stored sweeps and trained anew."""

import numpy as np
import pandas as pd
import pytest
import torch

from moe_lessons.analysis import Ratio, count_parameters, flops_per_token, published_models
from moe_lessons.analysis.results import last_of, load_results
from moe_lessons.analysis.timing import take_turns
from moe_lessons.nn import MoE
from moe_lessons.nn.families import FAMILIES, modern
from moe_lessons.nn.soft_moe import soft_twin
from moe_lessons.tasks import Facts
from moe_lessons.training import Run, facts_model, facts_run

SEEDS = (1, 2, 3)  # those of the stored sweeps
LAYERS = [("Mixtral", "Mixtral 8x7B", 32), ("OLMoE", "OLMoE-1B-7B", 16), ("DeepSeek-V3", "DeepSeek-V3", 58)]


def gains(name: str, column: str) -> pd.DataFrame:
    """Against the classical mixture of the same seed; more is better, of a loss too."""
    last = last_of(name, column)
    assert len(last) == 3
    gain = last.sub(last["classical"], axis=0).drop(columns="classical")
    return -gain if column == "loss" else gain


def start(name: str, seed: int, num_entries: int = 500) -> Run:
    run = facts_run(facts_model(seed, **modern(16, 32)[name]), Facts(num_entries, seed), seed, lr=0.006)
    if "sigmoid" in name:
        run.knobs.router_aux_loss_coef, run.knobs.expert_bias_rate = 0.0, 0.01
    return run


def train(run: Run, steps: int = 120) -> Run:
    for _ in range(steps):
        run.step()
    return run


def busiest(run: Run) -> float:
    """The load of the busiest expert over the mean, over both layers and the last 20 steps."""
    loads = [max(layer) * len(layer) for record in run.records[-20:] for layer in record.load]
    return sum(loads) / len(loads)


@pytest.mark.claim("nearly-all-parameters-are-in-the-blocks")
def test_nearly_all_parameters_are_in_the_blocks():
    models = published_models().set_index("name")
    for family, name, layers in LAYERS:
        row = models.loc[name]
        with torch.device("meta"):
            block = MoE(int(row.d_model), int(row.d_ff), **FAMILIES[family])
        assert 0.9 < layers * count_parameters(block).total / row.total_params < 1


@pytest.mark.claim("soft-moe-reads-the-answer")
@pytest.mark.parametrize("seed", SEEDS)
def test_soft_moe_reads_the_answer(seed):
    """Digits 1 to 3, whose successor is in x; by chance one in ten is right."""
    right, book = {}, Facts(500, seed)
    for name in ("classical", "soft"):
        model = facts_model(seed) if name == "classical" else soft_twin(facts_model(seed), book.context, seed)
        model = train(facts_run(model, book, seed, lr=0.006)).model.eval()
        prompts = torch.cat([book.x[:, :4], torch.full((500, 1), ord(":"))], dim=1)
        with torch.no_grad():
            reads = torch.cat([model(x)[0][:, 4:7].argmax(dim=-1) for x in book.x.split(100)])
        writes = model.generate(prompts, 3, temperature=0)[:, 5:]
        right[name] = [(digits == book.y[:, 4:7]).float().mean().item() for digits in (reads, writes)]
    (_, classical), (reads, writes) = right["classical"], right["soft"]
    assert reads > 0.95 and writes < 0.2 and classical > 0.7


@pytest.mark.alone
@pytest.mark.claim("finer-experts-take-longer-for-the-same-work")
def test_finer_experts_take_longer_for_the_same_work():
    sizes = [flops_per_token(facts_model(**modern(16, 32)[name])) for name in ("classical", "4 times as fine")]
    assert sizes[1] / sizes[0] == pytest.approx(1.12, abs=0.005)
    ratios = []
    for seed in SEEDS:
        runs = [start(name, seed) for name in ("classical", "4 times as fine", "fine and shared")]
        classical, fine, both = take_turns([run.step for run in runs], repeats=11)
        ratios.append((Ratio.of(fine, classical).median, Ratio.of(both, classical).median))
    assert np.median(ratios, axis=0).min() > 1.1


@pytest.mark.claim("fine-experts-have-spread-shared-ones-have-not")
def test_fine_experts_have_spread_shared_ones_have_not():
    models = published_models().set_index("name")
    fine, recent = models.d_ff < models.d_model, models.year >= 2024
    assert fine[recent].mean() > 0.5 and not fine[~recent].any()
    assert fine[recent & (models.num_experts >= 60)].all() and not fine[recent & (models.num_experts < 60)].any()
    assert models.shared_experts["Qwen1.5-MoE-A2.7B"] == 4 and models.shared_experts["Qwen3-30B-A3B"] == 0
    sigmoid = models[models.scores == "sigmoid"].index
    assert set(sigmoid) == {"DeepSeek-V3", "Llama 4 Scout", "GLM-4.5"}
    assert set(models.index[models.balancing.str.startswith("bias")]) <= set(sigmoid)


@pytest.mark.claim("on-facts-balance-helps-and-the-rest-depends-on-the-seed")
def test_on_facts_balance_helps_and_the_rest_depends_on_the_seed():
    gain, uneven = gains("modern_facts", "known"), load_results("modern_facts").groupby("model").max_over_mean.mean()
    bias, nothing = gain["sigmoid and bias"], gain["no auxiliary loss"]
    assert gain.shape == (3, 6) and nothing.max() < -400 and bias.max() < -150 and (bias - nothing).min() > 150
    assert uneven["no auxiliary loss"] > 3 * uneven["classical"] and uneven.idxmin() == "sigmoid and bias"
    for name in ("4 times as fine", "one shared", "fine and shared"):
        assert gain[name].min() < -300 and gain[name].max() > 30 and gain[name].mean() < 0
    assert gain.loc[3, "fine and shared"] > 300 and gain.loc[1, ["4 times as fine", "fine and shared"]].max() < -100
    for seed in SEEDS:  # a short piece anew
        assert busiest(train(start("sigmoid and bias", seed))) < busiest(train(start("classical", seed))) - 0.1


@pytest.mark.claim("on-text-finer-helps-with-a-shared-expert")
def test_on_text_finer_helps_with_a_shared_expert():
    gain, uneven = gains("modern_text", "loss"), load_results("modern_text").groupby("model").max_over_mean.mean()
    assert gain.shape == (3, 6) and gain.abs().max().max() < 0.013
    assert gain["4 times as fine"].max() < -0.002 and 0.0005 < gain["fine and shared"].min() < 0.006
    bias = sorted(gain["sigmoid and bias"])
    assert -0.01 < bias[0] and bias[1] < -0.003 and abs(bias[2]) < 0.0007
    assert uneven["sigmoid and bias"] < uneven["classical"] < uneven["no auxiliary loss"]


@pytest.mark.claim("at-once-balance-buys-no-quality-here")
def test_at_once_balance_buys_no_quality_here():
    facts, text = gains("modern_facts_at_once", "known"), gains("modern_text_at_once", "loss")
    assert facts.shape == text.shape == (3, 2)
    assert (facts.min() < -200).all() and (facts.max() > 100).all()
    assert (text.min() < -0.002).all() and (text.max() > 0.002).all()
    for name in ("modern_facts_at_once", "modern_text_at_once"):
        uneven = load_results(name).groupby("model").max_over_mean.mean()
        assert uneven["expert choice"] < 1.01 < uneven["classical"]
