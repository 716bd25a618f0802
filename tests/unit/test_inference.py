"""Timing side by side and decoding: who takes turns, what is counted, what the laws say. No duration is asserted."""

import dataclasses
import platform
import time
from collections import namedtuple
from itertools import cycle

import pytest
import torch

from moe_lessons.analysis import busy, count_parameters, inference, timing
from moe_lessons.analysis.inference import Machine, bytes_per_step, decode_speed, distinct_experts, union_law
from moe_lessons.analysis.speedup import crossings, measure_work
from moe_lessons.analysis.timing import Ratio, milliseconds
from moe_lessons.nn import LanguageModel, MoE, TransformerConfig, seeded, torch_threads

CONFIG = TransformerConfig(d_model=16, num_layers=2, d_ff=16, num_experts=8, top_k=2, max_positions=32)


def model_of(**changes) -> LanguageModel:
    with seeded(0):
        return LanguageModel(dataclasses.replace(CONFIG, **changes))


@pytest.mark.parametrize("num_experts, top_k, batch", [(8, 1, 8), (16, 4, 3)])
def test_the_law_is_what_a_simulation_finds(num_experts, top_k, batch):
    trials = 4000
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(trials, batch, num_experts, generator=generator).argsort(dim=2)  # random sets of K
    counts = torch.tensor([len(set(trial.flatten().tolist())) for trial in order[:, :, :top_k]], dtype=torch.double)
    standard_error = counts.std() / trials**0.5
    assert abs(counts.mean() - union_law(num_experts, top_k, batch)) < 4 * standard_error


def test_distinct_experts_are_those_of_the_routings():
    model, ids = model_of(), torch.arange(5)[:, None]  # one position, all sequences: one possible step
    frame = distinct_experts(model, ids, (5,))
    counted = [routing.expert_idx.unique().numel() for routing in model(ids)[1]]
    assert frame.distinct.tolist() == counted
    same, noisy = torch.full((16, 4), 7), model_of(router="gaussian noise").train()
    assert (distinct_experts(noisy, same, (1, 8, 16)).distinct == 2).all() and noisy.training
    assert (distinct_experts(model_of(top_k=8), same, (1, 8)).distinct == 8).all()
    ids = torch.cat([same[:, :1], torch.arange(16)[:, None]], dim=1)  # tokens are the same at the first place alone
    found, (routing, _) = distinct_experts(model, ids, (16,)).distinct[0], model(ids)[1]
    second = routing.expert_idx[routing.token_idx % 2 == 1].unique().numel()
    assert 2 + 0.3 * (second - 2) < found < 2 + 0.7 * (second - 2)  # half of the steps take each


@pytest.fixture
def clock(monkeypatch):
    """Each step of a model with d_ff 16 takes 4 ms, of another one 1 ms, whatever the batch."""
    steps = []

    def measure(step, device):
        model, ids, cache, place = step.args
        step()
        steps.append((model.config.d_ff, len(ids), place, cache.length, model.training))
        return 4.0 if model.config.d_ff == 16 else 1.0

    monkeypatch.setattr(timing, "milliseconds", measure)
    return steps


def test_speed_and_speed_up_of_models_that_take_turns_and_decode_token_by_token(clock):
    models = {"slow": model_of(), "fast": model_of(d_ff=8)}
    frame = decode_speed(models, (1, 4), repeats=3, num_tokens=2)
    assert frame.batch.tolist() == [1, 1, 4, 4] and frame.model.tolist() == ["slow", "fast"] * 2
    assert frame.tokens_per_second.tolist() == [250, 1000, 1000, 4000]
    assert frame.speedup.tolist() == [0.25, 1] * 2
    steps = clock
    steps.clear()
    models["slow"].train()
    decode_speed(models, (3,), repeats=1, num_tokens=2, prompt_length=5)
    a_round = [(d_ff, 3, place, place + 1, False) for d_ff in (16, 8) for place in (5, 6)]
    assert steps == a_round * (timing.WARM_UP + 1) and models["slow"].training


def test_prefill_and_training_are_measured_of_each_model_and_leave_no_gradient():
    models = {"MoE": model_of(), "dense": model_of(moe_layers=())}
    frame = measure_work(models, prompt=16, batch=(2, 8), repeats=1)
    assert frame.index.tolist() == ["MoE", "dense"] and (frame[["prefill", "training"]] > 0).all(axis=None)
    assert all(weight.grad is None for model in models.values() for weight in model.parameters())


def test_a_measured_speedup_crosses_1_where_its_lines_do():
    nan = float("nan")
    for speedups, edges in (
        ([2, 2, 2, 2], (nan, nan)),
        ([4, 1, 0.25, 4], (2, 4 * 2**0.5)),
        ([0.5, 2, 2, 2], (nan, 2**0.5)),
        ([2, 2, 2, 0.5], (4 * 2**0.5, nan)),
    ):
        assert crossings([1, 2, 4, 8], speedups) == pytest.approx(edges, nan_ok=True)


def test_bytes_of_dense_baselines_are_all_their_weights_and_of_a_mixture_between_active_and_total():
    tied, own = model_of(moe_layers=()), model_of(moe_layers=(), tied_embedding=False)
    assert bytes_per_step(tied) == bytes_per_step(own) == bytes_per_step(tied, 64) == 4 * count_parameters(tied).total
    model = model_of()
    count = count_parameters(model)
    assert bytes_per_step(model, 1) == pytest.approx(4 * count.active)
    assert bytes_per_step(model, 1000) == pytest.approx(4 * count.total)
    expert = 4 * 2 * 3 * 16 * 16  # in both layers
    assert bytes_per_step(model, 8) == pytest.approx(4 * count.total - expert * (8 - union_law(8, 2, 8)))
    assert bytes_per_step(model.double(), 1) == pytest.approx(8 * count.active)
    shared = MoE(4, 16, num_experts=8, top_k=2, shared_d_ff=32)  # a shared expert is always read
    assert bytes_per_step(shared) == 4 * count_parameters(shared).active


def test_a_machine_is_measured_once_a_session_by_what_reads_fastest(monkeypatch):
    times = cycle([4000.0, 9000.0, 8000.0, 6000.0, 2000.0, 5000.0])  # a matrix, an FFN, arithmetic; then again
    monkeypatch.setattr(timing, "milliseconds", lambda function, device: (function(), next(times))[1])
    monkeypatch.setattr(inference, "MEGABYTES", 1)
    monkeypatch.setattr(inference, "last_level_cache_bytes", lambda: None)
    monkeypatch.setattr(inference, "_machines", {})
    measured = inference.measure_machine()
    assert measured == Machine(2**20 / 2, 2 * 512**3 / 5)
    times = cycle([1000.0])
    assert inference.measure_machine() is measured
    monkeypatch.setattr(inference, "_machines", {})  # another session
    monkeypatch.setattr(inference, "last_level_cache_bytes", lambda: 2**20)  # then of twice as many bytes
    assert inference.measure_machine() == Machine(2**21, 2 * 512**3)


def test_the_last_level_cache_and_the_models_whose_active_weights_it_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "CACHES", tmp_path)
    models = {"small": model_of(), "large": model_of(moe_layers=(), d_ff=2**17)}  # 25 MB a layer
    assert inference.last_level_cache_bytes() is None and "is unknown" in inference.cache_sentence(models)
    for index, level, size in ((0, 1, "48K"), (1, 1, "32K"), (2, 3, "1K"), (3, 2, "2048K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "level").write_text(f"{level}\n")
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert inference.last_level_cache_bytes() == 1024
    assert inference.cache_sentence(models).endswith("0 MB, less than any of these models loads per token.")
    (tmp_path / "index2" / "size").write_text("16384K\n")
    assert "holds 17 MB, so the active weights of small fit into it" in inference.cache_sentence(models)


@pytest.mark.parametrize(
    "changes, sizes, message",
    [
        ({"moe_layers": ()}, (1,), "^model must "),
        ({}, (1, 5), r"^batch_sizes must .*, got \(1, 5\)$"),
        ({"capacity_factor": 0.5}, (1,), "^a model must decode with a cache, got "),
    ],
)
def test_bad_input(changes, sizes, message):
    with pytest.raises(ValueError, match=message):
        distinct_experts(model_of(**changes), torch.zeros(4, 3, dtype=torch.long), sizes)


def test_the_ratio_is_the_median_over_pairs():
    assert Ratio.of([2, 4, 60, 4, 3], [1, 2, 20, 1, 1]) == Ratio(median=3, low=2, high=3)  # of 2, 2, 3, 4, 3


def test_milliseconds_wait_for_a_gpu_and_are_of_one_thread_or_of_the_clock_on_the_wall(monkeypatch):
    order = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: order.append(f"wait for {device}"))
    milliseconds(lambda: order.append("call"), "cuda:1")
    milliseconds(lambda: None, "cpu")
    assert order == ["wait for cuda:1", "call", "wait for cuda:1"]
    monkeypatch.setattr(time, "thread_time", iter([1.0, 1.25] * 2).__next__)
    monkeypatch.setattr(time, "perf_counter", iter([1.0, 1.5] * 2).__next__)
    for threads, system, expected in ((1, "Linux", 250), (2, "Linux", 500), (1, "Windows", 500)):
        monkeypatch.setattr(platform, "system", lambda system=system: system)
        with torch_threads(threads):
            assert milliseconds(lambda: None, "cpu") == expected


@pytest.mark.parametrize("where", ["a terminal", "a notebook", "a notebook that is rendered"])
def test_beside_busy_programs_it_is_said_once_and_in_no_output_that_is_compared(where, monkeypatch, capsys):
    shown, updates = [], []
    handle = namedtuple("handle", "update")(lambda data, raw: updates.append(data))
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1" if where.endswith("rendered") else "")
    monkeypatch.setattr(busy, "in_notebook", lambda: where != "a terminal")
    monkeypatch.setattr(busy, "display", lambda data, **options: shown.append(data) or handle)
    monkeypatch.setattr(busy, "seconds_of_others", iter([0.0, 1e6]).__next__)
    with busy.watching_others() as others:
        decode_speed({"model": model_of()}, (1,), repeats=1)
        time.sleep(busy.SHORT)
    assert others.are_busy
    assert capsys.readouterr().err.count("do not trust") == (where == "a terminal")
    assert (shown, len(updates)) == (([{}], 1) if where == "a notebook" else ([], 0))
