"""What tests of live views share: an event loop, buttons, and a page that answers."""

import asyncio
import functools
import time

from moe_lessons.widgets.picture import descendants

ENDLESS = 10**6  # steps; a test that trains so many has forgotten to stop


def on_a_loop(test):
    """Run a coroutine as a test, on an event loop of its own."""
    return functools.wraps(test)(lambda *args, **kwargs: asyncio.run(test(*args, **kwargs)))


async def until(condition) -> None:
    """Let the loop run until `condition()` holds."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")


async def settled() -> None:
    """Let the loop do what was queued."""
    for _ in range(5):
        await asyncio.sleep(0)


async def ended(view) -> None:
    """Pause a view and wait for it."""
    view.pause()
    await view.finished()


def work(seconds: float) -> None:
    """Use the processor for so long."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def button(view, name: str):
    """The one button or control of that name."""
    found = [child for child in descendants(view) if getattr(child, "description", "") == name]
    assert len(found) == 1, f"{len(found)} controls {name}"
    return found[0]


def words(view) -> str:
    """What the page says under the picture: the words, the reading and the trouble."""
    said = view.canvas.words
    return " ".join(said.get(name, "") for name in ("words", "reading", "trouble"))


def status(view) -> str:
    """The step and whether it trains, as the page says it."""
    return view.canvas.words["status"]


def mark(view, place: int, kind: type, number: int = 0):
    """A mark of the panel that was shown last at a place: the one of its kind with that number."""
    return [mark for mark in view.canvas.panels[place].marks if isinstance(mark, kind)][number]


def hear(canvas, content) -> None:
    """What a page says to a canvas."""
    canvas._handle_custom_msg(content, [])


def click(view, kind: str, index) -> None:
    """What the page says when something in the picture was clicked."""
    hear(view.canvas, {"pick": kind, "index": index})


def a_page(canvas, behind: float = 1.0) -> list:
    """A page that draws one picture of `behind` at once and says so; what it is sent is kept in the list."""
    sent = []

    def send(content, buffers=None):
        sent.append((content, buffers))
        if content.get("answer"):
            hear(canvas, {"drawn": content["frame"], "behind": behind})

    canvas.send = send
    hear(canvas, {"hello": True})
    return sent
