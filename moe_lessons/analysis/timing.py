"""Times of functions side by side: they take turns, since a machine is never idle, and never the same twice."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from moe_lessons.analysis.busy import watching_others
from moe_lessons.support.errors import check_positive_int

WARM_UP = 2  # rounds that are not measured


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios, and their quartiles: half of the pairs lay between `low` and `high`."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, a: Sequence[float], b: Sequence[float]) -> "Ratio":
        """Take the ratios a[i] / b[i], where the two were measured in the same round i."""
        return cls(*np.percentile([x / y for x, y in zip(a, b, strict=True)], [50, 25, 75]).tolist())

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


@watching_others()
def take_turns(functions: Sequence[Callable[[], object]], repeats: int, device=None) -> list[list[float]]:
    """Measure the milliseconds of each function in each of `repeats` rounds, in which each is called once, in order.
    device: the one that works, where there are several; None: the accelerator that is in use, if there is one."""
    check_positive_int("repeats", repeats)
    rounds = [[milliseconds(function, device) for function in functions] for _ in range(WARM_UP + repeats)]
    return [list(times) for times in zip(*rounds[WARM_UP:], strict=True)]


def milliseconds(function: Callable[[], object], device=None) -> float:
    """Measure how long one call takes, with the work that it leaves to a GPU. Where one thread does all of it, only the
    time counts that it was at work (but on Windows, which counts that badly)."""
    clock = own_clock(device)
    finish(device)
    start = clock()
    function()
    finish(device)
    return 1000 * (clock() - start)


def finish(device=None) -> None:
    """Wait for the work that was left to a device; None: to the accelerator that is in use, if there is one."""
    if not _is_processor(device):
        torch.accelerator.synchronize(device)


def own_clock(device=None) -> Callable[[], float]:
    """Choose the clock of `milliseconds`: of the time at work where one thread of the processor does all of it."""
    is_alone = torch.get_num_threads() == 1 and _is_processor(device)
    return time.thread_time if is_alone and platform.system() != "Windows" else time.perf_counter


def _is_processor(device) -> bool:
    return not torch.accelerator.is_available() if device is None else torch.device(device).type == "cpu"


def cpu_name() -> str:
    """Name the processor, where the system does not tell it (Linux does) by its family."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
