"""The load of other programs on the machine while something is timed."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import psutil
from IPython.display import display

from moe_lessons.support.static import in_notebook, static_mode

BUSY = 0.25  # the part of a machine from which on it matters that others take it
SHORT = 0.2  # seconds: in less, the system counts too coarsely

_is_watched = ContextVar("is_watched", default=False)


@contextmanager
def watching_others() -> Iterator[None]:
    """Say so, once, where other programs take so much of the machine meanwhile that no time means much."""
    if _is_watched.get():  # who called this says it
        yield
        return
    token, start, before = _is_watched.set(True), time.monotonic(), seconds_of_others()
    try:
        yield
    finally:
        _is_watched.reset(token)
    seconds = time.monotonic() - start
    share = (seconds_of_others() - before) / max(seconds, 1e-9) / (os.cpu_count() or 1)
    if seconds > SHORT and share > BUSY:  # in a notebook it comes after the outputs, which are compared
        sentence = f"Another program takes {share:.0%} of this machine: do not trust these times."
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
