"""A view of training while it happens: a canvas, a bar of buttons, and a loop that trains."""

import functools
import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import ipywidgets as W
from IPython import get_ipython

from moe_lessons.analysis.traces import trace
from moe_lessons.nn import torch_threads
from moe_lessons.plots.marks import Panel
from moe_lessons.plots.panels import PANELS
from moe_lessons.plots.panels._history import num_experts
from moe_lessons.support.errors import check_positive_int, shown
from moe_lessons.tasks import PlaneTask
from moe_lessons.training import Run, TrainingDiverged, step_together
from moe_lessons.training.knobs import KNOBS
from moe_lessons.widgets.loop import INTERRUPTS, Loop, error_sentence
from moe_lessons.widgets.picture import Picture, tips
from moe_lessons.widgets.plane_readings import NUM_TOKENS, Plane, clean_load, read_plane
from moe_lessons.widgets.spec import Spec, State

PANELS_SHARE, READING_SHARE = 0.06, 0.01  # what all panels, and one costly reading, may cost, as a part of training
QUICK = 0.01  # CPU seconds: a panel that takes less is drawn anew for each action
TEXT_INTERVAL = 0.25  # seconds between two refreshes of the lines of text, whatever they cost: they would lag behind
NUM_POINTS = 1024  # on which the load without noise is measured
NUM_TRACED, NUM_TRACED_PER_DOMAIN = 24, 2  # sequences whose routing is read: in all, and of each domain at least

LIVE_RUN = Spec(title="Live training")

_views: dict[str, list[Picture]] = {}  # notebook cell -> the views that it made


class CachedReading(NamedTuple):
    """What was read of a model, or drawn. It is computed again where what it `depends_on` has changed; where only its
    `version` has, when training has paid for the last time, and where it does not train at full speed."""

    value: Any
    depends_on: tuple
    version: Any
    cost: float  # CPU seconds
    trained: float  # CPU seconds of training before it


class LiveRun(Picture):
    """Train one or several `Run`s in step, and draw them while they train.

    runs: a `Run`, or names and runs; the first is the one whose routing the panels show.
    panels: names from `plots.PANELS`, or functions of your own, view -> `plots.marks.Panel`.
    play: how many steps to train as soon as the view is made; on a static page, before the picture.
    max_steps: how many steps ▶ trains before it stops by itself.
    columns: how many panels stand in a row. One that needs a row, such as 'block', has it; None: each as it is made.
    spec, values: of a laboratory, see `Lab`.

    `await view.finished()` waits in a cell for the training to pause. A view ends when its cell runs again."""

    of_still = " A still of an earlier training: run this cell, and it trains live."
    pace: float | None = None  # steps a second of what trains by itself, until it is touched; None: as fast as it can

    def __init__(
        self, runs, panels=("loss", "load", "film"), *, play: int = 0, max_steps: int = 1500, columns: int | None = 3,
        spec: Spec = LIVE_RUN, values: Mapping[str, Any] = MappingProxyType({}),
    ):  # fmt: skip
        self.runs = {"model": runs} if isinstance(runs, Run) else runs
        if not isinstance(self.runs, dict) or not self.runs or not all(isinstance(r, Run) for r in self.runs.values()):
            raise ValueError(f"runs must be a Run or a dict of names and Runs, got {type(runs).__name__}")
        panels = panels if isinstance(panels, Sequence) and not isinstance(panels, str) else [panels]
        for panel in panels or ["none"]:
            if not callable(panel) and panel not in list(PANELS):
                raise ValueError(f"panels must be functions or of {', '.join(map(repr, PANELS))}, got {shown(panel)}")
        self.functions = [panel if callable(panel) else PANELS[panel] for panel in panels]
        self.max_steps = check_positive_int("max_steps", max_steps)
        most = min(len(self.functions), 12)
        self.columns = None if columns is None else min(check_positive_int("columns", columns), most)
        play = play and check_positive_int("play", play)
        self.spec = spec
        self.state = State(dict(values) | {"play": play, "max_steps": max_steps})
        self._cache: dict[Any, CachedReading] = {}  # by a name, panels by their places, and the 'lines' of text
        self._spent = 0.0  # CPU seconds of all of them
        self.loop = Loop(self)
        self._waits = bool(play) and self.loop.events is None  # nobody sees a picture before the training
        end_with_its_cell(self)
        super().__init__(rows=[W.Box(self.bar()).add_class("moe-bar"), *self.rows()])
        self._waits = False
        if play:
            self.play_as_at_first()

    def rows(self) -> list[W.Widget]:
        """Rows of widgets between the buttons and the picture."""
        return []

    @property
    def clean_load(self) -> list[float] | None:
        """The load (E,) of the layer that is shown, measured without noise; None where the task is not in the plane."""
        run = self.main_run
        if not isinstance(run.task, PlaneTask) or not run.num_experts:
            return None
        return self.read("clean load", lambda: clean_load(run, NUM_POINTS))

    def refresh(self) -> None:
        """Called before panels are drawn."""

    def picked(self, kind: str, index: int) -> None:
        """Select the token of the plane that was clicked; a laboratory knows a 'layer' and a 'model', too."""
        if kind == "token" and index < NUM_TOKENS:
            self.state.values = self.state.values | {"token": index}

    def reading_depends_on(self) -> tuple:
        """Return what a reading of the model depends on, beside the run and the step: the knobs that its modules
        keep."""
        return tuple(getattr(self.main_run.knobs, name) for name, knob in KNOBS.items() if knob.attribute)

    def words(self) -> str:
        """One line that says what is seen."""
        return ""

    def reading(self) -> str:
        """A second line, on what is selected."""
        return ""

    @property
    def main_run(self) -> Run:
        """The run whose routing is shown."""
        if not self.runs:
            raise RuntimeError("this view is closed: run its cell again")
        return next(iter(self.runs.values()))

    @property
    def step(self) -> int:
        """Return how many steps all runs were trained."""
        return min((len(run.records) for run in self.runs.values()), default=0)

    running = property(lambda self: self.loop.running, doc="Whether it trains now.")

    def play(self, steps: int | None = None) -> None:
        """Train `steps` more steps (max_steps) while the notebook stays usable; without an event loop, at once."""
        steps = self.max_steps if steps is None else check_positive_int("steps", steps)
        if self.loop.events is None:
            self.loop.until = self.step + steps
            self.advance(steps)
        else:
            self.loop.play(steps)
            self._show_buttons()

    def play_as_at_first(self) -> None:
        """Train as many steps as at first, and as slowly, so that one training can be compared with another."""
        self.play(self.state.values.get("play") or None)
        self.loop.pace = self.pace if self.state.values.get("play") and self.running else None

    def pause(self) -> None:
        """Stop after the step that is being computed."""
        self.loop.playing = False

    def hold(self) -> None:
        """Put off the training that was asked for until `release`, or until a cell waits for it."""
        self.loop.hold()

    def release(self) -> None:
        """Begin what `hold` put off, if nothing has begun it."""
        self.post(self.loop.release)

    def advance(self, steps: int) -> None:
        """Train `steps` steps now, before anything else happens, and show the last one."""
        check_positive_int("steps", steps)

        def train() -> None:
            self.loop.trouble = ""
            until = self.step + steps
            try:
                while self.step < until:
                    self.train_one()
            except TrainingDiverged as error:
                self.loop.trouble = str(error)

        self.loop.now(train)

    async def finished(self) -> "LiveRun":
        """Wait until the training pauses; return the view. The kernel's interrupt pauses it, and is passed on."""
        await self.loop.finished()
        return self

    def post(self, action: Callable[[], None]) -> None:
        """Have `action` done between two steps, whichever thread this is called on."""
        self.loop.post(action)

    def close(self) -> None:
        """End the training and remove the view with all its widgets."""
        if hasattr(self, "loop"):  # else it was refused when it was made
            self.loop.end()
            self.runs, self._cache = {}, {}
            self.state.ghost = None
            super().close()

    def train_one(self) -> None:
        """Train each run by one step, or none: all stay in step."""
        try:
            step_together(self.runs.values(), self.loop.show_if_due)
        except BaseException:
            self.went_back()
            raise

    def go_back(self) -> None:
        """Take back the last step of all runs."""
        for run in set(self.runs.values()):
            run.take_back()
        self.went_back()

    def went_back(self) -> None:
        """Forget what was read of steps that were taken back."""
        self._cache.clear()
        self.state.changes = sorted({min(change, self.step) for change in self.state.changes} - {0})

    def read(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make()` reads from the run that is shown, where it is costly, such as a trace: see
        `CachedReading`."""
        depends_on, version = (self.main_run, *self.reading_depends_on()), len(self.main_run.records)
        if self._is_stale(name, depends_on, version, READING_SHARE):
            self._compute(name, make, depends_on, version)
        return self._cache[name].value

    def _is_stale(self, name: Any, depends_on: tuple, version: Any, share: float) -> bool:
        cached = self._cache.get(name)
        if cached is None or cached.depends_on != depends_on:
            return True
        is_paid = self.loop.cost["training"] - cached.trained >= cached.cost / share
        return cached.version != version and (is_paid or self.loop.has_time)

    def _compute(self, name: Any, make: Callable[[], Any], depends_on: tuple, version: Any) -> Any:
        start, inside = time.thread_time(), self._spent
        with torch_threads(1):  # a second one waits long where the machine is busy
            value = make()
        cost = time.thread_time() - start - (self._spent - inside)  # without what was read inside
        self._spent += cost
        self._cache[name] = CachedReading(value, depends_on, version, cost, self.loop.cost["training"])
        return value

    @property
    def traced(self):
        """A table of who serves the tokens of a few held-out sequences, in the run that is shown: `analysis.trace`."""
        run = self.main_run
        num = max(NUM_TRACED // len(getattr(run.task, "domains", "x")), NUM_TRACED_PER_DOMAIN)
        return self.read("trace", lambda: trace(run.model, run.task, num))

    @property
    def plane(self) -> Plane:
        """The router of the run that is shown, without noise, over the plane; ValueError for another task."""
        run = self.main_run
        if not isinstance(run.task, PlaneTask):
            raise ValueError(f"panels that show the plane need a PlaneTask, got {type(run.task).__name__}")
        num_experts(self)  # refuses a model without experts
        return self.read("plane", lambda: read_plane(run, self.state.muted))

    def panels(self) -> list[Panel]:
        if self.loop.playing:  # what is cached may be of an earlier step
            self.refresh()
            return [self._draw(function) for function in self.functions]
        self._stale_panels(False)
        return [self._cache[place].value for place in range(len(self.functions))]

    def _draw(self, function: Callable[[Any], Panel]) -> Panel:
        panel = function(self)
        return panel if self.columns is None or panel.width == 12 else replace(panel, width=12 // self.columns)

    def _stale_panels(self, asked: bool) -> dict[int, Panel]:
        """Draw the panels anew that are no longer true. An answer has the quick ones; the costly ones follow."""
        self.refresh()
        # a panel that is drawn while it trains may show a reading of an earlier step: it is stale in the pause
        version = self.loop.playing, self.step, self.main_run.knobs.is_noisy, self.state.values
        version += len(self.state.changes), self.reading_depends_on()
        panels = {}
        share = PANELS_SHARE / len(self.functions)
        is_late = False
        for place, function in enumerate(self.functions):
            if place not in self.canvas.panels:  # the page has none there
                self._cache.pop(place, None)
            depends_on = (function, self.main_run)
            cached = self._cache.get(place)
            is_stale, is_quick = self._is_stale(place, depends_on, version, share), cached and cached.cost < QUICK
            if is_stale and asked and cached and not is_quick and self.loop.events:
                is_late = True
            elif is_stale or (asked and is_quick):
                panels[place] = self._compute(place, functools.partial(self._draw, function), depends_on, version)
        if is_late and not self.loop.playing:
            self.loop.events.call_soon(self.show, False)
        return panels

    def show(self, asked: bool = True) -> float:
        """Send what is to be seen; return the CPU seconds without those of the panels. asked: it answers an action."""
        if not self.runs or self._waits:  # not self.runs: closed meanwhile
            return 0.0
        words: dict[str, Any] = {}
        try:
            panels = self._stale_panels(asked)
            now = round(time.monotonic() / TEXT_INTERVAL)
            if asked or self._is_stale("lines", (), now, share=math.inf):
                words = self._compute("lines", self.lines, (), now)
        except INTERRUPTS:
            raise
        except BaseException as error:  # of a learner's model or panel
            if not self.canvas.frame:  # there was no picture yet
                raise
            self.pause()
            self.loop.trouble = error_sentence(error)
            panels = {}
            if any(has_diverged(run) for run in self.runs.values()):
                self.go_back()
                self.loop.trouble = "The last step was too large and is taken back: lower the learning rate to go on."
                panels, words = self._stale_panels(True), self.lines()
        start = time.thread_time()
        experts = (self.main_run.num_experts or [0])[0] * self.spec.has_chips
        words |= {"step": self.step, "state": "training" if self.loop.playing else "paused", "experts": experts}
        words |= {"trouble": self.loop.trouble, "until": self.loop.until}
        self.canvas.show(panels, len(self.functions), **words)
        self._show_buttons()
        return time.thread_time() - start

    def lines(self) -> dict[str, Any]:
        """The texts under the picture, and what the controls say when pointed at."""
        return {"words": self.words(), "reading": self.reading(), "tips": tips(self), "token": self.state.token}

    def sentence(self) -> str:
        return f"Step {self.step}. {self.words()}"

    def button(self, text: str, tip: str, action: Callable[[], None], **style: str) -> W.Button:
        """A button that has `action` done between two steps."""
        made = W.Button(description=text, tooltip=tip, **style)
        made.on_click(lambda _: self.post(action))
        return made

    def bar(self) -> list[W.Widget]:
        tip = f"Start or pause the training; it pauses by itself after {self.max_steps} steps"
        self._play_button = W.Button(description="Play", tooltip=tip, icon="play", button_style="primary")
        # what it said when it was clicked: what was asked before may start the training
        self._play_button.on_click(lambda _: self.post(self.pause if self.loop.playing else self.play))
        self._step_buttons = [
            self.button("Step", "Train one step", lambda: self.step_button(1)),
            self.button("+50", "Train 50 steps", lambda: self.step_button(50)),
        ]
        return [W.HTML(f'<span class="moe-title">{self.spec.title}</span>'), self._play_button, *self._step_buttons]

    def body(self) -> W.Widget:
        self.canvas.on_pick = self._heard
        return W.Box([self.canvas]).add_class("moe-body").add_class("moe-alone")

    def _heard(self, kind: str, index: int) -> None:
        self.forget() if kind == "take back" else self.post(lambda: self.picked(kind, index))

    def forget(self) -> None:
        """Forget what was asked and is not done yet, on whichever thread."""
        self.loop.queue.clear()

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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.written())})"

    def written(self) -> list[str]:
        """The arguments of a call that makes the same view, but for defaults."""
        values, usual = self.state.values, self.arguments()
        return [f"{name}={values[name]!r}" for name in usual if values[name] != usual[name]]

    def arguments(self) -> dict[str, Any]:
        """The arguments that `state.values` has, in the order in which they are written, each as it usually is."""
        usual = usual_arguments(type(self)) | self.spec.settings
        return {name: value for name, value in usual.items() if name in self.state.values}


def usual_arguments(kind: type) -> dict[str, Any]:
    """Return what each argument of a view is where it is not given."""
    parameters = inspect.signature(kind.__init__).parameters.items()
    return {name: argument.default for name, argument in parameters if argument.default is not argument.empty}


def has_diverged(run: Run) -> bool:
    """Return whether the last update was too large, which no step has noticed yet."""
    try:
        return not math.isfinite(run.evaluate(1)["loss"])
    except INTERRUPTS:
        raise
    except BaseException:
        return False


def end_with_its_cell(view: Picture) -> None:
    """Have a view ended when its cell runs again, or is deleted."""
    cell = _running_cell().get("cellId")
    if cell is not None:
        _views.setdefault(cell, []).append(view)
        events = get_ipython().events
        if _before_cell not in events.callbacks["pre_run_cell"]:
            events.register("pre_run_cell", _before_cell)


def _running_cell() -> dict[str, Any]:
    """Return what the page says of the notebook cell that runs now."""
    return (getattr(get_ipython(), "get_parent", dict)() or {}).get("metadata", {})


def _before_cell(info: Any = None) -> None:
    cell = _running_cell()
    for ended in (cell.get("cellId"), *cell.get("deletedCells", ())):
        for view in _views.pop(ended, ()):
            view.close()
