"""Live views, on a real event loop: they train, pause, answer, and stay usable whatever happens."""

import asyncio
import functools
import gc
import signal
import types
import weakref

import numpy as np
import pytest
import torch
from ipywidgets.widgets import widget as ipywidgets
from live_tools import ENDLESS, LABS, a_page, button, ended, on_a_loop, settled, status, until, words, work

from moe_lessons.analysis.collapse import watched_run
from moe_lessons.nn import MoE, seeded, torch_threads
from moe_lessons.plots.marks import Bars, Panel
from moe_lessons.tasks import PlaneClassifier, PlaneTask
from moe_lessons.training import PRESETS, Run
from moe_lessons.widgets import LiveRun, canvas, live, loop

FIXED = Panel("fixed", [Bars(np.ones(2))])


class Task(PlaneTask):
    """Calls `at[n]()` while batch n is drawn, or `at["each"]()`: in the middle of a step."""

    def __init__(self, at: dict):
        super().__init__()
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "drawn", [])

    def batch(self, num_points, generator):
        if num_points == 32:  # else a panel reads the load
            self.drawn.append(num_points)
            self.at.get(len(self.drawn), self.at.get("each", int))()
        return super().batch(num_points, generator)


def make_run(task=None) -> Run:
    with seeded(0):
        model = PlaneClassifier(MoE(16, 4, num_experts=8, top_k=2), num_classes=8)
    return Run(model, task or PlaneTask(), lr=0.02, batch_size=32)


def make_view(task=None, **options) -> LiveRun:
    return LiveRun(make_run(task), **{"panels": ("loss", "load")} | options)


@on_a_loop
async def test_it_trains_as_many_steps_as_asked_and_by_itself_max_steps():
    view, alone = make_view(Task({"each": lambda: work(0.005)}), play=30, max_steps=12), make_run()
    assert view.running and view.step == 0  # nothing is trained before the cell has ended
    await until(lambda: view.step > 10)
    step = view.step
    view.pause()
    view.play(30 - step)  # before it has paused
    assert await view.finished() is view and view.step == 30 and status(view) == "paused"
    play = button(view, "Play")
    play.click()
    await until(lambda: play.description == "Pause")
    assert status(view) == "training" and button(view, "Step").disabled
    await view.finished()
    assert view.step == 42 and play.description == "Play"
    for name, steps in (("Step", 43), ("+50", 93)):
        button(view, name).click()
        await settled()
        assert view.step == view.canvas.words["step"] == steps
    assert [record.loss for record in view.main_run.records] == [alone.step().loss for _ in range(93)]  # drawn or not


class Faulty(PlaneClassifier):
    fault = None

    def forward(self, x):
        if self.fault:
            raise self.fault
        return super().forward(x)


@pytest.mark.parametrize("fault", [None, IndexError("expert 9"), SystemExit("expert 9"), BaseException("expert 9")])
@on_a_loop
async def test_when_one_of_several_runs_diverges_or_fails_all_stay_in_step_and_can_go_on(fault):
    runs = [watched_run(PRESETS["noise"]) for _ in range(3)]
    view = LiveRun(dict(zip("abc", runs)), ("loss", "cost"))  # the cost panel asks the models too
    view.advance(6)
    runs[1].model.__class__, runs[1].model.fault, runs[1].knobs.lr = Faulty, fault, 1e15
    view.play(20)
    await view.finished()
    steps = view.step
    assert {len(run.records) for run in runs} == {steps} and steps < 9 and status(view) == "paused"
    assert (f"{type(fault).__name__}: expert 9" if fault else "learning rate (now 1e+15)") in words(view)
    runs[1].model.fault, runs[1].knobs.lr = None, 0.01
    view.play(2)
    await view.finished()
    assert {len(run.records) for run in runs} == {steps + 2} and view.loop.trouble == ""


@on_a_loop
async def test_pictures_leave_training_its_share_and_one_that_is_not_drawn_is_followed_by_hardly_any(on_a_page):
    view, sent = make_view(Task({"each": lambda: work(0.004)})), []
    a_page(view.canvas, 1.0)
    view.play(ENDLESS)
    await until(lambda: view.loop.cost["training"] > 0.6)
    cost = view.loop.cost
    assert cost["pictures"] > 1 and cost["training"] > 0.85 * (cost["training"] + cost["showing"])
    view.canvas.send = lambda content, buffers: sent.append(content)
    view.canvas._patience = 1000  # seconds
    await until(lambda: not view.canvas.ready)
    step, count = view.step, len(sent)
    await until(lambda: view.step > step + 30)
    assert len(sent) == count <= canvas.IN_FLIGHT
    view.post(int)  # an action is answered, before the next step
    await until(lambda: view.step > step + 60)
    assert len(sent) == count + 1
    await ended(view)


@on_a_loop
async def test_costly_panels_and_readings_get_their_part_of_the_time_and_a_pause_shows_what_is_now():
    drawn, read = [], []

    def costly(view) -> Panel:
        drawn.append(view.loop.cost["training"])
        work(0.003)
        view.read("costly", lambda: (read.append(view.step), work(0.001)))
        return FIXED

    view = make_view(Task({"each": lambda: work(0.002)}), panels=(costly, "loss"))
    view.play(ENDLESS)
    await until(lambda: len(drawn) > 4 and len(read) > 3)
    view.pause()
    assert min(np.diff(sorted({*drawn}))) >= 2 * 0.003 / live.PANELS_SHARE
    await view.finished()
    assert read[-1] == view.step and [panel.width for panel in view.canvas.panels.values()] == [6, 6]


@on_a_loop
async def test_while_a_long_step_is_trained_pictures_come_between_its_runs():
    drawn, seen = [], []
    task = Task({"each": lambda: (drawn.append(torch.get_num_threads()), work(0.04))})
    with torch_threads(2):
        view = LiveRun({name: make_run(task) for name in "abc"}, ("loss",))
        view.canvas.send = lambda content, buffers: seen.append(len(drawn) % 3)
        view.canvas._patience = 0  # seconds: a page that is always worth a try
        view.play(6)
        await view.finished()
    assert {1, 2} <= set(seen) and view.step == 6 and set(drawn) == {1}  # with one thread


async def run_cell_async(cell) -> str:
    """As IPython's coroutine of this name, in which all that a cell raises ends."""
    try:
        await cell
    except BaseException as error:
        return type(error).__name__


async def in_a_kernel(cell) -> str:
    """Run a cell as ipykernel does, which cancels it at an interrupt (`_cancel_on_sigint`); return how it ended."""
    task, events = asyncio.ensure_future(run_cell_async(cell)), asyncio.get_running_loop()
    before = signal.signal(signal.SIGINT, lambda *_: events.call_soon_threadsafe(task.cancel))
    try:
        return await task
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("where", ["in a step", "between steps"])
@pytest.mark.parametrize("together", [False, True])
@on_a_loop
async def test_an_interrupt_pauses_all_and_ends_the_cell_that_waits_and_nothing_else(where, together):
    before, interrupt = signal.getsignal(signal.SIGINT), functools.partial(signal.raise_signal, signal.SIGINT)
    if where == "between steps":
        asyncio.get_running_loop().call_later(0.1, interrupt)
    views = [make_view(Task({5: interrupt} if where == "in a step" else {}), play=ENDLESS), make_view(play=ENDLESS)]
    waiting = asyncio.gather(*(view.finished() for view in views)) if together else views[0].finished()
    # a KeyboardInterrupt in a task other than the cell's would end the kernel
    assert await in_a_kernel(waiting) == ("CancelledError" if together else "KeyboardInterrupt")
    await until(lambda: not any(view.running for view in views))
    assert all("Interrupted: the training is paused." in words(view) and "paused" in status(view) for view in views)
    for view in views:  # also one that nobody has waited for
        step = view.step
        view.play(10)
        await view.finished()
        assert view.step == step + 10 and "Interrupted" not in words(view)
    assert signal.getsignal(signal.SIGINT) is before


@on_a_loop
async def test_who_waits_with_a_time_limit_stops_waiting_and_the_training_goes_on():
    view = make_view(play=ENDLESS)
    assert await in_a_kernel(asyncio.wait_for(view.finished(), 0.1)) == "TimeoutError"
    step = view.step
    await until(lambda: view.step > step + 5)
    await ended(view)


class Shell:
    """As much of a notebook's kernel as a view asks for: which cell runs, and which are deleted."""

    def __init__(self):
        self.cell, self.deleted, self.functions = "a", (), []
        register = lambda event, function: self.functions.append(function)  # noqa: E731
        self.events = types.SimpleNamespace(callbacks={"pre_run_cell": self.functions}, register=register)

    def get_parent(self):
        return {"metadata": {"cellId": self.cell, "deletedCells": list(self.deleted)}}

    def run(self, cell, deleted=()):
        self.cell, self.deleted = cell, deleted
        for function in self.functions:
            function(None)


@pytest.fixture
def shell(monkeypatch):
    made = Shell()
    monkeypatch.setattr(live, "get_ipython", lambda: made)
    monkeypatch.setattr(live, "_views", {})
    return made


@on_a_loop
async def test_running_a_cell_again_ends_the_views_that_it_made_and_no_others(shell, monkeypatch):
    monkeypatch.setattr(loop, "FPS", 1e-9)  # two train side by side, also without pictures
    earlier, late = [make_view(play=ENDLESS), make_view(play=ENDLESS)], []
    shell.run("b")
    other = make_view(play=ENDLESS)
    shell.run("a")
    with pytest.raises(ZeroDivisionError):  # it may fail halfway
        make_view(panels=(lambda view: 1 / 0,))
    shell.run("a")
    await until(lambda: other.step > 5)
    assert not any(view.running or view.comm for view in earlier) and other.running
    other.post(other.close)
    other.post(lambda: late.append("it is forgotten"))
    await until(lambda: not other.running)
    assert late == []


@pytest.mark.parametrize("make", [make_view, *LABS.values()], ids=["LiveRun", *LABS])
@on_a_loop
async def test_the_views_of_a_deleted_cell_end_when_the_next_cell_runs_and_leave_nothing(shell, make):
    make_view().close()  # else the first view of all is kept
    before = set(ipywidgets._instances)
    shell.run("c")
    view = make()
    view.play(ENDLESS)
    await until(lambda: view.step > 0)
    held = [weakref.ref(run) for run in view.runs.values()] + [weakref.ref(view.main_run.model)]
    shell.run("b")
    assert view.running
    shell.run("b", deleted=["c", "never seen"])
    view.post(int)  # a message that was on its way
    await until(lambda: not view.running)
    await settled()
    gc.collect()
    assert [ref() for ref in held if ref()] == []  # though a name still stands for the view
    assert set(ipywidgets._instances) == before
    gone, view = weakref.ref(view), None
    gc.collect()
    assert gone() is None
