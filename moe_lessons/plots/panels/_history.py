"""What panels read of a run. Its records grow with every step, so each of them is read once, and few are kept."""

from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from moe_lessons.analysis.cost import flops_per_token
from moe_lessons.training import Run

MOST_PLACES = 256  # of a curve: more are not seen
RECENT = 20  # steps over which the load and the dead experts are averaged: one batch alone flickers
LOSS_WINDOW = 10  # steps over which the loss is averaged
X_AXES = {"steps": "step", "FLOPs": "training FLOPs so far", "seconds": "seconds of training"}


class History:
    """The records of a run, thinned out to at most `MOST_PLACES` places, evenly spread, and the last step."""

    def __init__(self):
        self.rows: list[tuple] = []  # of each place: step, seconds so far, recent loss, recent dead experts
        self._loads: list = []  # of each place, by layer
        self._every, self._count, self._last, self._seconds = 1, 0, None, 0.0  # every how many steps; what was read

    def read(self, records: list) -> "History":
        """Read the records that are new. Where the old ones were replaced or taken back, start again."""
        if self._count and (len(records) < self._count or records[self._count - 1] is not self._last):
            self.__init__()
        for i in range(self._count, len(records)):
            self._seconds += records[i].ms_per_step / 1000
            if (i + 1) % self._every == 0 or i == len(records) - 1:
                self._keep(records[max(i + 1 - RECENT, 0) : i + 1], i + 1)
        self._count, self._last = len(records), records[-1] if records else None
        return self

    def _keep(self, recent: list, step: int) -> None:
        if self.rows and self.rows[-1][0] % self._every:  # it was there as the last step
            del self.rows[-1], self._loads[-1]
        losses, dead = [record.loss for record in recent[-LOSS_WINDOW:]], [record.dead_experts for record in recent]
        self.rows.append((step, self._seconds, sum(losses) / len(losses), sum(dead) / len(dead)))
        self._loads.append(recent[-1].load)
        if len(self.rows) == MOST_PLACES and step % self._every == 0:  # keep every second one
            self.rows, self._loads, self._every = self.rows[1::2], self._loads[1::2], 2 * self._every

    def column(self, name: str) -> np.ndarray:
        """(N,): 'steps', 'seconds' so far, or the mean over the last steps of 'loss' or 'dead' experts."""
        place = ("steps", "seconds", "loss", "dead").index(name)
        return np.array([row[place] for row in self.rows], dtype=np.float32)

    def loads(self, layer: int, num_experts: int) -> np.ndarray:
        """(N, E): the load shares of a layer."""
        return np.array([load[layer] for load in self._loads], np.float32).reshape(-1, num_experts)


_histories: WeakKeyDictionary[Run, History] = WeakKeyDictionary()
_flops: WeakKeyDictionary[Run, float] = WeakKeyDictionary()  # of a training step


def history(run: Run) -> History:
    """The history of a run, up to date."""
    if run not in _histories:
        _histories[run] = History()
    return _histories[run].read(run.records)


def spent(run: Run, x_axis: str, steps=None) -> np.ndarray:
    """What a run has spent by each of `steps`, or by each place of its history: 'steps', 'FLOPs' of training on all
    tokens, or 'seconds'."""
    past = history(run)
    at = past.column("steps") if steps is None else np.asarray(steps, dtype=float)
    if x_axis == "seconds":
        return np.interp(at, np.append(0, past.column("steps")), np.append(0, past.column("seconds")))
    if x_axis == "FLOPs" and run not in _flops:
        tokens = run.batch_size * getattr(run.task, "context", 1)  # of a step: an example is a point, or a sequence
        _flops[run] = tokens * flops_per_token(run.model, training=True)
    return at.astype(float) * _flops[run] if x_axis == "FLOPs" else at


def loss_curve(run: Run, x_axis: str) -> tuple[np.ndarray, np.ndarray]:
    """The loss of a run, averaged over 10 steps, against what was `spent`: x (N,) and loss (N,)."""
    return spent(run, x_axis), history(run).column("loss")


def recent_load(run: Run, layer: int = 0) -> list[float]:
    """The load shares of an MoE layer, averaged over the last steps."""
    return np.mean([record.load[layer] for record in run.records[-RECENT:]], axis=0).tolist()


def num_experts(view) -> int:
    """E of the layer that a view shows; ValueError where there is none."""
    found, name = view.main_run.num_experts, type(view.main_run.model).__name__
    if not found:
        raise ValueError(f"panels that show experts need a mixture of experts, got {name} without one")
    return found[view.layer]


def of_layer(title: str, view) -> str:
    """The title, with the number of the layer where there are several."""
    return f"{title}, layer {view.layer}" if len(view.main_run.num_experts) > 1 else title


def as_array(values, dtype=None) -> np.ndarray:
    """The numbers as an array of numpy, also those of a tensor with a gradient or on a GPU."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=dtype)
