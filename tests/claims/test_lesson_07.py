"""What lesson 07 says under 'What to notice'. Speeds are ratios of models that take turns, over three seeds.

All models are as large as in the lesson: smaller ones would lie in the processor's cache.
"""

from collections.abc import Iterator
from functools import partial
from statistics import median

import pandas as pd
import pytest
import torch

from moe_lessons.analysis import (
    Machine,
    arithmetic_intensity,
    bytes_per_step,
    count_parameters,
    decode_speed,
    distinct_experts,
    flops_per_token,
    measure_machine,
    paired_ratio,
    product_bandwidth,
    union_law,
)
from moe_lessons.analysis.cost import MODEL_SHAPES
from moe_lessons.nn import LanguageModel, TransformerConfig, dense_twin, seeded, torch_threads
from moe_lessons.tasks import TextTask
from moe_lessons.training import Run
from moe_lessons.training.knobs import KNOBS
from moe_lessons.widgets.calculators import NAMES, DecodingCalculator

pytestmark = pytest.mark.alone
SEEDS = range(3)
LARGE = {"d_model": 512, "d_ff": 1024, "num_layers": 4}
MOE, ACTIVE, TOTAL = NAMES


def three(seed: int, num_experts: int = 8, **sizes) -> dict[str, LanguageModel]:
    config = TransformerConfig(num_experts=num_experts, top_k=2, num_heads=8, num_kv_heads=4, **sizes)
    with seeded(seed):
        moe = LanguageModel(config)
    return {MOE: moe, ACTIVE: dense_twin(moe, "active"), TOTAL: dense_twin(moe, "total")}


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, LanguageModel]]:
    yield three(0, **LARGE)


@pytest.fixture(scope="module")
def speeds() -> pd.DataFrame:
    """tokens_per_second and speedup over the equal-total twin: rows (seed, batch), a column for each model."""
    options = {"num_tokens": 3, "prompt_length": 2, "repeats": 3}
    frames = [decode_speed(three(seed, **LARGE), (1, 8, 64), **options, seed=seed).assign(seed=seed) for seed in SEEDS]
    frame = pd.concat(frames).pivot(index=["seed", "batch"], columns="model", values=["tokens_per_second", "speedup"])
    print(frame.round(2).to_string())
    return frame


def gain_at(speeds: pd.DataFrame, batch: int, model: str = MOE) -> float:
    """The median over the seeds of the speed-up."""
    return speeds.speedup[model].xs(batch, level="batch").median()


# --- one text ------------------------------------------------------------------------------------------------


@pytest.mark.claim("faster-than-which-twin")
def test_faster_than_which_twin(speeds):
    against_active = speeds.tokens_per_second[MOE] / speeds.tokens_per_second[ACTIVE]
    assert gain_at(speeds, 1) > 1.3
    assert against_active.xs(1, level="batch").median() < 1


@pytest.fixture(scope="module")
def gain_16() -> float:
    """The speed-up of the mixture of 16 experts at batch 1."""
    gains = []
    for seed in SEEDS:
        sixteen = three(seed, num_experts=16, **LARGE)
        del sixteen[ACTIVE]
        gains.append(decode_speed(sixteen, (1,), num_tokens=3, repeats=3, seed=seed).set_index("model").speedup[MOE])
    return median(gains)


@pytest.mark.claim("more-experts-gain-more")
def test_more_experts_gain_more(speeds, gain_16):
    print(f"16 experts: {gain_16:.2f}")
    assert gain_16 > 1.15 * gain_at(speeds, 1) and gain_16 > 2


# --- why -----------------------------------------------------------------------------------------------------


@pytest.mark.claim("memory-is-slower-than-the-cache")
def test_memory_is_slower_than_the_cache(models, speeds):
    from_memory = median(product_bandwidth(256) for _ in SEEDS)
    ratio = median(product_bandwidth(1) for _ in SEEDS) / from_memory
    step = 1 / speeds.tokens_per_second[TOTAL].xs(1, level="batch").median()
    reading = bytes_per_step(models[TOTAL]) / from_memory / step
    print(f"cache ÷ memory: {ratio:.1f}; the twin's step is to {reading:.0%} reading")
    assert ratio > 2 and reading > 0.5
    read = {name: bytes_per_step(model) / 1e6 for name, model in models.items()}
    assert {name: round(size) for name, size in read.items()} == {MOE: 64, ACTIVE: 63, TOTAL: 214}


@pytest.mark.claim("in-the-cache-it-gains-less")
def test_in_the_cache_it_gains_less(speeds):
    gains = []
    for seed in SEEDS:
        small = three(seed, d_model=128, d_ff=128, num_layers=2)
        assert 4 * count_parameters(small[TOTAL]).total < 4e6
        gains.append(decode_speed(small, (1,), repeats=15).set_index("model").speedup[MOE])
    print("in the cache:", [f"{gain:.2f}" for gain in gains])
    assert median(gains) < 0.8 * gain_at(speeds, 1)


# --- many texts ----------------------------------------------------------------------------------------------


@pytest.mark.claim("random-tokens-follow-the-union-law")
@pytest.mark.parametrize("seed", SEEDS)
def test_random_tokens_follow_the_union_law(models, seed):
    """The router of one model, and three sets of random bytes."""
    with seeded(seed):
        counted = distinct_experts(models[MOE], torch.randint(256, (64, 16)), seed=seed).groupby("batch").mean()
    assert (counted.distinct / counted.union_law - 1).abs().max() < 0.05
    assert counted.distinct[1] == 2 and 6.8 < counted.distinct[8] < 7.6 and counted.distinct[64] > 7.95


@pytest.mark.claim("alike-texts-touch-fewer")
def test_alike_texts_touch_fewer():
    task = TextTask(["english", "code", "json"], context=64)
    text, _, domain = task.held_out(64)
    for seed in SEEDS:
        with seeded(seed):
            model = LanguageModel(TransformerConfig(d_model=64, d_ff=32, num_layers=2, num_experts=8, top_k=2))
        run = Run(model, task, lr=0.005, batch_size=16, seed=seed)
        run.knobs.router_aux_loss_coef = 0.01
        for _ in range(150):
            run.step()
        share = {}
        for name, ids in {"all": text, "english": text[domain == task.domains.index("english")]}.items():
            means = distinct_experts(model, ids).groupby("batch").mean()
            share[name] = means.distinct / means.union_law
        print(seed, {name: values.round(2).tolist() for name, values in share.items()})
        assert share["all"].between(0.92, 1.04).all()
        assert share["english"][8] < 0.96 and share["english"][8] < share["all"][8] - 0.03
        assert share["english"].max() < 1.04


@pytest.mark.claim("the-gain-shrinks-with-the-batch")
def test_the_gain_shrinks_with_the_batch(models, speeds):
    """On an EPYC the gain at 8 texts is the smallest of the three, on a Xeon that at 64."""
    assert min(gain_at(speeds, 8), gain_at(speeds, 64)) - 1 < 0.5 * (gain_at(speeds, 1) - 1)  # most of it is gone
    assert gain_at(speeds, 8) < 0.95 * gain_at(speeds, 1)
    for name in NAMES:
        speed = speeds.tokens_per_second[name].groupby("batch").median()
        assert 1.5 * speed[1] < speed[8] < speed[64]
    read = {batch: bytes_per_step(models[TOTAL], batch) / bytes_per_step(models[MOE], batch) for batch in (1, 8, 16)}
    assert [round(ratio, 1) for ratio in read.values()] == [3.4, 1.1, 1.0]
    assert flops_per_token(models[MOE]) < flops_per_token(models[TOTAL]) / 3


# --- the roofline --------------------------------------------------------------------------------------------


@pytest.mark.claim("one-text-waits-for-memory")
def test_one_text_waits_for_memory(models, speeds):
    machines = [measure_machine(repeats=3) for _ in SEEDS]
    ridge = median(machine.ridge for machine in machines)
    intensity = {(name, batch): arithmetic_intensity(models[name], batch) for name in NAMES for batch in (1, 8, 64)}
    print(f"ridge: {ridge:.1f} FLOPs for a byte")
    assert all(round(intensity[name, 1], 2) == 0.5 for name in NAMES) and ridge > 2 * 0.5
    assert [round(intensity[name, 8], 1) for name in NAMES] == [1.3, 4.0, 4.0]
    assert round(intensity[TOTAL, 64]) == 32 > ridge
    speed = speeds.tokens_per_second.groupby("batch").median()
    assert speed[ACTIVE][1] > 2 * speed[TOTAL][1]  # not what each step costs, whatever it reads,
    assert (speed.loc[8, [ACTIVE, TOTAL]] > 2.5 * speed.loc[1, [ACTIVE, TOTAL]]).all()  # and not arithmetic
    for name in NAMES:  # up as well as to the right: FLOP/s go with tokens/s
        speed = speeds.tokens_per_second[name].groupby("batch").median()
        assert speed[64] > 2 * speed[1]
        for batch in (1, 8, 64):  # not far above the roof, which is itself a measurement
            roof = median(machine.attainable(intensity[name, batch]) for machine in machines)
            assert speed[batch] * flops_per_token(models[name]) < 1.2 * roof


@pytest.mark.claim("calculator-decoding")
@pytest.mark.parametrize("ridge", [2, 4, 8, 16])
def test_calculator_decoding(ridge, monkeypatch):
    """On machines that do few or many FLOPs in the time of reading a byte."""
    monkeypatch.setattr(DecodingCalculator, "show", lambda self: None)
    calculator = DecodingCalculator(Machine(1e10, ridge * 1e10), num_experts=4)
    inputs, batches = calculator.inputs, KNOBS["batch_size"].stops
    read = []
    for inputs["num_experts"].value in (4, 8, 16):
        read.append(calculator.experts_read())
    assert [row[MOE] for row in read] == pytest.approx([2, 2, 2]) and [row[ACTIVE] for row in read] == [2, 2, 2]
    assert [row[TOTAL] for row in read] == [4, 8, 16]

    gains = []
    for inputs["batch_size"].value in batches:
        gains.append(calculator.predicted()[MOE])
    smallest = gains.index(min(gains))
    assert 0 < smallest < len(batches) - 1
    assert gains[0] > 1.5 * gains[smallest] and gains[-1] > 1.5 * gains[smallest]

    for inputs["num_experts"].value in (2, 8):
        inputs["top_k"].value = inputs["num_experts"].value
        for inputs["batch_size"].value in batches:
            assert calculator.predicted() == pytest.approx(dict.fromkeys(NAMES, 1))


# --- reading, and memory -------------------------------------------------------------------------------------


@pytest.mark.claim("reading-is-quicker-than-writing")
def test_reading_is_quicker_than_writing(models):
    with seeded(0):
        prompt = torch.randint(256, (1, 128))
    with torch_threads(1), torch.inference_mode():
        for name, model in models.items():
            ratio = paired_ratio(partial(model, prompt), partial(model, prompt[:, :1]), repeats=3).median / 128
            print(f"{name}: a token of a prompt takes {ratio:.2f} of one that is written")
            assert ratio < 0.25


@pytest.mark.claim("all-experts-in-memory")
def test_all_experts_in_memory(models):
    memory = {name: count_parameters(model).total for name, model in models.items()}
    assert memory[MOE] == pytest.approx(memory[TOTAL], rel=0.001)
    assert 3 < memory[MOE] / memory[ACTIVE] < 4
    assert len({model.new_cache(1).nbytes for model in models.values()}) == 1
    mixtral = MODEL_SHAPES["Mixtral 8x7B"]
    assert round(mixtral.memory_gb()) == 93 and round(2 * mixtral.count.active / 1e9) == 26
    assert union_law(8, 2, 1) == 2
