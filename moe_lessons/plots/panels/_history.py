"""Readings of a run for panels. Its records grow with every step, so each of them is read once."""

from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from moe_lessons.analysis.collapse import RECENT
from moe_lessons.analysis.counting import flops_per_token
from moe_lessons.training import Run

MOST_PLACES = 256  # of a curve: more are not seen
LOSS_WINDOW = 10  # steps over which the loss is averaged
LOAD_WINDOW = 50  # and the load: over 20 an expert that soon comes back may look dead
X_AXES = {"steps": "step", "FLOPs": "training FLOPs (B: 10⁹)", "seconds": "seconds of training"}


class History:
    """A row for each step of a run: its number, seconds so far, recent loss and dead experts."""

    def __init__(self):
        self.flops = 0.0  # of a training step
        self.records, self.rows = [], []

    def read(self, records: list) -> "History":
        """Read the records that are new. Where the old ones were replaced or taken back, start again."""
        known = len(self.rows)
        if known and (len(records) < known or records[known - 1] is not self._last):
            self.rows = []
        for end in range(len(self.rows) + 1, len(records) + 1):
            recent = records[max(end - RECENT, 0) : end]
            losses, dead = [r.loss for r in recent[-LOSS_WINDOW:]], [r.dead_experts for r in recent]
            seconds = (self.rows[-1][1] if self.rows else 0) + recent[-1].ms_per_step / 1000
            self.rows.append((end, seconds, sum(losses) / len(losses), sum(dead) / len(dead)))
        self.records, self._last = records, records[-1] if records else None
        return self

    def column(self, name: str) -> np.ndarray:
        """Take 'steps', 'seconds', 'loss' or 'dead': (N,), thinned."""
        place = ("steps", "seconds", "loss", "dead").index(name)
        return np.array([self.rows[i][place] for i in thinned(len(self.rows))], dtype=np.float32)

    def loads(self, layer: int, num_experts: int) -> np.ndarray:
        """Take the load shares of a layer: (N, E), thinned."""
        loads = [self.records[i].load[layer] for i in thinned(len(self.rows))]
        return np.array(loads, np.float32).reshape(-1, num_experts)


_histories: WeakKeyDictionary[Run, History] = WeakKeyDictionary()


def thinned(count: int) -> np.ndarray:
    """Choose of `count` places at most `MOST_PLACES`, evenly spread, and the last one."""
    every = 1 << (count // MOST_PLACES).bit_length()
    return np.union1d(np.arange(every - 1, count, every), np.arange(count)[-1:])


def history(run: Run) -> History:
    return _histories.setdefault(run, History()).read(run.records)


def spent(run: Run, x_axis: str, steps=None) -> np.ndarray:
    """Say what a run has spent by each of `steps`, or by each place of its history: 'steps', 'FLOPs' or 'seconds'."""
    past = history(run)
    at = past.column("steps") if steps is None else np.asarray(steps, dtype=float)
    if x_axis == "seconds":
        return np.interp(at, np.append(0, past.column("steps")), np.append(0, past.column("seconds")))
    if x_axis == "FLOPs" and not past.flops:  # counted once: it walks over the model
        tokens = run.batch_size * getattr(run.task, "context", 1)  # of a step: an example is a point, or a sequence
        past.flops = tokens * flops_per_token(run.model, training=True)
    return at.astype(float) * past.flops if x_axis == "FLOPs" else at


def recent_load(run: Run, layer: int = 0) -> list[float]:
    return np.mean([record.load[layer] for record in run.records[-LOAD_WINDOW:]], axis=0).tolist()


def num_experts(view) -> int:
    """Say E of the layer that a view shows; ValueError where there is none."""
    if not (run := view.main_run).num_experts:
        name = type(run.model).__name__
        raise ValueError(f"panels that show experts need a mixture of experts, got {name} without one")
    return run.num_experts[view.state.layer]


def of_layer(title: str, view) -> str:
    """Add the number of the layer to a title where there are several."""
    return f"{title}, layer {view.state.layer}" if len(view.main_run.num_experts) > 1 else title


def as_array(values, dtype=None) -> np.ndarray:
    """Make an array of numbers, also of a tensor with a gradient or on a GPU."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=dtype)
