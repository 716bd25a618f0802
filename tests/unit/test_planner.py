"""The planner: its bytes are those that ranks count, its memory adds up, its links are those that were measured."""

import csv
import importlib.util
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_lessons.analysis import Link, fit_link, plan, planner
from moe_lessons.analysis.counting import MODEL_SHAPES, TransformerShape, published_models
from moe_lessons.analysis.planner import UTILISATION, check_published, copies_sent, link_of, planned_models
from moe_lessons.analysis.roofline import machine_for, machines, published_sizes, sizes_of, step_seconds
from moe_lessons.parallel.exchange import bytes_sent, rank_traffic
from moe_lessons.support.data import data_path

TINY = TransformerShape(256, 64, 3, 4, 4, 16, 32, num_experts=16, top_k=2)
FREE = Link(1e30)


def made(model=TINY, devices=16, **settings):
    return plan(model, devices=devices, **{"expert_parallel": 8, "tokens_per_device": 512} | settings)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_bytes_are_those_of_the_traffic_between_ranks(ranks):
    loads = torch.full((ranks, 16), 1024 * 2 // 16)  # of 16 experts by the tokens of each rank
    counted = 3 * bytes_sent(rank_traffic(loads), d_model=64, itemsize=4)
    planned = made(devices=16, expert_parallel=ranks, tokens_per_device=1024, dispatch_bytes=4, combine_bytes=4)
    L, T, K, N, D = 3, 1024, 2, ranks, 64
    assert planned.bytes_inside == 4 * L * T * K * (N - 1) / N * D * 4 and planned.bytes_between == 0
    assert counted.tolist() == [planned.bytes_inside] * ranks


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
    np.testing.assert_allclose(copies_sent(top_k, group, node, node_limit), (inside, between), rtol=0.03, atol=0.03)


def test_memory_holds_every_weight_once_and_arithmetic_is_six_flops_for_an_active_one():
    total = TINY.count.total
    whole = made(devices=1, expert_parallel=1)
    assert (whole.weights, whole.gradients, whole.optimizer) == (2 * total, 4 * total, 12 * total)
    assert whole.exchange == whole.bytes_inside == 0 and whole.seconds == whole.compute
    split = made(devices=16, expert_parallel=8, pipeline_parallel=2)  # one replica of the experts, eight of all else
    routed = TINY.parameters()["experts"].total
    assert split.weights == routed / 8 + total - routed and split.optimizer == 12 * total / 16
    assert split.memory == pytest.approx(split.weights + split.gradients + split.optimizer + split.activations)
    assert made(phase="prefill").optimizer == made(phase="prefill").gradients == 0
    flat = made(inside=FREE, between=FREE, context=0)
    peak = machines().bf16_flops_per_second["NVIDIA H100 SXM"]
    assert flat.flops == 3 * 512 * TINY.flops_per_token() and flat.exchange < 1e-20
    assert flat.seconds == pytest.approx(flat.flops / (UTILISATION * peak))
    assert flat.tokens_per_second == pytest.approx(16 * 512 / flat.seconds) and flat.limit == "arithmetic"


def test_decoding_on_one_device_is_the_roofline_and_many_read_the_experts_that_all_tokens_meet(monkeypatch):
    monkeypatch.setattr(planner, "UTILISATION", 1.0)
    row, sizes = machines().loc["NVIDIA H100 SXM"], sizes_of(MODEL_SHAPES["Mixtral 8x7B"])
    alone = {"devices": 1, "expert_parallel": 1, "phase": "decoding", "context": 4096}
    for batch in (1, 16):
        decoded = plan("Mixtral 8x7B", **alone, tokens_per_device=batch)
        expected = step_seconds(sizes, machine_for(row, "bfloat16"), "bfloat16", batch, 4096)
        assert decoded.seconds == pytest.approx(expected, rel=1e-6) and decoded.limit == "memory"
    monkeypatch.setattr(planner, "UTILISATION", 1e3)
    sizes, N, T = published_sizes()["DeepSeek-V3"], 64, 4
    shared = {"devices": N, "expert_parallel": N, "inside": FREE, "between": FREE, "context": 0}
    step = plan("DeepSeek-V3", **shared, phase="decoding", tokens_per_device=T)
    dense = sizes.total - sizes.groups[0].layers * sizes.groups[0].size - sizes.looked_up
    read = N * step.compute * machines().bytes_per_second["NVIDIA H100 SXM"] / 2
    assert read == pytest.approx(N * dense + sizes.read(N * T) - dense) and step.limit == "memory"


def test_the_busiest_device_is_waited_for_and_overlap_hides_no_more_than_there_is():
    even, uneven, padded = made(), made(imbalance=1.5), made(capacity_factor=1.25)
    assert uneven.bytes_inside == 1.5 * even.bytes_inside and padded.bytes_inside == 1.25 * even.bytes_inside
    assert uneven.inside > even.inside
    of_experts = TINY.parameters()["experts"].active / TINY.flops_per_token(2048) * 2
    assert uneven.compute == pytest.approx(even.compute * (1 + 0.5 * of_experts))
    assert uneven.flops == even.flops == padded.flops and uneven.memory == even.memory
    assert made(capacity_factor=1.0, imbalance=3.0) == even  # no device has more than its places
    slow = {"inside": Link(1e9), "devices": 8}
    open_, half, full = (made(**slow, overlap=overlap) for overlap in (0, 0.5, 1))
    assert open_.hidden == 0 and half.hidden == pytest.approx(min(open_.exchange / 2, open_.compute))
    assert full.seconds == pytest.approx(max(full.compute, full.exchange))
    assert open_.limit == "links inside nodes" and made(node=1, between=Link(1e9)).limit == "links between nodes"


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"expert_parallel": 32, "devices": 32}, r"expert_parallel must be between 1 and .* experts \(16\), got 32"),
        ({"devices": 12}, r"expert_parallel × pipeline_parallel \(8\) must divide devices \(12\)"),
        ({"tensor_parallel": 3}, r"tensor_parallel × pipeline_parallel \(3\) must divide devices \(16\)"),
    ],
)
def test_what_does_not_fit_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        made(**settings)


def test_a_link_is_found_again_in_noisy_seconds():
    sent, rng = np.geomspace(1e4, 1e8, 9), np.random.default_rng(0)
    found = fit_link(sent, (2e-4 + sent / 3e9) * rng.normal(1, 0.01, 9))
    assert found.bytes_per_second == pytest.approx(3e9, rel=0.03) and found.latency == pytest.approx(2e-4, rel=0.5)
    assert fit_link([1e6, 2e6], [0.9e-3, 2.1e-3]).latency == 0  # the line would begin below 0
    assert found.seconds(0) == 0 and found.seconds(3e9) == pytest.approx(1, rel=0.03)
    with pytest.raises(ValueError, match="seconds must grow with the bytes sent"):
        fit_link([1e6, 2e6, 3e6], [3, 2, 1])


@pytest.mark.parametrize("side", [4, 8])
def test_a_torus_by_walking_through_it(side):
    steps = np.minimum(np.arange(side), side - np.arange(side))
    hops = np.add.outer(steps, steps).mean()  # from one device to each, itself included
    two, many = (link_of("TPU v3 (2-D torus)", group).bytes_per_second for group in (2, side**2))
    assert many == pytest.approx(two / hops)


def test_the_planner_against_published_systems_and_sizes():
    checked = check_published()
    near = checked.error_percent.abs() <= 30
    assert near.sum() >= 16 and len(checked) == 22
    within = set(checked.system[near].str.split(r",| there| back", regex=True).str[0])
    assert within >= {"DeepSeek-V3", "DeepEP", "Megatron Core", "GLaM", "GShard 150B"}
    assert (checked.reason[~near].str.len() > 60).all() and (checked.reason[near] == "").all()
    assert set(checked.seen) == {"yes"} and checked.source.str.len().gt(15).all()
    published = {"Mixtral 8x22B": (141e9, 39e9), "Qwen2-57B-A14B": (57e9, 14e9), "GLaM": (1.162e12, 96.6e9)}
    published["GShard 600B"] = 619e9, 0.0025 * 619e9  # arXiv:2104.10350, table 4
    for name, (total, active) in published.items():
        sizes, _ = planned_models()[name]
        assert sizes.total == pytest.approx(total, rel=0.01) and sizes.active == pytest.approx(active, rel=0.12)


def test_the_stored_sizes_are_those_of_the_papers():
    maker = runpy.run_path(str(data_path("make_planned_models.py")))
    assert data_path("planned_models.json").read_text() == maker["text"]()


CSV = data_path("published_models.csv")


def load_maker():
    path = CSV.with_name("make_published_models.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    maker = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)  # data/ is packed as it lies
        spec.loader.exec_module(maker)
    return maker


maker = load_maker()
build, built = maker.build, {}


def build_once(model):
    if (key := repr(model)) not in built:
        built[key] = build(model)
    return built[key]


maker.build = build_once


def test_counted_agrees_with_published_except_where_the_note_says_why():
    frame = published_models()
    assert len(frame) == len(maker.MODELS) == 16 and frame.total_params.is_monotonic_decreasing
    assert (frame.total_params / 1e9 / frame.total_published_b - 1).abs().max() < 0.012
    active = frame.dropna(subset="active_published_b")
    off = (active.active_params / 1e9 / active.active_published_b - 1).abs()
    assert set(active.name[off > 0.025]) == {"gpt-oss-20b", "GLM-4.5"}
    assert active.note[off > 0.025].str.contains("embedding").all()


@pytest.mark.parametrize("model", maker.MODELS, ids=lambda model: model.name)
def test_csv_equals_the_model_class(model):
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    if not hasattr(transformers, model.hf_class):
        pytest.skip(f"transformers {transformers.__version__} has no {model.hf_class}")
    with Path(CSV).open(encoding="utf-8", newline="") as file:
        stored = {row["name"]: row for row in csv.DictReader(file)}
    assert {column: str(value) for column, value in maker.row(model).items()} == stored[model.name]
    assert published_sizes()[model.name] == maker.count(model)
