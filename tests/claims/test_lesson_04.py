"""What lesson 04 says under 'What to notice'. Speeds are ratios of models that take turns; each seed has models of its
own, as large as in the lesson: smaller ones would lie in the processor's cache."""

from functools import cache, partial

import numpy as np
import pandas as pd
import pytest
import torch
from everywhere import seeds

from moe_lessons.analysis import (
    Machine,
    TransformerShape,
    bytes_per_step,
    distinct_experts,
    flops_per_token,
    paired_ratio,
    union_law,
)
from moe_lessons.analysis.counting import MODEL_SHAPES
from moe_lessons.analysis.inference import PROMPT, last_level_cache_bytes
from moe_lessons.analysis.roofline import machines, on_machine, published_speeds, sizes_of
from moe_lessons.analysis.speedup import Measured, measure_speedups, speedups
from moe_lessons.analysis.step_parts import ROUTING, step_parts
from moe_lessons.nn import FeedForward, LanguageModel, TransformerConfig, seeded, torch_threads
from moe_lessons.plots.speeds import Stream
from moe_lessons.tasks import TextTask
from moe_lessons.training import Run, train

SEEDS = seeds(3)
BATCHES = np.array([1.0, 4, 16, 64, 256])  # of the map
MOE, ACTIVE, DOUBLE, GOOD, TOTAL = NAMES = "MoE", "dense, 1×", "dense, 2×", "dense, 4×", "dense, 8×"


def family(seed: int, d_model: int = 512, d_ff: int = 1024, widths=(1, 2, 4, 8)) -> dict[str, LanguageModel]:
    sizes = {"d_model": d_model, "num_layers": 2, "num_heads": 8, "num_kv_heads": 4}
    with seeded(seed):
        made = {MOE: LanguageModel(TransformerConfig(num_experts=16, top_k=2, d_ff=d_ff, **sizes))}
        for width in widths:
            made[f"dense, {width}×"] = LanguageModel(TransformerConfig(moe_layers=(), d_ff=width * 2 * d_ff, **sizes))
    return made


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    """The models of the lesson."""
    return family(0)


@pytest.fixture
def parts(request) -> pd.DataFrame:
    """The milliseconds of `step_parts` for one text: rows seed, columns (part, model)."""
    return measured_parts(getattr(request.node, "execution_count", 1))  # a test that is run again gets other ones


@cache
def measured_parts(attempt: int) -> pd.DataFrame:
    frames = [step_parts(family(seed, widths=(1, 4, 8)), (1,), repeats=9).assign(seed=seed) for seed in SEEDS]
    return pd.concat(frames).pivot(index="seed", columns="model")


@pytest.fixture
def points(request) -> list[Measured]:
    """What the map measures, of each seed."""
    return measured_points(getattr(request.node, "execution_count", 1))


@cache
def measured_points(attempt: int) -> list[Measured]:
    return [measure_speedups(family(seed), repeats=3, seed=seed) for seed in SEEDS]


def median_speedups(points: list[Measured], column: str = "speedup") -> pd.DataFrame:
    """Take the medians over the seeds: rows batch, columns width."""
    frame = pd.concat(own.frame for own in points)
    return frame.groupby(["batch", "width"])[column].median().unstack()


MIXTRAL = MODEL_SHAPES["Mixtral 8x7B"]


SHAPE = TransformerShape(256, 512, 2, 8, 4, 64, 1024, num_experts=16, top_k=2)  # of the mixture


@pytest.mark.claim("few-boxes-leave-memory")
@pytest.mark.parametrize("ridge", [2, 4, 8, 16])
def test_few_boxes_leave_memory(models, ridge):
    """It holds where a byte is read in the time of few or of many FLOPs, and so does what section 3 says."""
    sizes, machine = sizes_of(SHAPE), Machine(1e10, ridge * 1e10)
    for batch in (1, 16, 256):
        moe, dense = (Stream(own, machine, "float32", batch) for own in (sizes, sizes.dense(4.0)))
        held = [sum(seconds for _, seconds in stream.parts) for stream in (moe, dense)]
        assert held[0] > 1.9 * held[1] == 1.9 * dense.reading
        for stream, name in ((moe, MOE), (dense, GOOD)):
            assert stream.reading == pytest.approx(bytes_per_step(models[name], batch) / 1e10, rel=0.01)
        if batch == 1:
            assert moe.wrote(3 * dense.step) > 3 * dense.wrote(3 * dense.step) == 9
            assert 3 * moe.computing < moe.reading and 3 * dense.computing < dense.reading
        if batch == 16:
            assert moe.reading > 1.5 * dense.reading
        if batch == 256:
            assert dense.step == pytest.approx(dense.computing, rel=0.1) and moe.step < dense.step
            assert dense.computing > 3 * moe.computing


@pytest.mark.alone
@pytest.mark.claim("faster-than-which-baseline")
def test_faster_than_which_baseline(models, parts):
    """In the order of the bytes, which promise speedups of 1, 3.4 and 6.5; only the mixture has routing."""
    over = parts.whole.div(parts.whole[MOE], axis=0).median()  # the speedup over each model
    assert 1 < over[GOOD] < over[TOTAL] and over[ACTIVE] < over[GOOD]
    promise = parts.promise.div(parts.promise[MOE], axis=0).median()
    assert promise[[ACTIVE, GOOD, TOTAL]].round(1).tolist() == [1.0, 3.4, 6.5]
    assert parts[ROUTING].drop(columns=MOE).eq(0).all(axis=None) and parts[ROUTING][MOE].gt(0).all()
    assert {name: round(bytes_per_step(model) / 1e6) for name, model in models.items()} == {
        MOE: 32, ACTIVE: 32, DOUBLE: 57, GOOD: 107, TOTAL: 208}  # fmt: skip


def chain(ffns: list, x: torch.Tensor) -> torch.Tensor:
    for ffn in ffns:
        x = x + ffn(x)
    return x


@pytest.mark.alone
@pytest.mark.claim("one-text-waits-for-memory")
def test_one_text_waits_for_memory():
    """The same operations take longer with weights from memory than with weights that a cache holds."""
    num_bytes = max(150_000_000, 2 * (last_level_cache_bytes() or 0))
    for seed in SEEDS:
        with seeded(seed), torch_threads(1), torch.inference_mode():
            ffns, x = [FeedForward(512, 128) for _ in range(num_bytes // (4 * 3 * 512 * 128))], torch.randn(1, 512)
            same = ffns[:1] * len(ffns)
            assert paired_ratio(partial(chain, ffns, x), partial(chain, same, x), repeats=7).median > 1


@pytest.mark.claim("random-tokens-follow-the-union-law")
@pytest.mark.parametrize("seed", SEEDS)
def test_random_tokens_follow_the_union_law(seed):
    sizes = {"d_model": 512, "d_ff": 16, "num_layers": 2, "num_heads": 8}
    with seeded(seed):
        moe = LanguageModel(TransformerConfig(num_experts=16, top_k=2, **sizes))
        counted = distinct_experts(moe, torch.randint(256, (64, 16)), seed=seed).groupby("batch").mean()
    assert (counted.distinct / counted.union_law - 1).abs().max() < 0.08
    assert counted.distinct[1] == 2 and 9 < counted.distinct[8] < 11 and counted.distinct[64] > 15.5


@pytest.mark.alone
@pytest.mark.claim("three-regions-of-the-map")
def test_three_regions_of_the_map(points):
    """As measured, and as the roofline says it; where the valley is deepest depends on the processor."""
    had = median_speedups(points)[[1, 2, 4, 8]]
    assert (had.diff(axis=1).iloc[:, 1:] > 0).all(axis=None)  # to the right
    valley = had.loc[[4, 16, 64]].min()
    for width in (4, 8):
        assert had[width][1] > 1 and valley[width] < had[width][1] and valley[width] < had[width][256]
    for ridge in (2, 4, 8, 16):
        machine = Machine(1e10, ridge * 1e10)
        corner, *valley, top = speedups(sizes_of(SHAPE), machine, "float32", BATCHES, PROMPT).at(np.array([2, 4, 8.0]))
        assert (np.min(valley, axis=0) < 0.4 * corner).all() and (np.min(valley, axis=0) < 0.6 * top).all()
    touched = union_law(16, 2, 8)
    assert 10 < touched < 11 and touched / 2 > 4 and 8 * 2 / touched < 2  # most, and few tokens for each


@pytest.mark.alone
@pytest.mark.claim("the-map-tells-the-faster-one")
def test_the_map_tells_the_faster_one(points):
    """Where bytes or FLOPs predict a factor of two."""
    frame = pd.concat(own.frame for own in points).query("width > 0")
    found, predicted = (frame.groupby(["batch", "width"])[name].median() for name in ("speedup", "roofline"))
    clear = (predicted > 2) | (predicted < 1 / 2)
    assert clear.sum() > 5 and ((found > 1) == (predicted > 1))[clear].all()


@pytest.mark.claim("b-star-is-e-over-k-times-as-large")
def test_b_star_is_e_over_k_times_as_large(models):
    """At B* arithmetic takes as long as reading; from the B* of the dense model on, the gain grows by both."""
    assert round(989 / 3.35) == 295 and round(989 / 3.35 * 8 / 2) == 1181 and round(989 / 4.8 * 8 / 2, -1) == 820

    def seconds(name: str, batch: int, machine: Machine) -> float:
        model = models[name]
        reading = bytes_per_step(model, batch) / machine.bytes_per_second
        return max(reading, batch * flops_per_token(model) / machine.flops_per_second)

    FLOPS = flops_per_token(models[GOOD]) / flops_per_token(models[MOE])
    assert 3.3 < FLOPS < 3.4
    for ridge in (4, 9, 30, 300):
        machine, dense = Machine(1e10, ridge * 1e10), 2 * ridge  # float32: 4 bytes for a weight
        for name, batch, least in ((GOOD, dense, 0.98), (MOE, 8 * dense, 0.75)):  # its attention is there before
            reading = bytes_per_step(models[name], batch) / batch / flops_per_token(models[name])
            assert least < reading * ridge < 1.02  # as long as arithmetic
        batches = [round(dense * factor) for factor in (1, 1.5, 2, 4)]
        gains = [seconds(GOOD, batch, machine) / seconds(MOE, batch, machine) for batch in batches]
        assert gains == sorted(gains) and gains[-1] > 1.5 * gains[0]
        late = [seconds(GOOD, batch, machine) / seconds(MOE, batch, machine) for batch in (8 * dense, 10**6)]
        assert late == pytest.approx([FLOPS, FLOPS], rel=0.02)


H200 = machines().loc["NVIDIA H200 SXM"]


@pytest.mark.claim("memory-is-full-before-the-lead-is-back")
def test_memory_is_full_before_the_lead_is_back():
    sizes, batches = sizes_of(MIXTRAL), np.array([1.0, 2, 4, 8, 16, 64, 128, 256, 354, 1024])
    card = Machine(H200.bytes_per_second, H200.bf16_flops_per_second)
    over = speedups(sizes, card, "bfloat16", batches, 1024).at(np.array([2.0, 4.0]))
    assert on_machine(sizes, H200, "bfloat16", 1024)["texts"] == 354
    assert (over[:2, 0] > 1.1).all() and (over[2:9, 0] < 0.95).all() and over[-1, 0] > 1.05
    assert (over[:, 1] > 0.99).all() and over[4:7, 1].max() < 1.05
    longer = speedups(sizes, card, "bfloat16", 2.0 ** np.arange(6, 21), 8192).at(np.array([2.0]))
    assert longer.max() < 1.1
    for machine, back in ((H200, 413), (machines().loc["NVIDIA H100 SXM"], 591)):  # where the lead over 2 x is back
        card = Machine(machine.bytes_per_second, machine.bf16_flops_per_second)
        before, then = speedups(sizes, card, "bfloat16", np.array([back - 1.0, back]), 1024).at(np.array([2.0]))[:, 0]
        assert before < 1 < then


@pytest.mark.claim("promised-and-had")
def test_promised_and_had():
    others = published_speeds()
    had = (others.mixture_figure / others.dense_figure).round(2).tolist()
    promised = (others.dense_b / others.mixture_active_b).round(1).tolist()
    assert had == [1.03, 6.62, 0.07, 2.14, 0.83, 4.33, 0.98] and promised == [1.2, 9.9, 9.9, 5.3, 3.2, 5.3, 3.2]
    assert round(others.dense_figure[2] / others.mixture_figure[2]) == 14


@pytest.mark.claim("alike-texts-touch-fewer")
def test_alike_texts_touch_fewer():
    task = TextTask(["english", "code", "json"], context=64)
    text, _, domain = task.held_out(64)
    for seed in SEEDS:
        with seeded(seed):
            model = LanguageModel(TransformerConfig(d_model=64, d_ff=32, num_layers=2, num_experts=8, top_k=2))
        run = Run(model, task, lr=0.005, batch_size=16, seed=seed)
        run.knobs.router_aux_loss_coef = 0.01
        train(run, 75)
        share = {}
        for name, ids in {"all": text, "english": text[domain == task.domains.index("english")]}.items():
            means = distinct_experts(model, ids).groupby("batch").mean()
            share[name] = means.distinct / means.union_law
        assert share["all"].between(0.92, 1.04).all()
        assert share["english"][8] < 0.96 and share["english"][8] < share["all"][8] - 0.03
        assert share["english"].max() < 1.04
