"""How long things take, side by side: functions take turns, since a machine is never idle, and never the same twice."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from moe_lessons.analysis.busy import watching_others
from moe_lessons.nn import torch_threads
from moe_lessons.support.errors import check_positive_int

WARM_UP = 2  # rounds that are not measured


@dataclass(frozen=True)
class Ratio:
    """Has the median of paired ratios, and their quartiles: half of the pairs lay between `low` and `high`."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, a: Sequence[float], b: Sequence[float]) -> "Ratio":
        """Take the ratios a[i] / b[i], where the two were measured in the same round i."""
        return cls(*np.percentile([x / y for x, y in zip(a, b, strict=True)], [50, 25, 75]).tolist())

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def paired_ratio(a: Callable[[], object], b: Callable[[], object], repeats: int = 20) -> Ratio:
    """Measure how many times as long `a` takes as `b`: they take turns `repeats` times, after a warm-up."""
    return Ratio.of(*take_turns([a, b], repeats))


@watching_others()
def take_turns(functions: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Measure the milliseconds of each function in each of `repeats` rounds, in which each is called once, in order."""
    check_positive_int("repeats", repeats)
    rounds = [[milliseconds(function) for function in functions] for _ in range(WARM_UP + repeats)]
    return [list(times) for times in zip(*rounds[WARM_UP:], strict=True)]


def milliseconds(function: Callable[[], object]) -> float:
    """Measure how long one call takes, with the work that it leaves to a GPU. Where one thread does all of it, only the
    time counts that it was at work (but on Windows, which counts that badly)."""
    wait = torch.accelerator.synchronize if torch.accelerator.is_available() else lambda: None
    clock = own_clock()
    wait()
    start = clock()
    function()
    wait()
    return 1000 * (clock() - start)


def own_clock() -> Callable[[], float]:
    """Choose the clock of `milliseconds`: of the time at work where one thread of the processor does all of it."""
    is_alone = torch.get_num_threads() == 1 and not torch.accelerator.is_available()
    return time.thread_time if is_alone and platform.system() != "Windows" else time.perf_counter


def step_times(models: Mapping[str, nn.Module], x: Tensor, repeats: int = 15) -> dict[str, list[float]]:
    """Measure the milliseconds for forward and backward of each model on `x` (T, D), in turns, with one thread."""

    def step(model: nn.Module) -> None:
        model.zero_grad(set_to_none=True)
        output = model(x)
        y = output[0] if isinstance(output, tuple) else output  # a mixture returns its routing too
        y.square().mean().backward()

    with torch_threads(1):
        times = take_turns([partial(step, model) for model in models.values()], repeats)
    return dict(zip(models, times, strict=True))


def cpu_name() -> str:
    """Name the processor, where the system does not tell it (Linux does) by its family."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
