"""Decoding: who takes turns, what is counted, and what the laws say. No duration is asserted."""

import dataclasses
import time
from contextlib import nullcontext
from itertools import cycle
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from moe_lessons.analysis import count_parameters, flops_per_token, inference, timing
from moe_lessons.analysis.inference import (
    Machine,
    arithmetic_intensity,
    bytes_per_step,
    decode_speed,
    distinct_experts,
    measure_machine,
    product_bandwidth,
    roofline_points,
    stopwatch,
    union_law,
)
from moe_lessons.nn import LanguageModel, MoE, Routing, TransformerConfig, dense_twin, seeded

CONFIG = TransformerConfig(d_model=16, num_layers=2, d_ff=16, num_experts=8, top_k=2, max_positions=32)


def model_of(**changes) -> LanguageModel:
    with seeded(0):
        return LanguageModel(dataclasses.replace(CONFIG, **changes))


class UniformRouter(nn.Module):
    """Every token has K different experts, all sets equally likely: what the union law assumes."""

    def __init__(self, d_model, num_experts, top_k):
        super().__init__()
        self.num_experts, self.top_k = num_experts, top_k

    def forward(self, x):
        logits = torch.randn(len(x), self.num_experts)
        weights, indices = logits.softmax(dim=1).topk(self.top_k)
        return Routing.from_topk(logits, logits.softmax(dim=1), indices, weights)


# --- the union law -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_experts, top_k, batch", [(8, 2, 4), (8, 1, 8), (16, 4, 3), (5, 3, 2)])
def test_the_law_is_what_a_simulation_finds(num_experts, top_k, batch):
    trials = 4000
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(trials, batch, num_experts, generator=generator).argsort(dim=2)  # random sets of K
    counts = torch.tensor([len(set(trial.flatten().tolist())) for trial in order[:, :, :top_k]], dtype=torch.double)
    standard_error = counts.std() / trials**0.5
    assert abs(counts.mean() - union_law(num_experts, top_k, batch)) < 4 * standard_error


@given(num_experts=st.integers(1, 300), share=st.floats(0, 1), batch=st.integers(1, 500))
def test_the_law_at_its_ends_and_between(num_experts, share, batch):
    top_k = max(1, round(share * num_experts))
    distinct = union_law(num_experts, top_k, batch)
    assert union_law(num_experts, top_k, 1) == pytest.approx(top_k)
    assert union_law(num_experts, num_experts, batch) == num_experts
    assert top_k * (1 - 1e-9) <= distinct <= min(num_experts, batch * top_k) * (1 + 1e-9)
    assert union_law(num_experts, top_k, batch + 1) >= distinct


@pytest.mark.parametrize("arguments, name", [((8, 9, 1), "top_k"), ((0, 1, 1), "num_experts"), ((8, 2, 0), "batch")])
def test_sizes_that_the_law_refuses(arguments, name):
    with pytest.raises(ValueError, match=name):
        union_law(*arguments)


# --- distinct experts ----------------------------------------------------------------------------------------


def test_uniform_routing_follows_the_law():
    model = model_of(router=UniformRouter)
    with seeded(0):
        frame = distinct_experts(model, torch.randint(256, (64, 32)), draws=400)
    assert frame.groupby("layer").batch.apply(list).tolist() == [[1, 2, 4, 8, 16, 32, 64]] * 2
    assert (frame.distinct[frame.batch == 1] == 2).all()
    error = (frame.distinct - frame.union_law).abs()
    assert error.max() < 4 * 1.3 / 400**0.5  # a count of distinct experts varies by less than 1.3, here


def test_distinct_experts_are_those_of_the_routings():
    """With one position and all sequences in the batch there is one possible step: count it by hand."""
    model, ids = model_of(), torch.arange(5)[:, None]
    frame = distinct_experts(model, ids, (5,), draws=3)
    counted = [routing.expert_idx.unique().numel() for routing in model(ids)[1]]
    assert frame.distinct.tolist() == counted


def test_one_token_repeated_touches_k_and_a_full_mixture_all():
    same = torch.full((16, 4), 7)
    assert (distinct_experts(model_of(), same, (1, 8, 16)).distinct == 2).all()
    assert (distinct_experts(model_of(top_k=8), same, (1, 8)).distinct == 8).all()


def test_noise_of_training_does_not_count():
    model = model_of(router="gaussian noise").train()
    assert (distinct_experts(model, torch.full((16, 4), 7), (16,)).distinct == 2).all()
    assert model.training


def test_a_layer_is_an_moe_layer_and_the_seed_decides():
    ids = torch.arange(8 * 16).view(8, 16)
    model = model_of(moe_layers=(1,))
    assert set(distinct_experts(model, ids, (4,)).layer) == {0}
    first, again, other = (distinct_experts(model, ids, (4,), seed=seed) for seed in (0, 0, 1))
    assert first.equals(again) and not first.equals(other)


@pytest.mark.parametrize(
    "model, batch_sizes, message",
    [
        (model_of(moe_layers=()), (1,), "^model must contain a mixture of experts, got one without$"),
        (model_of(), (1, 5), r"^batch_sizes must be at most the number of sequences \(4\), got 5$"),
        (model_of(), (0,), "^batch_sizes must be a whole number of at least 1, got 0$"),
        (model_of(), (), "^batch_sizes must hold at least one number, got none$"),
        (model_of(), 4, r"^batch_sizes must be several whole numbers, as \(1, 4\), got 4$"),
        (model_of(router="expert choice"), (1,), "^model must decode with a cache, got one whose routing of a token"),
        (model_of(capacity_factor=0.5), (1,), "^model must decode with a cache, got one whose routing of a token"),
    ],
)
def test_what_distinct_experts_refuses(model, batch_sizes, message):
    with pytest.raises(ValueError, match=message):
        distinct_experts(model, torch.zeros(4, 3, dtype=torch.long), batch_sizes)


# --- decoding ------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Each step of a model with d_ff 16 takes 4 ms, of another one 1 ms, whatever the batch."""
    steps = []

    def measure(step):
        model, ids, cache = step.func, *step.args
        steps.append((model.config.d_ff, tuple(ids.shape), cache.length, model.training))
        step()
        return 4.0 if model.config.d_ff == 16 else 1.0

    monkeypatch.setattr(inference, "stopwatch", lambda threads, device: measure)
    return steps


def test_one_thread_is_timed_while_it_works_and_several_by_the_clock_on_the_wall(monkeypatch):
    cpu = torch.device("cpu")
    ticks = iter([1.0, 1.25])
    called = []
    monkeypatch.setattr(time, "thread_time", lambda: next(ticks))
    assert stopwatch(1, cpu)(lambda: called.append(1)) == 250 and called == [1]
    assert stopwatch(2, cpu) is stopwatch(1, torch.device("meta")) is timing.milliseconds
    coarse = SimpleNamespace(resolution=0.015)  # as on Windows
    monkeypatch.setattr(time, "get_clock_info", lambda name: coarse)
    assert stopwatch(1, cpu) is timing.milliseconds


@pytest.fixture
def threads(monkeypatch):
    """How many threads were asked for; more than one would wait for each other on a busy machine."""
    asked = []
    monkeypatch.setattr(inference, "torch_threads", lambda number: asked.append(number) or nullcontext())
    return asked


def test_speed_and_speed_up(clock):
    models = {"slow": model_of(), "fast": model_of(d_ff=8)}
    frame = decode_speed(models, (1, 4), repeats=3, num_tokens=2)
    assert frame.batch.tolist() == [1, 1, 4, 4] and frame.model.tolist() == ["slow", "fast"] * 2
    assert frame.tokens_per_second.tolist() == [250, 1000, 1000, 4000]
    assert frame.speedup.tolist() == frame.low.tolist() == frame.high.tolist() == [0.25, 1] * 2
    assert decode_speed(models, (1,), baseline="slow").speedup.tolist() == [1, 4]


def test_models_take_turns_and_decode_token_by_token(clock, threads):
    models = {"slow": model_of().train(), "fast": model_of(d_ff=8).eval()}
    decode_speed(models, (3,), repeats=1, num_tokens=2, prompt_length=5, threads=7)
    a_round = [(d_ff, (3, 1), length, False) for d_ff in (16, 8) for length in (5, 6)]
    assert clock == a_round * (timing.WARM_UP + 1)
    assert threads == [7]
    assert models["slow"].training and not models["fast"].training


def test_it_measures_a_real_model_and_leaves_it_alone():
    model = model_of()
    before = [weight.clone() for weight in model.parameters()]
    frame = decode_speed({"MoE": model, "dense": dense_twin(model, "total")}, (1, 2), repeats=2, num_tokens=1)
    assert (frame.tokens_per_second > 0).all() and (frame.low <= frame.speedup).all()
    assert frame.speedup[frame.model == "dense"].tolist() == [1, 1]
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters()))


@pytest.mark.parametrize(
    "models, arguments, message",
    [
        ({}, {}, "^models must hold at least one model, got none$"),
        ([model_of()], {}, "^models must be a dict of names and LanguageModels, got list$"),
        ({"a": MoE(4, 4, 4)}, {}, "^models must be a dict of names and LanguageModels, got MoE$"),
        ({"a": model_of()}, {"seed": "a"}, "^seed must be a whole number"),
        ({"a": model_of()}, {"baseline": "b"}, "^baseline must be one of 'a', got 'b'$"),
        ({"a": model_of()}, {"batch_sizes": (1, -2)}, "^batch_sizes must be a whole number of at least 1, got -2$"),
        ({"a": model_of()}, {"num_tokens": 0}, "^num_tokens must be"),
        ({"a": model_of()}, {"prompt_length": 30}, r"at most max_positions \(32\) of 'a', got 35$"),
        ({"a": model_of(router="expert choice")}, {}, "^models must decode with a cache, got 'a', whose router looks"),
    ],
)
def test_what_decode_speed_refuses(models, arguments, message):
    with pytest.raises(ValueError, match=message):
        decode_speed(models, **arguments)


# --- bytes, FLOPs, roof --------------------------------------------------------------------------------------


def test_bytes_of_dense_twins_are_all_their_weights():
    """Tied or not, the table of the head is read; an embedding that is only looked up is not."""
    tied, own = model_of(moe_layers=()), model_of(moe_layers=(), tied_embedding=False)
    assert bytes_per_step(tied) == bytes_per_step(own) == bytes_per_step(tied, 64) == 4 * count_parameters(tied).total


def test_bytes_of_a_mixture_lie_between_active_and_total():
    model = model_of()
    count = count_parameters(model)
    assert bytes_per_step(model, 1) == pytest.approx(4 * count.active)
    assert bytes_per_step(model, 1000) == pytest.approx(4 * count.total)
    expert = 4 * 2 * 3 * 16 * 16  # in both layers
    assert bytes_per_step(model, 8) == pytest.approx(4 * count.total - expert * (8 - union_law(8, 2, 8)))
    assert bytes_per_step(model.double(), 1) == pytest.approx(8 * count.active)


def test_a_shared_expert_is_always_read():
    moe = MoE(4, 16, num_experts=8, top_k=2, shared_d_ff=32)
    assert bytes_per_step(moe) == 4 * count_parameters(moe).active


def test_intensity_of_a_dense_model_is_half_the_batch():
    twin = dense_twin(MoE(16, 32, 8, 2), "total")
    assert [arithmetic_intensity(twin, batch) for batch in (1, 8, 64)] == [0.5, 4, 32]
    moe = MoE(16, 32, 8, 2)
    assert arithmetic_intensity(moe, 1) == 0.5
    assert arithmetic_intensity(moe, 8) == pytest.approx(4 * 2 / union_law(8, 2, 8), rel=0.1)  # the router aside


def test_the_roof():
    machine = Machine(bytes_per_second=10.0, flops_per_second=80.0)
    assert machine.ridge == 8
    assert [machine.attainable(intensity) for intensity in (0.5, 8, 100)] == [5, 80, 80]
    assert machine.seconds(num_bytes=20, flops=80) == 2 and machine.seconds(num_bytes=5, flops=80) == 1
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="^bytes_per_second must be"):
            Machine(bad, 1.0)
        with pytest.raises(ValueError, match="^flops_per_second must be"):
            Machine(1.0, bad)


def test_a_machine_is_the_best_of_its_tries(monkeypatch):
    times = iter([4000.0, 2000.0, 8000.0, 5000.0])  # reading, reading, arithmetic, arithmetic
    monkeypatch.setattr(inference, "stopwatch", lambda threads, device: lambda function: next(times))
    assert measure_machine(megabytes=1, width=10, repeats=2) == Machine(2**20 / 2, 2 * 10**3 / 5)


def test_measuring_is_possible_here(threads):
    machine = measure_machine(megabytes=1, width=32, repeats=1, threads=5)
    assert machine.ridge > 0 and product_bandwidth(0.5, threads=6) > 0
    assert threads == [5, 6]
    for arguments in ({"megabytes": 0}, {"width": 1.5}, {"repeats": 0}):
        with pytest.raises(ValueError, match=f"^{next(iter(arguments))} must be a whole number"):
            measure_machine(**arguments)
    with pytest.raises(ValueError, match="^megabytes must be a finite number above 0, got -1$"):
        product_bandwidth(-1)


def test_a_product_counts_the_bytes_of_its_matrix_and_takes_the_median(monkeypatch):
    times = cycle([1000.0, 2000.0, 100_000.0])
    monkeypatch.setattr(inference, "stopwatch", lambda threads, device: lambda function: next(times))
    assert product_bandwidth(2) == 2 * 2**20 / 2


def test_points_under_the_roof(clock):
    models = {"MoE": model_of(), "dense": model_of(d_ff=8, moe_layers=())}
    points = roofline_points(models, decode_speed(models, (1, 8)))
    assert points.name.tolist() == ["MoE", "dense"] * 2 and points.batch.tolist() == [1, 1, 8, 8]
    assert points.flops_per_second[2] == pytest.approx(8 * flops_per_token(models["MoE"]) / 0.004)
    assert points.intensity.tolist() == [arithmetic_intensity(models[n], b) for b in (1, 8) for n in models]
    with pytest.raises(ValueError, match="^model must be one of 'dense', got 'MoE'$"):
        roofline_points({"dense": models["dense"]}, decode_speed(models, (1,)))
