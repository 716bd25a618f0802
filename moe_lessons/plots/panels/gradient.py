"""Who gets a gradient: it goes to those who have the tokens."""

import numpy as np

from moe_lessons.plots.marks import Panel
from moe_lessons.plots.panels._history import RECENT, num_experts, recent_load
from moe_lessons.plots.panels.load import load_panel


def gradient(view) -> Panel:
    """The share of the gradient norms that each expert's weights got in the last steps; a tick: its share of the load.
    The run must have `expert_gradients`, as a `WatchedRun`."""
    run = view.main_run
    total = np.sum(run.expert_gradients[-RECENT:] or [np.zeros(num_experts(view))], axis=0)  # (E,)
    load = recent_load(run) if run.records else view.clean_load
    return load_panel(total / (total.sum() or 1), None, load, "Gradient of each expert", "gradient norm", "its load")
