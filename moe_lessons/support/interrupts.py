"""The interrupt of the kernel (■, or Ctrl-C in a terminal), heeded in several places at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Handler:
    """Tells all who heed an interrupt and, unless one of them keeps it, the handler that was there before."""

    def __init__(self):
        self.heeders: list[tuple[Callable[[], None], bool]] = []
        self.before = signal.signal(signal.SIGINT, self)

    def __call__(self, *args) -> None:
        kept = False
        for heed, keeps in list(self.heeders):
            heed()
            kept |= keeps
        if not kept and callable(self.before):
            self.before(*args)


@contextmanager
def heeding(heed: Callable[[], None], keeps: bool = True) -> Iterator[None]:
    """Have `heed()` called at each interrupt inside. keeps: it ends nothing else. Those that are inside at once may
    leave in any order; a thread that is not the main one is never interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    if not isinstance(handler, Handler):
        handler = Handler()
    handler.heeders.append((heed, keeps))
    try:
        yield
    finally:
        handler.heeders.remove((heed, keeps))
        while isinstance(last := signal.getsignal(signal.SIGINT), Handler) and not last.heeders:
            signal.signal(signal.SIGINT, last.before)  # one that lies under another's is left for the next who leaves
