"""What is timed on a machine that others use says so, and nothing is said of one's own work."""

import os
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import contextmanager

import pytest
import torch

from moe_lessons.analysis import busy
from moe_lessons.analysis.inference import decode_speed
from moe_lessons.analysis.timing import take_turns
from moe_lessons.nn import LanguageModel, TransformerConfig

SAID = "of this machine: do not trust these times."


def work(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@contextmanager
def busy_processes():
    """One for each core."""
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
