"""Interrupts (■ in a notebook, Ctrl-C on a terminal) that are heeded by work in progress instead of ending the code."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial


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


def is_cell(task: asyncio.Task | None) -> bool:
    """Whether IPython's kernel runs a cell in this task."""
    return getattr(task and task.get_coro(), "__name__", "") == "run_cell_async"


def stop_at_once() -> None:
    """Have an interrupt end at once what a cell does after an await: from there on IPython's kernel would hear it only
    when the cell awaits again. When the cell ends, the kernel puts back the handler that was there before it."""
    task, before = asyncio.current_task(), signal.getsignal(signal.SIGINT)
    if not is_cell(task) or getattr(before, "task", None) is task:
        return

    def handler(*args) -> None:
        if asyncio.current_task() is task:  # else the event loop would end
            raise KeyboardInterrupt
        if callable(before):
            before(*args)

    handler.task = task
    signal.signal(signal.SIGINT, handler)


SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM") if hasattr(signal, name)]


@contextmanager
def held_back() -> Iterator["Held"]:
    """Hold back what signals would do inside, such as raise KeyboardInterrupt, until the end: in the main thread."""
    held, before = Held(), {}
    try:
        for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():
            if callable(handler := signal.getsignal(number)):
                before[number] = handler
                signal.signal(number, partial(held.take, handler))
        yield held
    finally:
        put_back(before)
        held.is_over = True
        held.give()


def put_back(handlers: dict[int, Callable]) -> None:
    """Make these the handlers of their signals, all of them, even if one that is back already raises meanwhile."""
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    except BaseException:
        put_back(handlers)
        raise


class Held:
    """The signals that came meanwhile."""

    def __init__(self):
        self.waiting, self.is_open, self.is_over = [], False, False

    def take(self, handler: Callable, *args) -> None:
        if not (self.is_open or self.is_over):
            self.waiting.append(partial(handler, *args))
            return
        self.is_open = False  # what follows from an exception is held back again
        handler(*args)
        self.is_open = True

    def give(self) -> None:
        """Have those that wait act now."""
        waiting, self.waiting = self.waiting, []
        for handle in waiting:
            handle()

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Let signals act inside, those that wait first."""
        self.is_open = True
        try:
            self.give()
            yield
        finally:
            self.is_open = False
