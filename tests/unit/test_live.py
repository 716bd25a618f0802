"""Live views, on a real event loop: they train, pause, answer, and stay usable whatever happens."""

import asyncio
import functools
import gc
import signal
import threading
import time
import types
import weakref

import numpy as np
import pytest
import torch
from ipywidgets.widgets import widget as ipywidgets
from live_tools import ENDLESS, LABS, a_page, button, click, ended, on_a_loop, settled, status, until, words, work

from moe_lessons.analysis.collapse import watched_run
from moe_lessons.nn import MoE, NoisyTopKRouter, seeded, torch_threads
from moe_lessons.plots.marks import Bars, Panel
from moe_lessons.tasks import PlaneClassifier, PlaneTask
from moe_lessons.training import PRESETS, Run
from moe_lessons.widgets import LiveRun, canvas, live, loop


def make_run(task=None, seed: int = 0, noise_std: float = 0.0) -> Run:
    with seeded(seed):
        router = NoisyTopKRouter(16, 8, 2, noise="gaussian", noise_std=noise_std)
        model = PlaneClassifier(MoE(16, 4, num_experts=8, top_k=2, router=router), num_classes=8)
    return Run(model, task or PlaneTask(), lr=0.02, batch_size=32, seed=seed)


def make_view(task=None, **options) -> LiveRun:
    return LiveRun(make_run(task), **{"panels": ("loss", "load")} | options)


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


@on_a_loop
async def test_it_trains_as_many_steps_as_asked_and_by_itself_max_steps():
    view, alone = make_view(Task({"each": lambda: work(0.005)}), play=30, max_steps=12), make_run()
    assert view.running and view.step == 0  # nothing is trained before the cell has ended
    view.play(2000)
    await until(lambda: view.step > 10)
    assert view.canvas.words["until"] == 2000 and status(view) == "training"
    step = view.step
    view.pause()
    view.play(30 - step)  # before it has paused
    assert await view.finished() is view
    assert view.step == 30 and not view.running
    said = view.canvas.words
    assert said["step"] == said["until"] == 30 and said["budget"] == 30 - step and status(view) == "paused"
    view.play()
    await view.finished()
    assert view.step == 42 and await view.finished() is view  # at once
    assert [record.loss for record in view.main_run.records] == [alone.step().loss for _ in range(42)]  # drawn or not


@on_a_loop
async def test_two_views_train_at_once_and_the_notebook_stays_usable(monkeypatch):
    monkeypatch.setattr(loop, "FPS", 1e-9)  # also between two pictures
    one, two, answered = make_view(play=ENDLESS), make_view(play=ENDLESS), []
    await until(lambda: one.step > 5 and two.step > 5)
    step = one.step
    asyncio.get_running_loop().call_later(0.05, answered.append, 1)  # as a message from the page
    await until(lambda: answered)
    assert one.step > step and one.loop.cost["pictures"] == 0
    await ended(one), await ended(two)


@on_a_loop
async def test_buttons_play_pause_and_train_steps_in_a_pause():
    view = make_view()
    play = button(view, "Play")
    for name, steps in (("Step", 1), ("+50", 51)):
        button(view, name).click()
        await settled()
        assert view.step == view.canvas.words["step"] == steps
    play.click()
    await until(lambda: view.step > 51)
    assert play.description == "Pause" and "training" in status(view) and button(view, "Step").disabled
    play.click()
    await until(lambda: not view.running)
    assert play.description == "Play" and not button(view, "Step").disabled
    before = view.step
    view.play(20)
    button(view, "+50").click()  # left alone
    await view.finished()
    assert view.step == before + 20


class Faulty(PlaneClassifier):
    broken = None

    def forward(self, x):
        if self.broken:
            raise self.broken
        return super().forward(x)


@pytest.mark.parametrize("why", ["second diverges", "all diverge", IndexError("expert 9"), BaseException("expert 9")])
@on_a_loop
async def test_when_one_of_several_runs_fails_all_stay_in_step_and_can_go_on(why):
    fault = why if isinstance(why, BaseException) else None
    runs = [watched_run(PRESETS["noise"]) for _ in range(3)]
    view = LiveRun(dict(zip("abc", runs)), ("loss", "cost"))  # the cost panel asks the models too
    view.advance(6)
    weights = [p.detach().clone() for p in runs[0].model.parameters()]
    runs[1].model.__class__, runs[1].model.broken = Faulty, fault
    for run in runs if why == "all diverge" else runs[1:2]:
        run.knobs.lr = 0.01 if fault else 1e15
    view.play(20)
    await view.finished()
    steps, said = view.step, f"{type(fault).__name__}: expert 9" if fault else "lower the learning rate (now 1e+15)"
    assert {len(run.records) for run in runs} == {steps} and steps < 9
    assert said in words(view) and "paused" in status(view) and button(view, "Play")
    assert all(p.abs().max() < 100 for run in runs for p in run.model.parameters())
    assert not fault or all(map(torch.equal, weights, runs[0].model.parameters()))
    assert all(len(run.expert_gradients) == steps for run in runs)
    runs[1].model.broken = None
    for run in runs:
        run.knobs.lr = 0.01
    view.play(2)
    await view.finished()
    assert {len(run.records) for run in runs} == {steps + 2} and view.loop.trouble == ""
    states = [[generator.get_state() for generator in run.generators] for run in runs]
    assert all(torch.equal(*pair) for other in states[1:] for pair in zip(states[0], other))  # the data to come


FIXED = Panel("fixed", [Bars(np.ones(2))])


def steps_of(seconds: float, **options) -> LiveRun:
    return make_view(Task({"each": functools.partial(work, seconds)}), **options)


def costly_panel(drawn: list, seconds: float):
    """A panel that takes so much CPU time, and notes how much training there had been before."""

    def panel(view) -> Panel:
        drawn.append(view.loop.cost["training"])
        work(seconds)
        return FIXED

    return panel


@pytest.mark.parametrize("behind", [1.0, 10.0])
@on_a_loop
async def test_the_page_gets_the_pictures_that_it_can_draw_and_training_its_share(behind, on_a_page):
    view = steps_of(0.004, panels=("loss", "load", "film"))
    a_page(view.canvas, behind)
    await settled()
    start, cpu = time.perf_counter(), time.thread_time()
    view.play(ENDLESS)
    await until(lambda: view.loop.cost["training"] > 0.6)
    view.pause()
    cost, cpu, seconds = view.loop.cost, time.thread_time() - cpu, time.perf_counter() - start
    assert 1 < cost["pictures"] <= 1.1 * loop.FPS / view.canvas.behind * seconds + 2
    assert cost["training"] / cpu > 0.85 and view.canvas.behind == behind
    await view.finished()


@on_a_loop
async def test_to_a_page_that_does_not_draw_hardly_anything_is_sent_but_answers(on_a_page):
    view, sent, asked_at = make_view(), [], []
    view.canvas.send = lambda content, buffers: sent.append(content)
    view.canvas._patience = 1000  # seconds
    view.play(ENDLESS)
    await until(lambda: not view.canvas.ready)
    step = view.step
    await until(lambda: view.step > step + 60)
    assert len(sent) <= canvas.IN_FLIGHT
    view.post(lambda: asked_at.append((view.step, len(sent))))
    await until(lambda: view.step > step + 120)
    (step, count), answer = asked_at[0], sent[-1]
    assert len(sent) == count + 1 and answer["words"]["step"] == step  # before the next step
    await ended(view)


@on_a_loop
async def test_costly_panels_and_readings_of_your_own_get_their_part_of_the_time(monkeypatch):
    monkeypatch.setattr(live, "TEXT_INTERVAL", 1e-9)
    drawn, read = [], []

    def reading(view) -> Panel:
        view.read("costly", lambda: (read.append(view.loop.cost["training"]), work(0.001)))
        return FIXED

    view = steps_of(0.002, panels=(costly_panel(drawn, 0.003), reading))
    view.play(ENDLESS)
    await until(lambda: len(drawn) > 4 and len(read) > 3)
    view.pause()
    assert min(np.diff(sorted({*drawn}))) >= 2 * 0.003 / live.PANELS_SHARE
    assert min(np.diff(sorted({*read}))) >= 0.001 / live.READING_SHARE
    await view.finished()
    assert [panel.width for panel in view.canvas.panels.values()] == [6, 6]
    assert view._kept["costly"].state == view.step  # a picture that stays shows what is now


@on_a_loop
async def test_while_a_long_step_is_trained_pictures_come_between_its_runs():
    drawn, seen = [], []
    task = Task({"each": lambda: (drawn.append(1), work(0.04))})
    view = LiveRun({name: make_run(task) for name in "abc"}, ("loss",))
    view.canvas.send = lambda content, buffers: seen.append(len(drawn) % 3)
    view.canvas._patience = 0  # seconds: a page that is always worth a try
    view.play(6)
    await view.finished()
    assert {1, 2} <= set(seen) and view.step == 6
    share = view.loop.cost["training"] / sum(view.loop.cost[name] for name in ("training", "showing"))
    assert share > 0.85 and view.loop.cost["training"] < 6 * 3 * 0.1  # what it shows is not counted as training


def test_a_view_trains_and_reads_with_one_thread():
    seen = []
    with torch_threads(2):
        task = Task({"each": lambda: seen.append(torch.get_num_threads())})
        view = make_view(task, panels=(lambda view: seen.append(torch.get_num_threads()) or FIXED))
        view.advance(2)
        assert seen and set(seen) == {1} and torch.get_num_threads() == 2


@on_a_loop
async def test_actions_are_done_in_their_order_and_one_that_fails_is_said_in_words(monkeypatch):
    view, done = make_view(), []
    monkeypatch.setattr(LiveRun, "picked", lambda self, *pick: done.append(pick))
    for number in range(3):
        view.post(functools.partial(done.append, number))
        view.post(lambda: int("<b>"))
        click(view, "token", number)
    assert done == []
    await settled()
    assert done == [0, ("token", 0), 1, ("token", 1), 2, ("token", 2)] and "with base 10: '<b>'" in words(view)
    view.play(20)
    other = threading.Thread(target=lambda: view.post(lambda: done.append(threading.current_thread())))
    other.start(), other.join()
    assert len(done) == 6  # not on the other thread
    view.post(lambda: 1 / 0)
    await until(lambda: "ZeroDivisionError: division by zero" in words(view))
    await view.finished()
    assert view.step == 20 and done[-1] is threading.current_thread()


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


def interrupt():
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def handler():
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("where", ["in a step", "between steps"])
@pytest.mark.parametrize("together", [False, True])
@on_a_loop
async def test_an_interrupt_pauses_all_and_ends_the_cell_that_waits_and_nothing_else(where, together):
    if where == "between steps":
        asyncio.get_running_loop().call_later(0.1, interrupt)
    views = [make_view(Task({5: interrupt} if where == "in a step" else {}), play=ENDLESS), make_view(play=ENDLESS)]
    waiting = asyncio.gather(*(view.finished() for view in views)) if together else views[0].finished()
    # a KeyboardInterrupt in a task other than the cell's would end the kernel
    assert await in_a_kernel(waiting) == ("CancelledError" if together else "KeyboardInterrupt")
    await until(lambda: not any(view.running for view in views))
    assert where == "between steps" or views[0].step == 5  # the step was finished
    assert all("Interrupted: the training is paused." in words(view) and "paused" in status(view) for view in views)
    for view in views:  # also one that nobody has waited for
        before = view.step
        view.play(10)
        await view.finished()
        assert view.step == before + 10 and "Interrupted" not in words(view)


@on_a_loop
async def test_who_waits_with_a_time_limit_stops_waiting_and_the_training_goes_on():
    view = make_view(play=ENDLESS)
    assert await in_a_kernel(asyncio.wait_for(view.finished(), 0.1)) == "TimeoutError"
    step = view.step
    await until(lambda: view.step > step + 5)
    assert view.running and words(view).strip() == ""
    await ended(view)


def test_a_static_page_gets_no_message_and_a_live_one_the_view_too(static, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(canvas.LiveCanvas, "send", lambda *_: pytest.fail("a message to a page"))
        data, _ = make_view(play=9)._repr_mimebundle_()
    monkeypatch.delenv("MOE_LESSONS_STATIC")
    assert set(make_view()._repr_mimebundle_()[0]) == set(data) | {"application/vnd.jupyter.widget-view+json"}


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
async def test_running_a_cell_again_ends_the_views_that_it_made_and_no_others(shell):
    earlier = [make_view(play=ENDLESS), make_view(play=ENDLESS)]
    shell.run("b")
    other = make_view(play=ENDLESS)
    shell.run("a")
    with pytest.raises(ZeroDivisionError):  # it may fail halfway
        make_view(panels=(lambda view: 1 / 0,))
    shell.run("a")
    await until(lambda: other.step > 5)
    assert not any(view.running or view.comm for view in earlier) and other.running
    late = []
    other.post(other.close)
    other.post(lambda: late.append("it is forgotten"))
    await until(lambda: not other.running)
    assert late == []


@pytest.mark.parametrize("make", [make_view, *LABS.values()], ids=["LiveRun", *LABS])
@on_a_loop
async def test_the_views_of_a_deleted_cell_end_when_the_next_cell_runs_and_leave_nothing(shell, make):
    live._spare_what_is_loaded()  # else the first view of all is kept
    before = set(ipywidgets._instances)
    view = make()
    view.play(ENDLESS)
    await until(lambda: view.step > 0)
    held = [weakref.ref(run) for run in view.runs.values()] + [weakref.ref(view.main_run.model)]
    shell.run("b")
    assert view.running
    shell.run("b", deleted=["a", "never seen"])
    view.post(int)  # a message that was on its way
    await until(lambda: not view.running)
    await settled()
    gc.collect()
    assert [ref() for ref in held if ref()] == [] and live._views == {}  # though a name still stands for the view
    assert set(ipywidgets._instances) == before
    gone, view = weakref.ref(view), None
    gc.collect()
    assert gone() is None
