"""Timing side by side: who is called when, and what becomes of the times. No duration is asserted."""

import platform
import time

import torch
from torch import nn

from moe_lessons.analysis import timing
from moe_lessons.analysis.timing import Ratio, milliseconds, paired_ratio, step_times
from moe_lessons.nn import MoE, torch_threads


def test_the_two_take_turns_and_the_ratio_is_the_median_over_pairs_and_not_of_medians():
    calls = []
    paired_ratio(lambda: calls.append("a"), lambda: calls.append("b"), repeats=3)
    assert calls == ["a", "b"] * (timing.WARM_UP + 3)
    ratio = Ratio.of([2, 4, 60, 4, 3], [1, 2, 20, 1, 1])  # 2, 2, 3, 4, 3
    assert ratio == Ratio(median=3, low=2, high=3)
    assert str(Ratio(1.254, 1.0, 2.0)) == "1.25 (1.00–2.00)"


def test_milliseconds_are_milliseconds_and_wait_for_a_gpu_before_and_after(monkeypatch):
    order, ticks = [], iter([1.0, 1.25])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: order.append("wait"))
    assert milliseconds(lambda: order.append("call")) == 250
    assert order == ["wait", "call", "wait"]


def test_one_thread_is_timed_while_it_works_and_several_by_the_clock_on_the_wall(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(time, "thread_time", iter([1.0, 1.25]).__next__)
    monkeypatch.setattr(time, "perf_counter", iter([1.0, 1.5] * 2).__next__)
    for threads, system, expected in ((1, "Linux", 250), (2, "Linux", 500), (1, "Windows", 500)):
        monkeypatch.setattr(platform, "system", lambda system=system: system)
        with torch_threads(threads):
            assert milliseconds(lambda: None) == expected


def test_step_times_are_of_every_model_with_one_thread():
    seen = []

    class Probe(nn.Linear):
        def forward(self, x):
            seen.append(torch.get_num_threads())
            return super().forward(x)

    with torch_threads(2):
        times = step_times({"probe": Probe(4, 4), "moe": MoE(4, 4, 3)}, torch.randn(6, 4), repeats=3)
        assert torch.get_num_threads() == 2
    assert {name: len(one) for name, one in times.items()} == {"probe": 3, "moe": 3} and set(seen) == {1}
