"""Training and pictures take turns on the kernel's own event loop. Callbacks of widgets may arrive on another thread
(JupyterLab handles them on subshells): they post what is to be done, and the loop does it between two steps."""

import asyncio
import collections
import time
import weakref
from collections.abc import Callable
from typing import Any

from moe_lessons.nn import torch_threads
from moe_lessons.support.interrupts import heeding
from moe_lessons.support.static import static_mode
from moe_lessons.training import TrainingDiverged
from moe_lessons.widgets.kernel import is_cell, stop_at_once

FPS = 60  # pictures a second at most: a page that draws two at once gets fewer
SENDING = 0.03  # what a picture costs before any panel is drawn, as a part of what training costs: at most so much
TURN = 0.01  # seconds of training at once: then the kernel has a turn
TURNS = 3  # of the event loop after it: one message from the page needs several

INTERRUPTS = (KeyboardInterrupt, asyncio.CancelledError)  # all else is a fault of a learner's code: `sys.exit()`, too
_loops: "weakref.WeakSet[Loop]" = weakref.WeakSet()  # all that have trained: an interrupt pauses each


class Loop:
    """Train a view while it plays, and show it when a picture is due and its page is ready.

    It uses the view's `train_one()`, `step`, `apply(values)`, `canvas`, and `show(asked)` -> CPU seconds of sending;
    asked: it answers an action, at once. What goes wrong pauses the training, and is said in `trouble`.

    queue: what is to be done between two steps, in its order: actions, and values that controls ask for, by name.
    pace: steps a second at most, of which each is shown, until something is posted."""

    def __init__(self, view):
        self.view, self.events = view, event_loop()
        self.playing, self.trouble = False, ""
        self.cost = collections.Counter()  # CPU seconds: 'training', 'showing'; and 'pictures'
        self.budget = self.until = 0  # how many steps it was asked to train, and up to which: 0, not known
        self.pace: float | None = None
        self._held = 0  # steps that wait until the view is seen: see `hold`
        self._task: asyncio.Task | None = None
        self.queue: collections.deque[Callable[[], None] | dict[str, Any]] = collections.deque()
        self._busy = self._interrupted = self._ended = False
        self._unseen = False  # actions were done that no picture shows yet
        # of the last picture: when it was, after how much CPU time, and what pictures cost before any panel is drawn
        self._last, self._paid = 0.0, 0.0
        self._overhead = 0.001

    running = property(lambda self: self._task is not None and not self._task.done(), doc="Whether it trains now.")

    has_time = property(lambda self: bool(self.pace) or not self.playing, doc="Whether it waits between two steps.")

    def play(self, steps: int) -> None:
        self._check_open()
        self.playing, self._interrupted = True, False
        self.trouble = ""
        self.budget, self._held = steps, 0
        self.restart_budget()
        _loops.add(self)
        if not self.running:  # else it goes on, even if it was about to pause
            self._task = self.events.create_task(self._train())

    def hold(self) -> None:
        """Put off the training that was asked for until `release`, or until a cell waits for it."""
        self._held, self.playing, self.pace = self.budget * self.playing, False, None

    def release(self) -> None:
        if self._held:
            self.play(self._held)

    def restart_budget(self) -> None:
        """Count the steps that may be trained from here, if it trains."""
        self.until = self.view.step + self.budget if self.playing else 0

    def now(self, action: Callable[[], None]) -> None:
        """Do what was posted, then `action`, and show it."""
        self._check_open()
        if self._busy:  # this is posted itself: what was posted later comes later
            return action()
        self._do_actions()
        self._busy = True
        try:
            action()
        finally:
            self._busy = False
            self._do_actions()
            self._answer()

    def end(self) -> None:
        """Stop for good; what waits to be done, or is posted later, is forgotten."""
        self.playing, self._ended = False, True
        self.queue.clear()

    def post(self, asked: Callable[[], None] | dict[str, Any]) -> None:
        """Have it done between two steps, whichever thread this is called on."""
        self.pace = None
        self.queue.append(asked)
        on_the_loop(self.events, self._drain)

    async def finished(self) -> None:
        self.release()
        with heeding(lambda: not _pause_all()):
            try:
                while self.running:
                    await asyncio.sleep(0.02)
            except asyncio.CancelledError:  # by an interrupt, or for another reason, such as a time-out
                if not self._interrupted:
                    raise
        if self._interrupted:
            self._interrupted = False
            # in any task but the one in which the kernel runs a cell, a KeyboardInterrupt would end the kernel
            kind = KeyboardInterrupt if is_cell(asyncio.current_task()) else asyncio.CancelledError
            raise kind("the training is paused") from None
        stop_at_once()

    async def _train(self) -> None:
        try:
            while self.playing and self.view.step < self.until:
                start = time.perf_counter()
                with heeding(_pause_all), torch_threads(1):  # a second one waits long where the machine is busy
                    self._take_a_turn()
                for _ in range(TURNS):
                    await asyncio.sleep(0)
                if self.pace:
                    with heeding(_pause_all):
                        await asyncio.sleep(start + 1 / self.pace - time.perf_counter())
        except INTERRUPTS:
            raise
        except BaseException as error:
            self.trouble = error_sentence(error)
        finally:
            self.playing = False
            self.view.show(True)

    def _take_a_turn(self) -> None:
        start = time.perf_counter()
        while self.playing and self.view.step < self.until:
            cpu, shown = time.thread_time(), self.cost["showing"]
            self.view.train_one()
            self.cost["training"] += time.thread_time() - cpu - (self.cost["showing"] - shown)
            if self.queue or self._unseen or self.pace or self._is_due() or time.perf_counter() - start > TURN:
                break
        self._do_actions()
        self.show_if_due()

    def show_if_due(self) -> None:
        """Show the view while it trains, if it is time."""
        if self.playing and (self._unseen or self._is_due()):
            asked = self._unseen
            self._unseen = False
            cpu = time.thread_time()
            self._overhead += 0.2 * (self.view.show(asked) - self._overhead)
            self._last, self._paid = time.perf_counter(), time.thread_time()
            self.cost["showing"] += self._paid - cpu
            self.cost["pictures"] += 1

    def _is_due(self) -> bool:
        waited, earned = time.perf_counter() - self._last, time.thread_time() - self._paid
        canvas = self.view.canvas
        has_earned = self.pace or earned > self._overhead / SENDING
        return waited > 0.95 * canvas.behind / FPS and has_earned and canvas.ready

    def _drain(self) -> None:
        if self.queue and not self._busy and not self._ended:
            self._do_actions()
            self._answer()

    def _answer(self) -> None:
        """Show what was done: now or, while it trains, after the next step."""
        self._unseen = self.running
        if not self.running:
            self.view.show(True)

    def _do_actions(self) -> None:
        """Do what was posted, in its order; what goes wrong is said."""
        self._unseen |= bool(self.queue)
        busy = self._busy
        self._busy = True
        try:
            while self.queue:
                self._do(self.queue.popleft())
        finally:
            self._busy = busy

    def _do(self, asked: Callable[[], None] | dict[str, Any]) -> None:
        while not callable(asked) and self.queue and not callable(self.queue[0]):  # moved in a row: applied together
            asked = asked | self.queue.popleft()
        try:
            asked() if callable(asked) else self.view.apply_by_hand(asked)
        except INTERRUPTS:
            raise
        except BaseException as error:
            self.trouble = error_sentence(error)

    def _check_open(self) -> None:
        if self._ended:
            raise RuntimeError("this view is closed: run its cell again")


def _pause_all() -> bool:
    """Pause all training at an interrupt, which between cells the kernel would ignore; it need not hear of it."""
    for loop in [loop for loop in _loops if loop.running]:
        loop.playing, loop._interrupted = False, True
        loop.trouble = "Interrupted: the training is paused."
    return False


def event_loop() -> asyncio.AbstractEventLoop | None:
    """The kernel's own, in a cell: a callback may see another one. None where there is none, and on a static page."""
    try:
        return None if static_mode() else asyncio.get_running_loop()
    except RuntimeError:
        return None


def on_the_loop(events: asyncio.AbstractEventLoop | None, action: Callable[..., None], *arguments) -> None:
    """Have `action` done on an event loop, whichever thread this is called on; without a loop at once."""
    action(*arguments) if events is None else events.call_soon_threadsafe(action, *arguments)


def error_sentence(error: BaseException) -> str:
    """Return what went wrong, with the kind of error where that says more."""
    return str(error) if isinstance(error, TrainingDiverged | ValueError) else f"{type(error).__name__}: {error}"
