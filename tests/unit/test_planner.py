"""The planner: its bytes are those that ranks count, its memory adds up, and one device is a roofline. The counts of
published models."""

import csv

import numpy as np
import pandas as pd
import pytest
import torch

from data import make_published_models as maker
from moe_lessons.analysis import plan, planner
from moe_lessons.analysis.counting import published_models
from moe_lessons.analysis.planner import copies_sent
from moe_lessons.analysis.roofline import machine_for, machines, published_sizes, step_seconds
from moe_lessons.parallel.exchange import bytes_sent, rank_traffic
from moe_lessons.support.data import data_path

NO_LATENCY = "Ethernet 100 Gb/s"  # 12.5 GB/s
L, E, K, D = 32, 8, 2, 4096  # of Mixtral
SIZES = published_sizes()["Mixtral 8x7B"]
H100 = machines().loc["NVIDIA H100 SXM"]


def made(**settings):
    return plan("Mixtral 8x7B", **{"devices": 8, "tokens_per_device": 512, "inside": NO_LATENCY} | settings)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_seconds_of_the_exchange_are_those_of_the_bytes_between_ranks(ranks):
    loads = torch.full((ranks, E), 1024 * K // E)  # of the experts by the tokens of each rank
    counted = L * bytes_sent(rank_traffic(loads), d_model=D, itemsize=2)[0] / 2  # without the backward
    planned = made(devices=ranks, tokens_per_device=1024)
    assert planned.exchange == pytest.approx(counted / 12.5e9)
    linked, links = made(inside="NVLink 4 (H100)"), pd.read_csv(data_path("interconnects.csv"), index_col="name")
    row = links.loc["NVLink 4 (H100)"]
    assert linked.exchange == pytest.approx(2 * L * row.latency + made().exchange * 12.5e9 / row.bytes_per_second)


@pytest.mark.parametrize("top_k", [1, 8])
def test_copies_against_tokens_that_are_sent_one_by_one(top_k):
    targets = np.array([np.random.default_rng(i).choice(32, top_k, replace=False) for i in range(3_000)])
    is_near = targets < 8  # in the node of device 0, whose tokens all of these are
    counted = (is_near & (targets > 0)).sum(axis=1).mean(), (~is_near).sum(axis=1).mean()
    np.testing.assert_allclose(copies_sent(top_k, 32), counted, rtol=0.03, atol=0.03)


def test_memory_holds_every_weight_once_and_a_cache_of_each_text():
    routed, cache = L * SIZES.groups[0].size, 512 * 2 * SIZES.cache(4096)
    alone, split = made(devices=1), made(context=0)
    assert alone.weights == 2 * SIZES.total and alone.cache == cache and alone.memory == alone.weights + cache
    assert split.weights == 2 * (SIZES.total - routed + routed / 8) and split.cache == 0 == alone.exchange


def test_decoding_on_one_device_is_the_roofline_and_many_read_the_experts_that_all_tokens_meet(monkeypatch):
    for batch in (1, 16):
        decoded = made(devices=1, tokens_per_device=batch)
        expected = step_seconds(SIZES, machine_for(H100, "bfloat16"), "bfloat16", batch, 4096)
        assert decoded.seconds == decoded.reading == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(planner, "UTILISATION", 0.1)
    flops = 512 * SIZES.flops(4096) / H100.bf16_flops_per_second
    assert made(devices=1).seconds == made(devices=1).arithmetic == pytest.approx(10 * flops)
    sizes, N, T = published_sizes()["DeepSeek-V3"], 64, 4
    step = plan("DeepSeek-V3", devices=N, context=0, tokens_per_device=T)
    dense = sizes.total - sizes.groups[0].layers * sizes.groups[0].size - sizes.looked_up
    assert N * step.reading * H100.bytes_per_second / 2 == pytest.approx(N * dense + sizes.read(N * T) - dense)


def test_overlap_hides_no_more_than_there_is():
    for inside in (NO_LATENCY, "NVLink 4 (H100)"):  # slower and faster than the arithmetic
        bare, half, full = (made(context=0, inside=inside, overlap=overlap) for overlap in (0, 0.5, 1))
        compute, exchange = bare.arithmetic, bare.exchange
        assert bare.seconds == pytest.approx(compute + exchange)
        assert half.seconds == pytest.approx(compute + exchange / 2)
        assert full.seconds == pytest.approx(max(compute, exchange))


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"devices": 16}, r"devices must be .* experts \(8\), got 16"),
        ({"inside": "a rope"}, "inside must be one of .*, got 'a rope'"),
        ({"overlap": 2}, "overlap must be .* at most 1, got 2"),
    ],
)
def test_what_does_not_fit_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        made(**settings)


def test_counted_agrees_with_published_except_where_the_note_says_why():
    frame = published_models()
    assert len(frame) == len(maker.PUBLISHED) == 16 and frame.total_params.is_monotonic_decreasing
    assert (frame.total_params / 1e9 / frame.total_published_b - 1).abs().max() < 0.012
    active = frame.dropna(subset="active_published_b")
    off = (active.active_params / 1e9 / active.active_published_b - 1).abs()
    assert set(active.name[off > 0.025]) == {"gpt-oss-20b", "GLM-4.5"}
    assert active.note[off > 0.025].str.contains("embedding").all()


@pytest.mark.parametrize("model", maker.PUBLISHED, ids=lambda model: model.name)
def test_csv_equals_the_model_class(model):
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    if not hasattr(transformers, model.hf_class):
        pytest.skip(f"transformers {transformers.__version__} has no {model.hf_class}")
    with data_path("published_models.csv").open(encoding="utf-8", newline="") as file:
        stored = {row["name"]: row for row in csv.DictReader(file)}
    assert {column: str(value) for column, value in maker.row(model).items()} == stored[model.name]
    assert published_sizes()[model.name] == maker.count_sizes(model)
