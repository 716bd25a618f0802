"""Ranks that torchrun has started, while they train: how far they are, the loss, who lives, and a button to stop."""

import asyncio
import threading
from typing import Any

import ipywidgets as W
import numpy as np

from moe_lessons.plots.marks import Axis, Boxes, Line, Panel, roomy
from moe_lessons.support.errors import check_positive_int
from moe_lessons.widgets.live import end_with_its_cell
from moe_lessons.widgets.loop import error_sentence, event_loop, on_the_loop
from moe_lessons.widgets.picture import Picture


class TorchRun(Picture):
    """Shows what the ranks of a job say, while they run.

    job: what `parallel.torchrun` returns: an iterable of records, dicts with an 'event', and a `stop()`. steps: how
    many they train. `await view.finished()` waits in a cell and returns the `records`. The button Stop, the kernel's
    interrupt (■) while a cell waits, and running the cell again end all ranks; what they said is kept."""

    def __init__(self, job: Any, steps: int):
        if not (callable(getattr(job, "stop", None)) and hasattr(job, "__iter__")):
            raise ValueError(f"job must be what parallel.torchrun returns, got {type(job).__name__}")
        self.job, self.steps = job, check_positive_int("steps", steps)
        self.records: list[dict] = []
        self.trouble, self._stopped, self._over = "", False, threading.Event()
        self.status = {"state": "starting", "step": 0, "until": steps}
        self._bar = W.IntProgress(max=steps, layout=W.Layout(width="auto", flex="1"))
        self._button = W.Button(description="Stop", icon="stop", tooltip="End all ranks and keep what they have said")
        self._button.on_click(lambda _: self.stop())
        title = W.HTML('<span class="moe-title">torchrun</span>')
        super().__init__(rows=[W.Box([title, self._bar, self._button]).add_class("moe-bar")])
        self._events = event_loop()
        if self._events is None:
            self._listen()
        else:
            end_with_its_cell(self)
            threading.Thread(target=self._listen, daemon=True).start()

    def stop(self) -> None:
        """End all ranks, without waiting for it."""
        self._stopped = self._button.disabled = True
        threading.Thread(target=self.job.stop).start()  # it may have to wait for them

    async def finished(self) -> list[dict]:
        """Wait until all ranks are gone; return the records."""
        while not self._over.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                if self._stopped:
                    raise
                self.stop()
        return self.records

    def _listen(self) -> None:
        """Read the records until the job is over, on a thread of its own where the notebook stays usable."""
        try:
            for record in self.job:
                on_the_loop(self._events, self._hear, record)
        except Exception as error:
            self.trouble = error_sentence(error)
        on_the_loop(self._events, self._end)

    def _hear(self, record: dict) -> None:
        self.records.append(record)
        if record["event"] == "step":
            self._bar.value = record["step"]
            self.status |= {"state": "training", "step": record["step"]}
        elif record["event"] == "restart":
            self.status["state"] = "starting again"
        self.show()

    def _end(self) -> None:
        self._over.set()
        self._button.disabled, self.status["state"] = True, "stopped" if self._stopped else "ended"
        self.show()

    def states(self) -> dict[int, str]:
        states: dict[int, str] = {}
        for record in self.records:
            if record["event"] == "start":
                states[record["rank"]] = "trains"
            elif record["event"] in ("fault", "failed"):
                states[record["rank"]] = f"{record.get('how', 'failed')} after step {record['step']}"
        return {rank: "ended" if self._over.is_set() else states[rank] for rank in sorted(states)}

    def panels(self) -> list[Panel]:
        starts, states = [[]], self.states()  # of each start, the steps and their losses
        for record in self.records:
            if record["event"] == "restart":
                starts.append([])
            elif record["event"] == "step":
                starts[-1].append((record["step"], record["loss"]))
        lines = [Line(*np.reshape(points, (-1, 2)).T, "after the restart" if i else "loss", 3 * (i > 0), strong=i == 0)
                 for i, points in enumerate(starts)]  # fmt: skip
        top, num = roomy(max((loss for points in starts for _, loss in points), default=1), 1), len(states)
        came = np.sum(next((record["traffic"] for record in self.records[::-1] if "traffic" in record), [[]]), axis=0)
        rows = {rank: f", {number:.0f} rows" for rank, number in enumerate(came)}  # that came in the last step
        texts = [f"rank {rank}: {what}{rows.get(rank, '')}" for rank, what in states.items()]
        looks, none = [2 - (what == "trains") for what in states.values()], [-1] * num
        boxes = Boxes([(0.5, rank + 0.5, 0.9, 0.7) for rank in range(num)], texts, looks, none, none, texts)
        size, axes = {"height": 190}, (Axis(0, 1, ticks=()), Axis(max(num, 1), 0, ticks=()))
        loss = Panel("Loss (cross entropy, nats)", lines, Axis(0, self.steps, "step"), Axis(0, top), width=8, **size)
        return [loss, Panel("Ranks", [boxes], *axes, width=4, **size)]

    def sentence(self) -> str:
        steps = [record["step"] for record in self.records if record["event"] == "step"]
        said = [f"Step {steps[-1] if steps else 0} of {self.steps}"]
        said += [record["reason"] for record in self.records if record["event"] in ("restart", "ended")]
        return ". ".join(part[:1].upper() + part[1:] for part in (*said, self.trouble) if part) + "."

    def close(self) -> None:
        if hasattr(self, "_over") and not self._over.is_set():  # else it was refused when it was made
            self.stop()
        super().close()

    def __repr__(self) -> str:
        return f"TorchRun(job, steps={self.steps})"
