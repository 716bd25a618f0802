"""Interrupts (■ in a notebook, Ctrl-C on a terminal) that are heeded by work in progress instead of ending the code."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

# the first is held back first, and is the last whose own handler is put back: what that raises leaves nothing undone
SIGNALS = [getattr(signal, name) for name in ("SIGALRM", "SIGTERM", "SIGINT") if hasattr(signal, name)]


class heeding:
    """Call `hear` at each interrupt (or other signal) inside. The handler that was there before (the kernel's, Python's
    own) gets it too if `hear` returns True; if False, only who heeds around; if None, nobody."""

    def __init__(self, hear: Callable[[], bool | None], number: int = signal.SIGINT):
        self.hear, self.number, self.is_over = hear, number, False
        self.is_main = threading.current_thread() is threading.main_thread()  # no other is ever interrupted

    def __enter__(self) -> None:
        self.before = signal.getsignal(self.number)
        if self.is_main:
            signal.signal(self.number, self)

    def __exit__(self, *_) -> None:
        self.is_over = True  # others may stand before it now, and go in any order
        while self.is_main and isinstance(now := signal.getsignal(self.number), heeding) and now.is_over:
            signal.signal(self.number, now.before)

    def __call__(self, *args) -> None:
        heard = self.is_over or self.hear()
        while isinstance(self.before, heeding) and self.before.is_over:
            self.before = self.before.before
        if callable(self.before) and (heard or (heard is False and isinstance(self.before, heeding))):
            self.before(*args)


@contextmanager
def held_back() -> Iterator["Held"]:
    """Hold back what signals would do inside, such as raise KeyboardInterrupt, until the end."""
    held = Held()
    with ExitStack() as stack:
        stack.callback(held.deliver)
        for number in [number for number in SIGNALS if callable(signal.getsignal(number))]:
            stack.enter_context(heeding(partial(held.hear, number), number))
        yield held


class Held(list):
    """The signals that came meanwhile, and wait."""

    is_open = False

    def hear(self, number: int) -> bool | None:
        return True if self.is_open else self.append(number)

    def deliver(self) -> None:
        for number in [self.pop() for _ in range(len(self))]:
            signal.raise_signal(number)

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Let signals act inside, those that wait first."""
        self.is_open = True
        try:
            self.deliver()
            yield
        finally:
            self.is_open = False
