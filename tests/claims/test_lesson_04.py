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
    union_law,
)
from moe_lessons.analysis.counting import MODEL_SHAPES
from moe_lessons.analysis.inference import PROMPT, last_level_cache_bytes
from moe_lessons.analysis.roofline import machines, on_machine, published_speeds, sizes_of
from moe_lessons.analysis.speedup import Measured, edges, measure_speedups, measure_work, speedups
from moe_lessons.analysis.timing import Ratio, take_turns
from moe_lessons.nn import FeedForward, LanguageModel, TransformerConfig, seeded, torch_threads
from moe_lessons.plots.speeds import Stream

SEEDS = seeds(3)
BATCHES = 1, 8, 256  # below, between and above the two edges
MOE, ACTIVE, DOUBLE, GOOD, TOTAL = NAMES = "MoE", "dense, 1×", "dense, 2×", "dense, 4×", "dense, 8×"


def family(seed: int, d_model: int = 512, d_ff: int = 1024, **more: int) -> dict[str, LanguageModel]:
    sizes = {"d_model": d_model, "num_layers": 2, "num_heads": 8, "num_kv_heads": 4} | more
    with seeded(seed):
        made = {MOE: LanguageModel(TransformerConfig(num_experts=16, top_k=2, d_ff=d_ff, **sizes))}
        for width in (1, 2, 4, 8):
            made[f"dense, {width}×"] = LanguageModel(TransformerConfig(moe_layers=(), d_ff=width * 2 * d_ff, **sizes))
    return made


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    """The models of the lesson."""
    return family(0)


@pytest.fixture
def points(request) -> list[Measured]:
    """What the map measures, of each seed."""
    return measured_points(getattr(request.node, "execution_count", 1))


@cache
def measured_points(attempt: int) -> list[Measured]:
    return [measure_speedups(family(seed), BATCHES, repeats=3, seed=seed) for seed in SEEDS]


def median_speedups(points: list[Measured], column: str = "speedup") -> pd.DataFrame:
    """Take the medians over the seeds: rows batch, columns width."""
    frame = pd.concat(own.frame for own in points)
    return frame.groupby(["batch", "width"])[column].median().unstack()


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
def test_faster_than_which_baseline(models, points):
    """In the order of the bytes, which promise speedups of 1, 3.4 and 6.5."""
    over = median_speedups(points).loc[1]
    assert 1 < over[4] < over[8] and over[1] < over[4]
    promised = [bytes_per_step(models[name]) / bytes_per_step(models[MOE]) for name in (ACTIVE, GOOD, TOTAL)]
    assert np.round(promised, 1).tolist() == [1.0, 3.4, 6.5]
    megabytes = {name: round(bytes_per_step(model) / 1e6) for name, model in models.items()}
    assert megabytes == {MOE: 32, ACTIVE: 32, DOUBLE: 57, GOOD: 107, TOTAL: 208}


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
            assert Ratio.of(*take_turns([partial(chain, ffns, x), partial(chain, same, x)], repeats=7)).median > 1


@pytest.mark.claim("random-tokens-follow-the-union-law")
@pytest.mark.parametrize("seed", SEEDS)
def test_random_tokens_follow_the_union_law(seed):
    sizes = {"d_model": 512, "d_ff": 16, "num_layers": 2, "num_heads": 8}
    with seeded(seed):
        moe = LanguageModel(TransformerConfig(num_experts=16, top_k=2, **sizes))
        counted = distinct_experts(moe, torch.randint(256, (64, 16)), seed=seed).groupby("batch").mean()
    over = counted.distinct / counted.union_law - 1
    assert -0.08 < over.min() and over.max() < 0.02  # measured, of 24 seeds: -.056 to .009
    assert counted.distinct[1] == 2 and 9 < counted.distinct[8] < 11 and counted.distinct[64] > 15.5


@pytest.mark.alone
@pytest.mark.claim("three-regions-of-the-map")
def test_three_regions_of_the_map(points):
    """As measured, where bytes or FLOPs predict a factor of 2: below, between and above the two edges."""
    over = median_speedups(points)
    assert over[4][1] > 1 and over[2][8] < 1 and over[4][256] > 1
    for ridge in (3, 6, 12, 24):
        machine = Machine(1e10, ridge * 1e10)
        found = speedups(sizes_of(SHAPE), machine, "float32", np.array(BATCHES, float), PROMPT).at(np.array([2.0, 4]))
        assert found[0, 1] > 2 and found[1, 0] < 1 / 1.3 and found[2, 1] > 1.3


@pytest.mark.claim("no-edge-over-the-parameter-matched-baseline")
@pytest.mark.parametrize("ridge", [3, 6, 12, 24])
def test_no_edge_over_the_parameter_matched_baseline(ridge):
    """By bytes and FLOPs of whole steps, but for the router, which only the MoE has."""
    assert edges(16, 2, 8, ridge, 4.0) is None
    over = speedups(sizes_of(SHAPE), Machine(1e10, ridge * 1e10), "float32", 2.0 ** np.arange(9), PROMPT)
    assert over.at(np.array([8.0])).min() > 0.99


@pytest.fixture
def work(request) -> pd.DataFrame:
    """The speedups of the MoE in prefill and training: the medians of the seeds."""
    return measured_work(getattr(request.node, "execution_count", 1))


@cache
def measured_work(attempt: int) -> pd.DataFrame:
    frames = [measure_work(family(seed, max_positions=512), seed=seed) for seed in SEEDS]
    return pd.concat([frame / frame.loc[MOE] for frame in frames]).groupby(level=0).median()


@pytest.mark.alone
@pytest.mark.claim("many-tokens-at-once")
def test_many_tokens_at_once(models, work):
    assert (work.loc[GOOD] > 1).all() and (work.loc[TOTAL] > work.loc[GOOD]).all()
    assert work.training[DOUBLE] < work.prefill[DOUBLE]
    predicted = [flops_per_token(models[name]) / flops_per_token(models[MOE]) for name in (GOOD, TOTAL)]
    assert [round(ratio, 1) for ratio in predicted] == [3.4, 6.5]


RIDGE = 206  # of an H200 in bfloat16


@pytest.mark.claim("the-upper-edge-grows-with-e-over-k")
def test_the_upper_edge_grows_with_e_over_k():
    row = machines().loc["NVIDIA H200 SXM"]
    assert round(row.bf16_flops_per_second / row.bytes_per_second) == RIDGE
    for E, K in ((8, 2), (128, 4), (128, 8), (256, 8)):
        for width in (2, 3.2):
            lower, upper = edges(E, K, width, RIDGE)
            assert upper == pytest.approx(RIDGE * E / K / width)
            assert K / E > 1 / 16 or lower == pytest.approx(width, rel=0.1)
            assert E / K < 32 or upper > 1000
            # at B* the dense FFN is compute-bound, and the MoE, which loads all experts, still slower
            assert lower < RIDGE < upper and union_law(E, K, RIDGE) > 0.99 * E
    for width in (2, 3.2):  # DeepSeek-V3
        plain, shared = (edges(256, 8, width, RIDGE, shared_experts=number) for number in (0, 1))
        assert plain[0] < shared[0] < 1.1 * plain[0] and 0.85 * plain[1] < shared[1] < plain[1]


@pytest.mark.claim("each-at-its-own-largest-batch")
def test_each_at_its_own_largest_batch():
    row, mixtral = machines().loc["NVIDIA H200 SXM"], sizes_of(MODEL_SHAPES["Mixtral 8x7B"])

    def over(width: float, context: int) -> float:
        sizes = mixtral, mixtral.dense(width)
        most = [on_machine(own, row, "bfloat16", context)["texts"] for own in sizes]
        if context == 2048 and width < 4:  # over dense, 4×, there is no edge
            assert most[0] == 177 < edges(8, 2, width, RIDGE)[1]
        moe, dense = (on_machine(own, row, "bfloat16", context, batch) for own, batch in zip(sizes, most, strict=True))
        return moe["tokens_per_second"] / dense["tokens_per_second"]

    for width in (2, 2.5, 3.2, 4):
        assert over(width, 512) > 1.3 and over(width, 2048) < 1.001  # dense, 4×, stores and loads as much
        assert over(width, 1024) > 1.03 if width > 2 else over(width, 1024) < 0.95


@pytest.mark.claim("promised-and-had")
def test_promised_and_had():
    others = published_speeds()
    had = (others.mixture_figure / others.dense_figure).round(2).tolist()
    promised = (others.dense_b / others.mixture_active_b).round(1).tolist()
    assert had == [1.03, 6.62, 0.07, 2.14, 0.83, 4.33, 0.98] and promised == [1.2, 9.9, 9.9, 5.3, 3.2, 5.3, 3.2]
    assert round(others.dense_figure[2] / others.mixture_figure[2]) == 14
