"""Timing side by side: who is called when, and what becomes of the times. No duration is asserted."""

import os
import platform
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import contextmanager

import pytest
import torch
from live_tools import work
from torch import nn

from moe_lessons.analysis import busy, timing
from moe_lessons.analysis.inference import decode_speed
from moe_lessons.analysis.timing import Ratio, milliseconds, paired_ratio, rounds_within, step_times, take_turns
from moe_lessons.nn import LanguageModel, MoE, TransformerConfig, torch_threads


def test_the_two_take_turns_the_ratio_is_the_median_over_pairs_and_step_times_are_of_one_thread():
    calls = []
    paired_ratio(lambda: calls.append("a"), lambda: calls.append("b"), repeats=3)
    assert calls == ["a", "b"] * (timing.WARM_UP + 3)
    ratio = Ratio.of([2, 4, 60, 4, 3], [1, 2, 20, 1, 1])  # 2, 2, 3, 4, 3
    assert ratio == Ratio(median=3, low=2, high=3)
    assert str(Ratio(1.254, 1.0, 2.0)) == "1.25 (1.00–2.00)"
    seen = []

    class Probe(nn.Linear):
        def forward(self, x):
            seen.append(torch.get_num_threads())
            return super().forward(x)

    with torch_threads(2):
        times = step_times({"probe": Probe(4, 4), "moe": MoE(4, 4, 3)}, torch.randn(6, 4), repeats=3)
        assert torch.get_num_threads() == 2
    assert {name: len(one) for name, one in times.items()} == {"probe": 3, "moe": 3} and set(seen) == {1}


def test_milliseconds_wait_for_a_gpu_and_are_of_one_thread_or_of_the_clock_on_the_wall(monkeypatch):
    order, ticks = [], iter([1.0, 1.25])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: order.append("wait"))
    assert milliseconds(lambda: order.append("call")) == 250
    assert order == ["wait", "call", "wait"]
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(time, "thread_time", iter([1.0, 1.25]).__next__)
    monkeypatch.setattr(time, "perf_counter", iter([1.0, 1.5] * 2).__next__)
    for threads, system, expected in ((1, "Linux", 250), (2, "Linux", 500), (1, "Windows", 500)):
        monkeypatch.setattr(platform, "system", lambda system=system: system)
        with torch_threads(threads):
            assert milliseconds(lambda: None) == expected


@pytest.mark.parametrize("seconds, rounds", [(1.0, 25), (0.001, 5), (1e9, 200)])
def test_rounds_fit_the_time_within_limits(seconds, rounds, monkeypatch):
    monkeypatch.setattr(timing, "milliseconds", lambda call: call() or 10)
    assert rounds_within(seconds, [lambda: None] * 4) == rounds


SAID = "of this machine: do not trust these times."


@contextmanager
def busy_processes():
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        yield time.sleep(0.3)
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_beside_busy_programs_it_is_said_once(capsys):
    model = LanguageModel(TransformerConfig(num_layers=1, num_experts=2))
    with busy_processes():
        take_turns([lambda: time.sleep(0.1)], repeats=3)
        said = capsys.readouterr().err
        assert said.startswith("Another program takes ") and said.count(SAID) == 1
        decode_speed({"model": model}, (1, 2, 4), repeats=20)  # in three rounds
        assert capsys.readouterr().err.count(SAID) == 1


def test_of_ones_own_work_nothing_is_said(monkeypatch, capsys):
    times = namedtuple("times", "user guest idle")  # a machine on which only this process works
    monkeypatch.setattr(busy.psutil, "cpu_times", lambda: times(time.process_time(), 0.0, time.monotonic()))
    with busy.watching_others():
        torch.randn(500, 500) @ torch.randn(500, 500)
        work(0.3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("is_static", [False, True])
def test_in_a_notebook_it_stands_below_the_cell_and_in_no_output_that_is_compared(is_static, monkeypatch):
    shown, updates = [], []
    handle = namedtuple("handle", "update")(lambda data, raw: updates.append(data))
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1" if is_static else "")
    monkeypatch.setattr(busy, "in_notebook", lambda: True)
    monkeypatch.setattr(busy, "display", lambda data, **options: shown.append(data) or handle)
    monkeypatch.setattr(busy, "_seconds_of_others", iter([0.0, 1e6]).__next__)
    with busy.watching_others():
        time.sleep(busy.SHORT + 0.05)
    assert (shown, len(updates)) == (([], 0) if is_static else ([{}], 1))
    assert all(SAID in data["text/plain"] for data in updates)
