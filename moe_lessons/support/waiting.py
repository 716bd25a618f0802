"""A word for whoever waits."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def saying(what: str, after: float = 1.5) -> Iterator[None]:
    """Print `what` on stderr if what is done inside takes longer than `after` seconds."""
    timer = threading.Timer(after, lambda: print(f"{what} … (Ctrl-C ends it)", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
