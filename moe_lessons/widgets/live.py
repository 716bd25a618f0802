"""A view of training while it happens: a canvas, a bar of buttons, and a loop that trains."""

import functools
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import ipywidgets as W
import pandas as pd
from IPython import get_ipython

from moe_lessons.analysis.traces import trace
from moe_lessons.errors import NonFiniteError, check_positive_int
from moe_lessons.nn import torch_threads
from moe_lessons.plots import still
from moe_lessons.plots.marks import Panel
from moe_lessons.plots.panels import PANELS
from moe_lessons.plots.theme import THEMES, static_mode
from moe_lessons.training import Run, TrainingDiverged
from moe_lessons.widgets.canvas import LiveCanvas
from moe_lessons.widgets.loop import Loop, in_words
from moe_lessons.widgets.picture import descendants, mimebundle

PANELS_SHARE, READING_SHARE = 0.06, 0.01  # what all panels, and what one dear reading may cost, as a part of training
QUICK = 0.01  # CPU seconds: a panel that takes less is drawn anew for each action
TEXT_INTERVAL = 0.25  # seconds between two refreshes of the lines of text
NUM_TRACED, NUM_TRACED_PER_DOMAIN = 24, 2  # sequences whose routing is read: in all, and of each domain at least

_views: dict[str, tuple[int, list["LiveRun"]]] = {}  # notebook cell -> (its execution, the views that it made)


class Kept(NamedTuple):
    """Something that was read from a run: what it depends on, its CPU seconds, and how much training it followed."""

    value: Any
    run: Run
    stamp: tuple
    cost: float
    at: float


class LiveRun(W.VBox):
    """Trains one or several `Run`s in step, and draws them while they train.

    runs: a `Run`, or names and runs; the first is the one whose routing the panels show.
    panels: names from `plots.PANELS`, or functions of your own, view -> `plots.marks.Panel`.
    play: how many steps to train as soon as the view is made. On a static page they are trained before the picture.
    max_steps: how many steps ▶ trains before it stops by itself, so that a closed tab does not train for ever.
    columns: how many panels stand in a row.

    `await view.finished()` waits in a notebook cell for the training to pause. Running a cell again ends the views
    that it made before, and so does deleting it, when the next cell runs.
    """

    title = "Live training"
    usual_steps = 1500  # max_steps, where a subclass does not say otherwise
    can_reset = False  # whether there is a button for `reset`
    first_x = 200  # steps that the panels have room for at first
    layer = 0  # which MoE layer is shown, of several
    x_axis = "steps"  # what losses are drawn against
    clean_load: Sequence[float] | None = None  # the load measured without noise, where it is
    selected: Any = None  # the token or the tile that is selected

    def __init__(self, runs, panels=("loss", "load", "film"), *, play=0, max_steps=1500, columns: int | None = 3):
        self.runs = {"model": runs} if isinstance(runs, Run) else runs
        if not isinstance(self.runs, dict) or not self.runs or not all(isinstance(r, Run) for r in self.runs.values()):
            raise ValueError(f"runs must be a Run or a dict of names and Runs, got {type(runs).__name__}")
        self.panels = check_panels(panels)
        most = min(len(self.panels), 12)
        self.columns = None if columns is None else min(check_positive_int("columns", columns), most)
        self.max_steps = check_positive_int("max_steps", max_steps)
        play = check_positive_int("play", play) if play else 0
        self._arguments = [f"{n}={v}" for n, v, usual in
                           (("play", play, 0), ("max_steps", max_steps, self.usual_steps)) if v != usual]  # fmt: skip
        self.ghost: Run | None = None  # an earlier run, to compare with
        self.marks: list[int] = []  # steps after which a knob was moved
        self._kept: dict[Any, Kept] = {}
        self._inside = 0.0  # CPU seconds of what is read inside of what is being read
        self._lines_at, self._shown = 0.0, False
        self._late = self._is_late = False  # whether dear panels of a new start come now, or next
        self.canvas = LiveCanvas(lambda kind, index: self.post(lambda: self.picked(kind, index)))
        self.loop = Loop(
            self.train_one, lambda: self.step, self.settle, self.show, lambda: self.canvas.ready,
            lambda: self.canvas.behind,
        )  # fmt: skip
        self._register()
        super().__init__(self._rows())
        self.add_class("moe-view")
        tipped = [widget for widget in descendants(self) if getattr(widget, "tooltip", None)]
        self.tips = {widget.description: widget.tooltip for widget in tipped}
        self.show(True)
        _spare_what_is_loaded()
        if play:
            self.play(play)

    # --- what a subclass may change ---

    def controls(self) -> list[W.Widget]:
        """The widgets beside the picture."""
        return []

    def extra_rows(self) -> list[W.Widget]:
        """Rows of widgets between the buttons and the picture."""
        return []

    def settle(self) -> None:
        """Called between two steps, when actions have been done."""

    def stamp(self) -> tuple:
        """What a reading of the model depends on, beside the run and the step."""
        return (self.main_run.knobs.capacity_factor,)

    def words(self) -> str:
        """One line that says what is seen."""
        return ""

    def reading(self) -> str:
        """A second line, on what is selected."""
        return ""

    def picked(self, kind: str, index: int) -> None:
        """A 'token', 'layer' or 'model' was clicked."""

    def reset(self) -> None:
        """Start afresh with the same settings, where that can be."""

    # --- what a caller may do ---

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
        return self.loop.running

    def play(self, steps: int | None = None) -> None:
        """Train, at most `steps` more steps (default: max_steps), while the notebook stays usable.

        On a static page, and where no event loop runs, they are trained before it returns.
        """
        steps = self.max_steps if steps is None else check_positive_int("steps", steps)
        if self.loop.events is None or static_mode():
            self.advance(steps)
            self.show(True)
        else:
            self.loop.play(steps)
            self._show_buttons()

    def pause(self) -> None:
        """Stop after the step that is being computed."""
        self.loop.playing = False

    def advance(self, steps: int) -> None:
        """Train `steps` steps now, before anything else happens."""
        self.loop.advance(check_positive_int("steps", steps))

    async def finished(self) -> "LiveRun":
        """Wait until the training pauses; return the view. The kernel's interrupt pauses it, and is passed on."""
        await self.loop.finished()
        return self

    def post(self, action: Callable[[], None]) -> None:
        """Have `action` done between two steps, whichever thread this is called on."""
        self.loop.post(action)

    def close(self) -> None:
        """End the training and remove the view with all its widgets."""
        if not hasattr(self, "loop"):  # what was refused when it was made
            return
        self.loop.end()
        for child in descendants(self):
            for part in (child, child.layout, getattr(child, "style", child)):
                part.close()
        self.layout.close()
        self.runs, self.ghost, self._kept = {}, None, {}
        super().close()

    # --- training ---

    def train_one(self) -> None:
        """One step of each run. Where one fails, those before it take theirs back: all stay in step."""
        done = []
        try:
            for run in self.runs.values():
                run.step()
                done.append(run)
        except BaseException as error:
            for run in self.runs.values():
                if run in done:
                    run.take_back()
                elif isinstance(error, TrainingDiverged):
                    run.go_back()  # those that come after it may be about to diverge too
            self._kept.clear()  # what was read of an update that is taken back
            raise

    def go_back(self) -> None:
        """Take back the last update of all runs, and forget what was read of it."""
        for run in self.runs.values():
            run.go_back()
        self._kept.clear()

    # --- the picture ---

    def read(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make()` reads from the run that is shown: dear things, such as a trace. They are read anew when what
        they depend on has changed; where that is only the step, and it trains, when training has paid for the last."""
        kept, stamp = self._kept.get(name), (self.step, *self.stamp())
        if kept is not None and kept.run is self.main_run and kept.stamp[1:] == stamp[1:]:
            if kept.stamp == stamp or (self.loop.playing and not self._is_paid(kept, READING_SHARE)):
                return kept.value
        return self._keep(name, make, stamp)

    def _is_paid(self, kept: Kept, share: float) -> bool:
        return self.loop.cost["training"] - kept.at >= kept.cost / share

    def _keep(self, name: Any, make: Callable[[], Any], stamp: tuple = ()) -> Any:
        start, before, self._inside = time.thread_time(), self._inside, 0.0
        try:
            value = make()
        finally:
            seconds = time.thread_time() - start
            cost, self._inside = seconds - self._inside, before + seconds  # without what was read inside
        self._kept[name] = Kept(value, self.main_run, stamp, cost, self.loop.cost["training"])
        return value

    @property
    def traced(self) -> pd.DataFrame:
        """Who serves the tokens of a few held-out sequences, in the run that is shown: see `analysis.trace`."""
        run = self.main_run
        num = max(NUM_TRACED // len(getattr(run.task, "domains", "x")), NUM_TRACED_PER_DOMAIN)
        with torch_threads(1):  # a second one waits long where the machine is busy
            return self.read("trace", lambda: trace(run.model, run.task, num))

    def draw(self, place: int) -> Panel:
        """The panel at a place, as it is now."""
        panel = self.panels[place](self)
        return panel if self.columns is None else replace(panel, width=12 // self.columns)

    def _due(self, asked: bool) -> dict[int, Panel]:
        """The panels that are to be drawn anew. While it trains, each may cost its part of the training time. An action
        has the quick ones drawn at once; dear ones, where they have changed, follow in a picture of their own."""
        panels = {}  # one that is drawn while it trains may show a reading of an earlier step: it is due in the pause
        knobs = self.main_run.knobs.is_noisy, len(self.marks)
        stamp = (self.loop.playing, self.step, self.layer, self.x_axis, self.selected, *knobs, *self.stamp())
        for place, function in enumerate(self.panels):
            kept = self._kept.get(("panel", place, function))
            if kept is not None:
                is_quick, is_paid = kept.cost < QUICK, self._is_paid(kept, PANELS_SHARE / len(self.panels))
                has_changed = kept.run is not self.main_run or not self.loop.playing and kept.stamp != stamp
                if has_changed and not (is_quick or self._late or self.loop.events is None):
                    self._is_late = True
                    continue
                if not (has_changed or asked and is_quick or self.loop.playing and is_paid):
                    continue
            panels[place] = self._keep(("panel", place, function), functools.partial(self.draw, place), stamp)
        return panels

    def show(self, asked: bool) -> float:
        """Send what is to be seen to the page; return the CPU seconds without those of the panels. asked: it answers an
        action."""
        if not self.runs:  # closed meanwhile
            return 0.0
        self._late, self._is_late, playing = self._is_late, False, self.loop.playing
        lines = asked or not playing or time.monotonic() - self._lines_at > TEXT_INTERVAL
        words: dict[str, Any] = {}
        try:
            try:
                panels = self._due(asked)
            except NonFiniteError as error:  # the last update was too large, and no step has noticed it yet
                self.go_back()
                self.pause()
                self.loop.trouble = f"{error}; the last step is taken back: lower the learning rate to go on"
                panels = self._due(True)
            if lines:
                words, self._lines_at = self.lines(), time.monotonic()
        except Exception as error:  # a learner's model may raise here too
            if not self._shown:
                raise
            self.pause()
            self.loop.trouble, panels = in_words(error), {}
        start, self._shown = time.thread_time(), True
        words |= {"trouble": self.loop.trouble, "step": self.step, "status": self._status(), "tips": self.tips,
                  "experts": (self.main_run.num_experts or [0])[0],
                  "state": "training" if self.loop.playing else "paused"}  # fmt: skip
        if not static_mode():
            self.canvas.show(panels, count=len(self.panels), **words)
        self._show_buttons()
        if self._is_late:
            self.post(int)  # nothing but another picture
        return time.thread_time() - start

    tips: dict[str, str] = {}  # control -> what it does

    def lines(self) -> dict[str, Any]:
        """The texts under the picture, and what is selected in it."""
        return {"words": self.words(), "reading": self.reading()}

    def _status(self) -> str:
        state, steps = "training" if self.loop.playing else "paused", self.loop.ended_by_itself
        if steps:
            state += f" after {steps} step{'s' * (steps > 1)}, press Play for more"
        return f"step {self.step} · {state}"

    def picture(self, theme: str = "light") -> still.LessonFigure:
        """What is to be seen, as a figure of matplotlib."""
        panels = [self.draw(place) for place in range(len(self.panels))]
        return still.figure(panels, THEMES[theme], caption=self.description_of_picture())

    def description_of_picture(self) -> str:
        """The step and the line under the picture."""
        return f"Step {self.step}. {self.words()}"

    # --- the widgets ---

    def _rows(self) -> list[W.Widget]:
        def button(text: str, tooltip: str, action: Callable[[], None], **kwargs) -> W.Button:
            made = W.Button(description=text, tooltip=tooltip, **kwargs)
            made.on_click(lambda _: self.post(action))
            return made

        tip = f"Start or pause the training; it pauses by itself after {self.max_steps} steps"
        self._play_button = button("Play", tip, self._toggle, icon="play", button_style="primary")
        self._step_buttons = [
            button("Step", "Train one step", lambda: self.step_button(1)),
            button("+50", "Train 50 steps", lambda: self.step_button(50)),
        ]
        buttons = [self._play_button, *self._step_buttons]
        if self.can_reset:
            buttons += [button("Reset", "Start afresh with the same settings", self.reset, icon="undo")]
        bar = W.Box([W.HTML(f'<span class="moe-title">{self.title}</span>'), *buttons]).add_class("moe-bar")
        rows, controls = self.extra_rows(), self.controls()
        body = W.Box([self.canvas]).add_class("moe-body")
        if controls:
            body.children = (W.Box(controls).add_class("moe-controls"), self.canvas)
        else:
            body.add_class("moe-alone")
        return [bar, *rows, body]

    def _toggle(self) -> None:
        self.pause() if self.loop.playing else self.play()

    def step_button(self, steps: int) -> None:
        """The buttons 'Step' and '+50', which train only in a pause."""
        if not self.running:
            self.advance(steps)

    def _show_buttons(self) -> None:
        playing = self.loop.playing
        if playing != (self._play_button.description == "Pause"):
            self._play_button.description, self._play_button.icon = ("Pause", "pause") if playing else ("Play", "play")
            for button in self._step_buttons:
                button.disabled = playing

    def _register(self) -> None:
        """End the views that an earlier execution of the same cell made."""
        shell, cell = get_ipython(), running_cell()
        if cell is None:
            return
        events = getattr(shell, "events", None)
        if events is not None and _before_cell not in events.callbacks["pre_run_cell"]:
            events.register("pre_run_cell", _before_cell)
        execution, views = _views.get(cell, (shell.execution_count, []))
        if execution != shell.execution_count:
            end_views(cell)
            views = []
        _views[cell] = (shell.execution_count, [*views, self])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._arguments)})"

    def _repr_mimebundle_(self, include=None, exclude=None, **kwargs):
        return mimebundle(self, self.picture().png(), self.description_of_picture())


def check_panels(panels: Any) -> list[Callable[[Any], Panel]]:
    """The panels of those names, or ValueError for a name that is not known."""
    panels = (panels,) if isinstance(panels, str) or callable(panels) else panels
    if not isinstance(panels, Sequence) or not panels:
        got = "none" if isinstance(panels, Sequence) else repr(panels)
        raise ValueError(f"panels must name at least one of {', '.join(map(repr, PANELS))}, got {got}")
    for panel in panels:
        if not callable(panel) and panel not in PANELS:
            raise ValueError(f"panels must be functions or of {', '.join(map(repr, PANELS))}, got {panel!r}")
    return [panel if callable(panel) else PANELS[panel] for panel in panels]


def running_cell() -> str | None:
    """The id of the notebook cell that runs now."""
    return _asked_for().get("cellId")


def _asked_for() -> dict[str, Any]:
    """What the page says beside the code that it has run now."""
    parent = getattr(get_ipython(), "get_parent", dict)()
    return (parent or {}).get("metadata", {})


def _before_cell(info: Any = None) -> None:
    """Called before each cell: views of cells that were deleted end."""
    for cell in _asked_for().get("deletedCells", ()):
        end_views(cell)


def end_views(cell: str) -> None:
    """Close the views that a notebook cell has made."""
    for view in _views.pop(cell, (0, []))[1]:
        view.close()


@functools.cache
def _spare_what_is_loaded() -> None:
    """Tell the garbage collector, once, that what is loaded by now stays: else its full searches, through a million
    objects of torch and matplotlib, stop the picture for a fifth of a second now and then."""
    gc.collect()
    gc.freeze()
