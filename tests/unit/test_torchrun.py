"""The view of a job of torchrun: what it shows, that it can be stopped, and that it keeps what was said."""

import asyncio
import threading

import pytest
from live_tools import on_a_loop, until

from moe_lessons.widgets.torchrun import TorchRun

STARTS = [{"event": "start", "rank": rank, "ranks": 2} for rank in (0, 1)]
ENDED = {"event": "ended", "returncode": 0, "reason": "all ranks have ended"}
STEPS = [{"event": "step", "step": step, "loss": 5.0 - step / 2} for step in range(1, 5)]
FAULT = {"event": "fault", "rank": 1, "how": "kill", "step": 3}
WHY = "rank 1 was killed after step 3; all ranks went on from step 2"
RESTART = {"event": "restart", "reason": WHY, "from_step": 2}


class Job:
    """Says its records one after the other; where `last` is given, after so many it waits until it is stopped."""

    def __init__(self, records, last=None):
        self.records, self.last, self.stopped = records, last, threading.Event()

    def __iter__(self):
        yield from self.records[: self.last]
        if self.last is not None:
            assert self.stopped.wait(30)
            yield ENDED | {"returncode": 1, "reason": "stopped"}

    def stop(self):
        self.stopped.set()


@pytest.mark.parametrize("is_static", [False, True])
def test_without_an_event_loop_and_on_a_static_page_it_waits_and_shows_the_end(is_static, monkeypatch):
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1" if is_static else "")

    async def in_a_cell():
        return TorchRun(Job([*STARTS, *STEPS, ENDED]), steps=4)

    view = asyncio.run(in_a_cell()) if is_static else TorchRun(Job([*STARTS, *STEPS, ENDED]), steps=4)
    assert is_static == (set(view._repr_mimebundle_()[0]) == {"text/plain", "image/png"})
    assert view.records == [*STARTS, *STEPS, ENDED] and view.sentence() == "Step 4 of 4. All ranks have ended."
    assert view.states() == {0: "ended", 1: "ended"}
    line = view.panels()[0].marks[0]
    assert list(line.x) == [1, 2, 3, 4] and list(line.y) == [4.5, 4.0, 3.5, 3.0]
    assert repr(view) == "TorchRun(job, steps=4)" and len(view.picture("dark").png()) > 5000


@on_a_loop
async def test_the_notebook_stays_free_and_each_step_is_shown():
    view = TorchRun(Job(STARTS + STEPS, last=4), steps=4)
    await until(lambda: len(view.records) == 4)
    assert view._bar.value == 2 and view.canvas.words["step"] == 2 and not view._button.disabled
    assert view.states() == {0: "trains", 1: "trains"} and view.sentence() == "Step 2 of 4."
    view._button.click()
    records = await view.finished()
    assert records[:4] == STARTS + STEPS[:2] and records[-1]["reason"] == "stopped"
    assert view.states() == {0: "ended", 1: "ended"} and view._button.disabled
    assert view.sentence() == "Step 2 of 4. Stopped."


@on_a_loop
async def test_an_interrupt_of_the_cell_that_waits_stops_it_and_the_code_goes_on():
    view = TorchRun(job := Job(STARTS + STEPS, last=3), steps=4)
    cell = asyncio.ensure_future(view.finished())
    await until(lambda: len(view.records) == 3)
    cell.cancel()  # as ipykernel does
    assert (await cell)[:3] == STARTS + STEPS[:1] and job.stopped.is_set()
    closed = TorchRun(job := Job(STARTS, last=2), steps=4)
    closed.close()
    await closed.finished()
    assert job.stopped.is_set()


@on_a_loop
async def test_a_second_interrupt_ends_the_cell():
    job = Job(STARTS, last=2)
    job.stop = lambda: None  # it hangs
    view = TorchRun(job, steps=4)
    cell = asyncio.ensure_future(view.finished())
    for _ in range(2):
        await asyncio.sleep(0.1)
        cell.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cell
    job.stopped.set()
    await view.finished()


def test_a_fault_and_the_restart_are_seen():
    during = TorchRun(Job([*STARTS, *STEPS[:3], FAULT]), steps=4)
    during._over.clear()
    assert during.states() == {0: "trains", 1: "kill after step 3"}
    view = TorchRun(Job([*STARTS, *STEPS[:3], FAULT, RESTART, *STARTS, *STEPS[2:], ENDED]), steps=4)
    first, second = view.panels()[0].marks
    assert list(first.x) == [1, 2, 3] and list(second.x) == [3, 4] and second.name == "after the restart"
    assert view.sentence() == f"Step 4 of 4. R{WHY[1:]}. All ranks have ended."


def test_what_goes_wrong_is_said():
    class Broken(Job):
        def __iter__(self):
            yield from STARTS
            raise OSError("torchrun is not there")

    view = TorchRun(Broken([]), steps=4)
    assert view.sentence() == "Step 0 of 4. OSError: torchrun is not there."
