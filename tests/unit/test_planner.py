"""The planner: its bytes are those that ranks count, and its memory adds up. The counts of published models."""

import csv

import numpy as np
import pandas as pd
import pytest
import torch

from data import make_published_models as maker
from moe_lessons.analysis import plan, planner
from moe_lessons.analysis.counting import published_models
from moe_lessons.analysis.planner import UTILISATION, check_published, copies_sent
from moe_lessons.analysis.roofline import machine_for, machines, published_sizes, step_seconds
from moe_lessons.parallel.exchange import bytes_sent, rank_traffic
from moe_lessons.support.data import data_path

NO_LATENCY = "Ethernet 100 Gb/s"
L, E, K, D = 32, 8, 2, 4096  # of Mixtral
SIZES = published_sizes()["Mixtral 8x7B"]
H100 = machines().loc["NVIDIA H100 SXM"]


def made(**settings):
    return plan("Mixtral 8x7B", **{"devices": 16, "expert_parallel": 8, "tokens_per_device": 512} | settings)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_seconds_of_the_exchange_are_those_of_the_bytes_between_ranks(ranks):
    loads = torch.full((ranks, E), 1024 * K // E)  # of the experts by the tokens of each rank
    counted = L * bytes_sent(rank_traffic(loads), d_model=D, itemsize=2)
    planned = made(expert_parallel=ranks, tokens_per_device=1024, inside=NO_LATENCY)
    assert 4 * L * 1024 * K * (ranks - 1) / ranks * D * 2 == counted[0]
    assert [planned.bytes_inside] * ranks == counted.tolist() and planned.bytes_between == planned.between == 0
    assert planned.inside == pytest.approx(planned.bytes_inside / 12.5e9)
    late, links = made(tokens_at_once=128), pd.read_csv(data_path("interconnects.csv"), index_col="name")
    assert late.inside - made().inside == pytest.approx(3 * 4 * L * links.latency["NVLink 4 (H100)"])


@pytest.mark.parametrize("node_limit", [None, 1, 2, 4])
@pytest.mark.parametrize("top_k", [1, 8])
def test_copies_against_tokens_that_are_sent_one_by_one(top_k, node_limit):
    rng, group, node = np.random.default_rng(0), 32, 8
    allowed = [rng.permutation(4)[: node_limit or 4] for _ in range(3_000)]
    targets = np.array([rng.choice(nodes, top_k) * node + rng.integers(node, size=top_k) for nodes in allowed])
    home, is_near = 0, targets // node == 0  # all of the tokens are those of device 0
    if node_limit is None:
        inside, between = (is_near & (targets != home)).sum(1).mean(), (~is_near).sum(1).mean()
    else:  # once to each other node, to the device with the sender's number there, and from there to the experts
        inside = (targets % node != 0).sum(1).mean()
        between = np.mean([len(set(row // node) - {0}) for row in targets])
    np.testing.assert_allclose(copies_sent(top_k, group, node_limit), (inside, between), rtol=0.03, atol=0.03)


def test_memory_holds_every_weight_once_and_arithmetic_is_six_flops_for_an_active_one():
    total, routed = SIZES.total, L * SIZES.groups[0].size
    whole = made(devices=1, expert_parallel=1)
    assert (whole.weights, whole.gradients, whole.optimizer) == (2 * total, 4 * total, 12 * total)
    assert whole.exchange == 0 and whole.seconds == whole.compute and whole.limit == "arithmetic"
    assert whole.compute == pytest.approx(3 * 512 * SIZES.flops(2048) / (UTILISATION * H100.bf16_flops_per_second))
    split = made(pipeline_parallel=2)  # one replica of the experts, eight of all else
    assert split.weights == (routed / 8 + total - routed) and split.optimizer == 12 * total / 16
    assert split.memory == pytest.approx(split.weights + split.gradients + split.optimizer + split.activations)
    assert made(phase="prefill").optimizer == made(phase="prefill").gradients == 0


def test_decoding_on_one_device_is_the_roofline_and_many_read_the_experts_that_all_tokens_meet(monkeypatch):
    monkeypatch.setattr(planner, "UTILISATION", 1.0)
    alone = {"devices": 1, "expert_parallel": 1, "phase": "decoding", "context": 4096}
    for batch in (1, 16):
        decoded = made(**alone, tokens_per_device=batch)
        expected = step_seconds(SIZES, machine_for(H100, "bfloat16"), "bfloat16", batch, 4096)
        assert decoded.seconds == pytest.approx(expected, rel=1e-6) and decoded.limit == "memory"
    monkeypatch.setattr(planner, "UTILISATION", 1e3)
    sizes, N, T = published_sizes()["DeepSeek-V3"], 64, 4
    shared = {"devices": N, "expert_parallel": N, "context": 0, "overlap": 1.0}
    step = plan("DeepSeek-V3", **shared, phase="decoding", tokens_per_device=T)
    dense = sizes.total - sizes.groups[0].layers * sizes.groups[0].size - sizes.looked_up
    assert N * step.compute * H100.bytes_per_second / 2 == pytest.approx(N * dense + sizes.read(N * T) - dense)


def test_the_busiest_device_is_waited_for_and_overlap_hides_no_more_than_there_is():
    even, uneven = made(inside=NO_LATENCY), made(inside=NO_LATENCY, imbalance=1.5)
    assert uneven.inside == pytest.approx(1.5 * even.inside) and uneven.memory == even.memory
    of_experts = 2 * L * K * SIZES.groups[0].matrix / SIZES.flops(2048)
    assert uneven.compute == pytest.approx(even.compute * (1 + 0.5 * of_experts))
    slow = {"inside": NO_LATENCY, "devices": 8}
    open_, half, full = (plan("DeepSeek-V3", **slow, overlap=overlap) for overlap in (0, 0.5, 1))
    assert open_.hidden == 0 and half.hidden == pytest.approx(min(open_.exchange / 2, open_.compute))
    assert full.seconds == pytest.approx(max(full.compute, full.exchange)) and open_.limit == "links inside nodes"
    many = {"devices": 64, "expert_parallel": 64, "tokens_per_device": 64, "between": NO_LATENCY}
    assert plan("DeepSeek-V3", **many).limit == "links between nodes"


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"expert_parallel": 16}, r"expert_parallel must be between 1 and .* experts \(8\), got 16"),
        ({"devices": 12}, r"devices must be a multiple of expert_parallel × pipeline_parallel \(8\), got 12"),
        ({"inside": "a rope"}, "inside must be one of .*, got 'a rope'"),
    ],
)
def test_what_does_not_fit_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        made(**settings)


def test_the_planner_against_published_figures():
    checked = check_published()
    assert checked.published.tolist() == [2.664e6, 4025, 0.047619] and checked.source.str.len().gt(15).all()
    near = checked.error_percent.abs() <= 30
    assert near.tolist() == [True, True, False] and (checked.reason.notna() == ~near).all()


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
