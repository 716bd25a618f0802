"""A view of training while it happens.

One owner trains and draws: an asyncio task on the kernel's own event loop trains until the next picture is due,
draws it, and gives the kernel a turn. Callbacks of widgets may arrive on another thread (JupyterLab handles them on
subshells), so they never touch a model: they queue what is to be done, and the loop does it between two steps.
"""

import asyncio
import collections
import functools
import gc
import html
import math
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import ipywidgets as W
from IPython import get_ipython

from moe_lessons.errors import NonFiniteError, check_positive_int
from moe_lessons.plots import THEMES, LiveFigure, Theme
from moe_lessons.training import Run, TrainingDiverged
from moe_lessons.widgets.figure_image import FigureImage, mimebundle, static_mode
from moe_lessons.widgets.front_end import FrontEnd
from moe_lessons.widgets.panels import LivePanel, check_panels
from moe_lessons.widgets.style import CSS

TURNS_PER_SECOND, TURNS = 12, 10  # of the event loop, and how many at once: one message from the page needs several
QUICK_ANSWER = 0.01  # seconds of training at most while something waits to be done
TEXT_INTERVAL = 0.5  # seconds between two refreshes of what is slow: text is the dearest thing to draw
SLOW_STEP = 0.008  # CPU seconds: where steps take longer, little changes from one picture to the next


class Pace(NamedTuple):
    """At most so many frames a second, and `training` times as much CPU time for training as for drawing."""

    frames: int
    training: float

    @property
    def between(self) -> float:
        """How many times its cost training must have had before a frame: the surplus pays for what is slow."""
        return 1.1 * self.training


QUICK, SLOW = Pace(TURNS_PER_SECOND, training=4.2), Pace(4, training=7.0)

_views: dict[str, tuple[int, list["LiveRun"]]] = {}  # notebook cell -> (its execution, the views that it made)


class LiveRun(W.VBox):
    """Trains one or several `Run`s in step, and draws them while they train.

    runs: a `Run`, or names and runs; the first is the one whose routing the panels show.
    panels: names from `widgets.panels.PANELS`, or `LivePanel`s of your own.
    play: how many steps to train as soon as the view is made. On a static page they are trained before the picture.
    max_steps: how many steps ▶ trains before it stops by itself, so that a closed tab does not train for ever.

    `await view.finished()` waits in a notebook cell for the training to pause. Running a cell again ends the views
    that it made before.
    """

    title = "Live training"

    def __init__(
        self,
        runs: Run | dict[str, Run],
        panels: tuple[str | LivePanel, ...] = ("loss", "load", "film"),
        *,
        play: int = 0,
        max_steps: int = 1500,
        columns: int = 3,
    ):
        self.runs = {"model": runs} if isinstance(runs, Run) else runs
        if not isinstance(self.runs, dict) or not self.runs or not all(isinstance(r, Run) for r in self.runs.values()):
            raise ValueError(f"runs must be a Run or a dict of names and Runs, got {type(runs).__name__}")
        self.panels = check_panels((panels,) if isinstance(panels, str) else panels)
        check_positive_int("columns", columns)
        self.max_steps = check_positive_int("max_steps", max_steps)
        if play:
            check_positive_int("play", play)
        self.x_axis = "steps"
        self.ghost: Run | None = None  # an earlier run, to compare with
        self.marks: list[int] = []  # steps after which a knob was moved
        self.columns = min(columns, len(self.panels))
        self._arguments = [f"play={play}"] if play else []
        self._arguments += [f"max_steps={max_steps}"] if max_steps != self.usual_steps else []
        self._changed: set[str] = set()  # controls that have moved and are not applied yet
        self._theme = "light"
        self._trouble = ""
        self._playing = False
        self._task: asyncio.Task | None = None
        self._until = 0
        self._interrupted = False
        self._unseen = False  # whether actions were done that no picture shows yet
        self._wants_text = False  # whether the next picture refreshes what is slow, save what is heavy
        self.looks = 0  # how often everything was refreshed, what is heavy too
        self._shown = False  # whether there is a picture already
        self._busy = False  # whether actions are being done now
        self._narrow = False  # whether the page has too little room for three panels in a row
        self._step_cost, self._frame_cost = 0.0, 0.02  # CPU seconds, smoothed
        self._worked = 0.0  # CPU seconds of training since the last frame
        self._owed = 0.5  # CPU seconds of training due before what is heavy: for past frames, and at first in advance
        self._frame_time, self._text_time = 0.0, -math.inf  # of the last frame, and of the last with all that is slow
        self._actions: collections.deque[Callable[[], None]] = collections.deque()
        self.cost = collections.Counter()  # CPU seconds: 'training', 'drawing'; and 'frames'
        try:
            self._loop = asyncio.get_running_loop()  # the kernel's own: a callback may see another one
        except RuntimeError:
            self._loop = None
        self._register()
        self._image = FigureImage(format="png", layout=W.Layout(width="100%", height="auto"))
        self._status, self._words, self._reading = W.HTML(), W.HTML(), W.HTML()
        self._front_end = FrontEnd()
        self._front_end.observe(lambda change: self.post(self._follow_page), ["dark", "narrow"])
        self._front_end.observe(lambda change: self.post(lambda: self.clicked(*change["new"][:2])), "click")
        super().__init__([W.HTML(CSS), *self._rows(), self._front_end])
        tipped = [widget for widget in _descendants(self) if getattr(widget, "tooltip", None)]
        self._front_end.tips = {widget.description: widget.tooltip for widget in tipped}
        self.add_class("moe-view")
        self._figure_key: tuple = ()
        self.rebuild_figure()
        self.show_frame()
        _spare_what_is_loaded()
        if play:
            self.play(play)

    # --- what a subclass may change -------------------------------------------------------------------------

    def controls(self) -> list[W.Widget]:
        """The widgets beside the picture."""
        return []

    def extra_rows(self) -> list[W.Widget]:
        """Rows of widgets between the buttons and the picture."""
        return []

    def apply(self, changed: Collection[str]) -> None:
        """Called between two steps when controls were marked: apply them. `changed` has their names."""

    def look(self) -> None:
        """Called before the panels are refreshed: compute what they share."""

    def words(self) -> str:
        """One line that says what is seen."""
        return ""

    def reading(self) -> str:
        """A second line, on what is selected."""
        return ""

    def arrange(self, makers: list[Callable], theme: Theme) -> LiveFigure:
        """The figure with the panels that `makers` make, in their order."""
        columns = min(self.columns, 2) if self._narrow else self.columns
        return LiveFigure(makers, columns, theme, 330 * columns - 10, caption_lines=int(static_mode()))

    def clicked(self, x: float, y: float) -> None:
        """The picture was clicked at x, y (0 to 1 from the top left)."""

    usual_steps = 1500  # max_steps, where a subclass does not say otherwise
    layer = 0  # which MoE layer is shown, of several
    can_reset = False  # whether there is a button for `reset`

    # --- what a caller may do -------------------------------------------------------------------------------

    @property
    def main_run(self) -> Run:
        """The run whose routing is shown."""
        return next(iter(self.runs.values()))

    @property
    def step(self) -> int:
        """How many steps were trained."""
        return len(self.main_run.records)

    @property
    def running(self) -> bool:
        """Whether it trains now."""
        return self._task is not None and not self._task.done()

    def play(self, steps: int | None = None) -> None:
        """Train, at most `steps` more steps (default: max_steps), while the notebook stays usable.

        On a static page, and where no event loop runs, they are trained before it returns.
        """
        steps = self.max_steps if steps is None else check_positive_int("steps", steps)
        if self._loop is None or static_mode():
            self.advance(steps)
            self.show_frame()
            return
        self._playing, self._trouble, self._interrupted = True, "", False
        self._budget, self._until = steps, self.step + steps
        self._show_buttons()
        if not self.running:  # else it goes on, even if it was about to pause
            self._task = self._loop.create_task(self._train())

    def pause(self) -> None:
        """Stop after the step that is being computed."""
        self._playing = False

    def advance(self, steps: int) -> None:
        """Train `steps` steps now, before anything else happens."""
        check_positive_int("steps", steps)
        self._do_actions()
        until = self.step + steps
        try:
            while self.step < until:
                self._step()
        except TrainingDiverged as error:
            self._trouble = str(error)

    async def finished(self) -> "LiveRun":
        """Wait until the training pauses; return the view. The kernel's interrupt pauses it, and is passed on."""
        try:
            while self.running:
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:  # the interrupt reached the cell that waits
            self._interrupt()
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt("the training is paused") from None
        return self

    def mark(self, name: str) -> None:
        """A control has moved: have it applied. Its value is read only then, so that of several the last one counts."""
        self.post(lambda: self._changed.add(name))

    @contextmanager
    def moving_controls(self) -> Iterator[None]:
        """Controls that are moved inside are applied together, at the end, and the picture shows it."""
        busy, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = busy
        self._do_actions()
        if not self.running:
            self.show_frame()

    def reset(self) -> None:
        """Start afresh with the same settings: `apply` is given the name 'afresh'."""
        self.mark("afresh")

    def post(self, action: Callable[[], None]) -> None:
        """Have `action` done between two steps, whichever thread this is called on."""
        self._actions.append(action)
        if self._loop is None:
            self._drain()
        else:
            self._loop.call_soon_threadsafe(self._drain)

    def close(self) -> None:
        """End the training and remove the view with all its widgets."""
        self.pause()
        for child in _descendants(self):
            for part in (child, child.layout, getattr(child, "style", child)):
                part.close()
        self.layout.close()
        super().close()

    # --- the loop -------------------------------------------------------------------------------------------

    async def _train(self) -> None:
        try:
            while self._playing and self.step < self._until:
                with self._interruptible():
                    self._train_a_turn()
                for _ in range(TURNS):
                    await asyncio.sleep(0)
        except Exception as error:
            self._trouble = _in_words(error)
        finally:
            self._playing = False
            self._show_buttons()
            self.show_frame(moving=False)

    def _train_a_turn(self) -> None:
        """Train until a frame is due, something waits to be done, or a twelfth of a second is over; do it, and draw."""
        start = time.perf_counter()
        while self._playing and self.step < self._until:
            self._timed_step()
            seconds, waits = time.perf_counter() - start, self._actions or self._unseen
            if (waits and seconds > QUICK_ANSWER) or seconds > 1 / TURNS_PER_SECOND or self._frame_is_due():
                break
        self._do_actions()
        if self._unseen or self._frame_is_due():
            self._draw_frame()

    def _timed_step(self) -> None:
        cpu = time.thread_time()
        self._step()
        worked = time.thread_time() - cpu
        self._step_cost += 0.2 * (worked - self._step_cost)
        self._worked, self._owed = self._worked + worked, max(self._owed - worked, 0.0)
        self.cost["training"] += worked

    @property
    def _pace(self) -> Pace:
        return SLOW if self._step_cost > SLOW_STEP else QUICK

    def _frame_is_due(self) -> bool:
        waited = time.perf_counter() - self._frame_time + self._frame_cost
        return waited > 1 / self._pace.frames and self._worked > self._pace.between * self._frame_cost

    def _draw_frame(self) -> None:
        cpu, before = time.thread_time(), self._text_time
        self.show_frame(moving=self._playing)
        drawing = time.thread_time() - cpu
        if self._text_time == before:  # an ordinary one, without what is heavy
            self._frame_cost += 0.2 * (drawing - self._frame_cost)
        self._worked, self._owed = 0.0, self._owed + self._pace.training * drawing
        self._frame_time = time.perf_counter()
        self.cost["drawing"] += drawing
        self.cost["frames"] += 1

    def _step(self) -> None:
        try:
            for run in self.runs.values():
                run.step()
        except TrainingDiverged:
            for run in self.runs.values():  # all of them: the others are about to diverge too
                run.go_back()
            raise

    def _drain(self) -> None:
        if self._actions and not self._busy:
            self._do_actions()
            if not self.running:
                self.show_frame()

    def _do_actions(self) -> None:
        anything, self._busy = bool(self._actions), True
        try:
            while self._actions:
                self._try(self._actions.popleft())
            self._try(self._settle)
        finally:
            self._busy = False
        self._unseen |= anything

    def _settle(self) -> None:
        changed, self._changed = self._changed, set()
        if changed:
            self.apply(changed)

    def _try(self, action: Callable[[], None]) -> None:
        """Do it; what goes wrong is said under the picture."""
        try:
            action()
        except Exception as error:
            self._trouble = _in_words(error)

    def restart_budget(self) -> None:
        """After a new start: count the steps that may be trained from here."""
        if self._playing:
            self._until = self.step + self._budget

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Between cells the kernel ignores an interrupt; here it pauses the training."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, lambda *_: self._interrupt())
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupt(self) -> None:
        self._playing, self._interrupted = False, True
        self._trouble = "Interrupted: the training is paused."

    def _register(self) -> None:
        """End the views that an earlier execution of the same cell made."""
        shell = get_ipython()
        parent = getattr(shell, "get_parent", dict)() if shell else {}
        cell = (parent or {}).get("metadata", {}).get("cellId")
        if cell is None:
            return
        execution, views = _views.get(cell, (shell.execution_count, []))
        if execution != shell.execution_count:
            for view in views:
                view.close()
            views = []
        _views[cell] = (shell.execution_count, [*views, self])

    # --- the picture ----------------------------------------------------------------------------------------

    def figure_depends_on(self) -> tuple:
        """What the axes of the figure depend on: where it has changed, the figure is made anew."""
        return self._theme, self._narrow, self.x_axis, self.ghost is None

    def rebuild_figure(self) -> None:
        """Make the figure anew where what it depends on has changed: this takes longer than a frame."""
        key = self.figure_depends_on()
        if key == self._figure_key:
            return
        self._figure_key = key
        makers = [lambda ax, theme, p=panel: p.make(self, ax, theme) for panel in self.panels]
        self._figure = self.arrange(makers, THEMES[self._theme])
        self._text_time = -math.inf

    def draw(self, text: bool = True, heavy: bool = True) -> None:
        """Give the panels what is known now, and draw them; without `text`, or what is `heavy`, only the others."""
        try:
            self._refresh(text, heavy)
        except NonFiniteError as error:  # the last update was too large, and no step has noticed it yet
            for run in self.runs.values():
                run.go_back()
            self.pause()
            self._trouble = f"{error}; the last step is taken back: lower the learning rate to go on"
            self._refresh(text, heavy)
        self._figure.caption = f"Step {self.step}. {self.words()}" if static_mode() else ""
        self._figure.draw(text)

    def _refresh(self, text: bool, heavy: bool) -> None:
        self.looks += heavy
        self.look()
        for spec, panel in zip(self.panels, self._figure.panels, strict=True):
            if (text or not spec.slow) and (heavy or not spec.heavy):
                spec.refresh(self, panel)

    def show_frame(self, moving: bool = False) -> None:
        """Draw, and send the picture and the lines under it to the page.

        While it is `moving`, what is slow waits for its time, until training has had its share for all that was drawn.
        An answer to an action comes with new lines under the picture at once, and with what is slow if it is wanted.
        """
        waited = time.monotonic() - self._text_time
        heavy = not moving or waited == math.inf or (waited > TEXT_INTERVAL and self._owed == 0 and not self._unseen)
        text, lines = heavy or self._wants_text, heavy or self._unseen
        self._unseen = self._wants_text = False
        words = reading = ""
        try:
            self.draw(text, heavy)
            self._text_time = time.monotonic() if heavy else self._text_time
            if lines:
                words, reading = self.words(), self.reading()
        except Exception as error:  # a learner's model may raise here too
            if not self._shown:
                raise
            self.pause()
            self._trouble = _in_words(error)
            self._figure.draw(text=True)
        kind = "jpeg" if moving else "png"
        if lines:
            trouble = f'<span class="moe-trouble">{html.escape(self._trouble)}</span> ' if self._trouble else ""
            self._words.value = f'<div class="moe-words">{trouble}{words}</div>'
            self._reading.value = f'<div class="moe-reading">{reading}</div>'
            self._image.tooltip = f"Step {self.step}. {words}"
        with self._image.hold_sync():
            self._image.format, self._image.value = kind, self._figure.encode(kind)
        state = "training" if self._playing else "paused"
        if not self._playing and self._until and self.step == self._until:
            steps = "1 step" if self._budget == 1 else f"{self._budget} steps"
            state = f"paused after {steps}, press Play for more"
        self._status.value = f'<span class="moe-status" data-step="{self.step}">step {self.step} · {state}</span>'
        self._shown = True

    def want_text(self) -> None:
        """Have the next picture show what is slow anew: for an action that changes it. What is heavy still waits."""
        self._wants_text = True

    def _follow_page(self) -> None:
        self._theme, self._narrow = "dark" if self._front_end.dark else "light", self._front_end.narrow
        self.rebuild_figure()

    # --- the widgets ----------------------------------------------------------------------------------------

    def _rows(self) -> list[W.Widget]:
        def button(text: str, tooltip: str, action: Callable[[], None], **kwargs) -> W.Button:
            made = W.Button(description=text, tooltip=tooltip, **kwargs)
            made.on_click(lambda _: self.post(action))
            return made

        self._play_button = button(
            "Play",
            f"Start or pause the training; it pauses by itself after {self.max_steps} steps",
            lambda: self.pause() if self._playing else self.play(),
            icon="play",
            button_style="primary",
        )
        self._step_buttons = [
            button("Step", "Train one step", lambda: self._advance_paused(1)),
            button("+50", "Train 50 steps", lambda: self._advance_paused(50)),
        ]
        buttons = [self._play_button, *self._step_buttons]
        if self.can_reset:
            buttons += [button("Reset", "Start afresh with the same settings", self.reset, icon="undo")]
        bar = W.Box([W.HTML(f'<span class="moe-title">{self.title}</span>'), *buttons, self._status])
        bar.add_class("moe-bar")
        body = W.Box([W.VBox([self._image, self._words, self._reading], layout=W.Layout(min_width="0"))])
        body.add_class("moe-body")
        controls = self.controls()
        if controls:
            beside = W.Box(controls, layout=W.Layout(min_width="0"))
            beside.add_class("moe-controls")
            body.children = (beside, *body.children)
        else:
            body.add_class("moe-alone")
        return [bar, *self.extra_rows(), body]

    def _advance_paused(self, steps: int) -> None:
        if not self.running:
            self._trouble = ""
            self.advance(steps)

    def _show_buttons(self) -> None:
        self._play_button.description = "Pause" if self._playing else "Play"
        self._play_button.icon = "pause" if self._playing else "play"
        for button in self._step_buttons:
            button.disabled = self._playing

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._arguments)})"

    def _repr_mimebundle_(self, include=None, exclude=None, **kwargs):
        self.draw()
        data, metadata = mimebundle(self, self._figure.encode("png"), repr(self))
        metadata["image/png"]["alt"] = f"Step {self.step}. {self.words()}"
        return data, metadata


@functools.cache
def _spare_what_is_loaded() -> None:
    """Tell the garbage collector, once, that what is loaded by now stays: else its full searches, through a million
    objects of torch and matplotlib, stop the picture for a fifth of a second now and then."""
    gc.collect()
    gc.freeze()


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, (TrainingDiverged, ValueError)) else f"{type(error).__name__}: {error}"


def _descendants(widget: W.Widget) -> Iterator[W.Widget]:
    for child in getattr(widget, "children", ()):
        yield from _descendants(child)
        yield child
