"""The load of other programs on the machine while something is timed."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import psutil
from IPython.display import display

from moe_lessons.support.static import in_notebook, static_mode

BUSY = 0.25  # the part of a machine from which on it matters that others take it
SHORT = 0.2  # seconds: in less, the system counts too coarsely


@dataclass
class Others:
    """What other programs took while something was timed, known when that has ended."""

    share: float = 0.0  # of the machine

    @property
    def are_busy(self) -> bool:
        """Tell whether it was so much that no time means much."""
        return self.share > BUSY


_watched: ContextVar[Others | None] = ContextVar("watched", default=None)


@contextmanager
def watching_others() -> Iterator[Others]:
    """Measure what other programs take of the machine meanwhile, and say so, once, where they are busy."""
    if others := _watched.get():  # who called this says it
        yield others
        return
    others = Others()
    token = _watched.set(others)
    start, before = time.monotonic(), seconds_of_others()
    try:
        yield others
    finally:
        _watched.reset(token)
    seconds = time.monotonic() - start
    if seconds > SHORT:
        others.share = (seconds_of_others() - before) / seconds / (os.cpu_count() or 1)
    if others.are_busy:  # in a notebook it comes after the outputs, which are compared
        sentence = f"Another program takes {100 * others.share:.0f} % of this machine: do not trust these times."
        if not in_notebook():
            print(sentence, file=sys.stderr)
        elif not static_mode():
            display({}, raw=True, display_id=True).update({"text/plain": sentence}, raw=True)


def seconds_of_others() -> float:
    """Count the CPU seconds of all processes but this one and those that it has started and that have ended, on all
    processors, since the machine has started. OSError where the system does not say."""
    times = psutil.cpu_times()._asdict()
    idle = sum(times.get(name, 0.0) for name in ("idle", "iowait", "guest", "guest_nice"))  # guests count as user too
    return sum(times.values()) - idle - sum(os.times()[:4])
