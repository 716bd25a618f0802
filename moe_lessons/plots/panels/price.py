"""The models of a view beside each other, in numbers."""

import numpy as np

from moe_lessons.analysis.counting import count_parameters, flops_per_token
from moe_lessons.plots.marks import Panel, Table
from moe_lessons.plots.theme import model_inks, short_number
from moe_lessons.training import Run

NUM_HELD_OUT, NUM_HELD_OUT_SEQUENCES = 256, 48  # to measure loss and accuracy on: points, or sequences of text


def cost(view) -> Panel:
    """A column for each model: its size, what a token and a step cost, and what it has learned."""
    columns = {name: _costs(run) for name, run in view.runs.items()}
    rows = tuple(next(iter(columns.values())))
    cells = [[column[row] for column in columns.values()] for row in rows]
    return Panel("What each model costs", [Table(tuple(columns), rows, cells, model_inks(columns))])


def _costs(run: Run) -> dict[str, str]:
    count = count_parameters(run.model)
    sizes = {"parameters": count.total, "active/token": count.active, "FLOPs/token": flops_per_token(run.model)}
    costs = {name: f"{size:,}" if size < 100_000 else short_number(size) for name, size in sizes.items()}
    times = [record.ms_per_step for record in run.records[-50:]]
    held_out = run.evaluate(NUM_HELD_OUT_SEQUENCES if hasattr(run.task, "context") else NUM_HELD_OUT)
    loss = "loss" if hasattr(run.task, "known") else "held-out loss"  # of facts, none are held out
    costs |= {"ms/step": f"{np.median(times):.2f}" if times else "–", loss: f"{held_out['loss']:.3g}"}
    return costs | {"accuracy": f"{held_out['accuracy']:.1%}"}
