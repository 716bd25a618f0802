"""Interrupts (■ in a notebook, Ctrl-C on a terminal) that are heeded by work in progress instead of ending the code."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def heeding(hear: Callable[[], bool]) -> Iterator[None]:
    """Call `hear` at each interrupt inside. Whoever heeds around this one hears it too; whatever else there was before
    (the kernel, Python itself) gets it where `hear` returns True. Only the main thread is ever interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = Handler(hear)
    handler.before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        handler.is_over = True  # others may stand before it now, and go in any order
        while isinstance(now := signal.getsignal(signal.SIGINT), Handler) and now.is_over:
            signal.signal(signal.SIGINT, now.before)


class Handler:
    before, is_over = None, False

    def __init__(self, hear: Callable[[], bool]):
        self.hear = hear

    def __call__(self, *args) -> None:
        is_passed_on, before = self.is_over or self.hear(), self.before
        while isinstance(before, Handler) and before.is_over:
            before = before.before
        if isinstance(before, Handler) or (is_passed_on and callable(before)):
            before(*args)
