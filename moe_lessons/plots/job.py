"""A figure of the records of a job, drawn when it is over."""

from collections.abc import Sequence

from moe_lessons.plots import still
from moe_lessons.plots.marks import Axis, Line, Panel, Parts, roomy
from moe_lessons.plots.theme import PALETTE, LessonFigure


def plot_job(records: Sequence[dict]) -> LessonFigure:
    """Draw the loss of each step, with a line of its own for each start of the ranks, and the rows that came to each
    rank in the last step. records: of a job that has trained, in their order."""
    starts: list[list[dict]] = []  # the steps since each start of all ranks
    for record in records:
        if record["event"] == "start":
            starts.append([])
        elif record["event"] == "step":
            starts[-1].append(record)
    steps = [record for start in starts for record in start]
    if not steps:
        raise ValueError(f"records must have a step, got {len(records)} without one")
    names = ["loss", *(f"after restart {number}" for number in range(1, len(starts)))]
    lines = [
        Line([record["step"] for record in start], [record["loss"] for record in start], name, 3 * (number > 0))
        for number, (name, start) in enumerate(zip(names, starts))
    ]
    came = [sum(column) for column in zip(*steps[-1]["traffic"])]  # (N,) rows, of traffic (N, N)
    x, y = Axis(0, steps[-1]["step"], "step"), Axis(0, roomy(max(record["loss"] for record in steps), 1))
    ranks, texts = [f"rank {rank}" for rank in range(len(came))], [f"{rows:,}" for rows in came]
    bars = Parts(ranks, ["rows"], [[rows] for rows in came], PALETTE[-1:], texts)
    loss = Panel("Loss (cross entropy, nats)", lines, x, y, width=8, height=190)
    rows = Panel("Rows received in the last step", [bars], Axis(0, 1.25 * max(came), "rows"), width=4, height=190)
    again = [f"After a fault, all ranks went on from step {record['from_step']}." for record in records
             if record["event"] == "start" and record["restart"]]  # fmt: skip
    return still.figure([loss, rows], caption=" ".join(again))
