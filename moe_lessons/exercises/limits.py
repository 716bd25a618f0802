"""An answer is run for ten seconds at most, and of what it prints the first lines are shown."""

import ctypes
import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

SECONDS, LINES, WIDTH = 10.0, 5, 200


class TimeUp(BaseException):
    """The time is up: not an Exception, so that `except Exception` of an answer does not catch it."""


def limited(call: Callable[[], Any]) -> Any:
    """Give what `call`() gives, or raise what it raises; after `SECONDS`, TimeUp.

    It runs in a thread, which is then interrupted. One that cannot be (it sleeps, or computes in C) is left behind.
    """
    found = Future()

    def work() -> None:
        try:
            found.set_result(call())
        except BaseException as raised:
            found.set_exception(raised)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        thread.join(SECONDS)
    finally:  # also where the user interrupts
        in_time = not thread.is_alive()
        for _ in range(0 if in_time else 50):  # again, since a bare `except:` catches it
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(TimeUp))
            thread.join(0.02)
            if not thread.is_alive():
                break
    if not in_time:
        raise TimeUp
    return found.result()


class FirstLines(io.TextIOBase):
    """Keeps the first lines of what is written to it, and counts the others."""

    def __init__(self):
        self.kept, self.lines = "", 0

    def write(self, text: str) -> int:
        if self.kept.count("\n") < LINES and len(self.kept) < LINES * WIDTH:
            self.kept += text[: LINES * WIDTH]
        self.lines += text.count("\n")
        return len(text)

    def __str__(self) -> str:
        shown = [line[:WIDTH] for line in self.kept.splitlines()[:LINES]]
        more = self.lines - len(shown)
        return "\n".join([*shown, *([f"… and {more:,} more lines"] if more > 0 else [])])


@contextmanager
def kept_short() -> Iterator[None]:
    """Print, at its end, the first lines of what is printed within it."""
    lines = FirstLines()
    try:
        with redirect_stdout(lines), redirect_stderr(lines):
            yield
    finally:
        if text := str(lines):
            print(text)
