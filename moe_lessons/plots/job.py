"""A figure of the records of a job, drawn when it is over."""

from collections.abc import Sequence

from moe_lessons.plots import still
from moe_lessons.plots.marks import Axis, Line, Panel, Rule, roomy
from moe_lessons.plots.theme import LessonFigure


def plot_job(records: Sequence[dict]) -> LessonFigure:
    """Draw the loss of each step, with a line of its own for each start of the ranks, and mark each fault and the
    checkpoint that the ranks went on from. records: of a job that has trained, in their order."""
    starts: list[list[dict]] = []  # the steps since each start of all ranks
    rules = []
    for record in records:
        if record["event"] == "start":
            starts.append([])
            if record["restart"]:
                rules.append(Rule(x=record["from_step"], kind="dash", name="the last checkpoint"))
        elif record["event"] == "fault":
            rules.append(Rule(x=record["step"], kind="limit", name=f"rank {record['rank']} is killed"))
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
    x, y = Axis(0, steps[-1]["step"], "step"), Axis(0, roomy(max(record["loss"] for record in steps), 1))
    loss = Panel("Loss (cross entropy, nats)", [*lines, *rules], x, y, width=12, height=190)
    again = [f"After a fault, all ranks went on from step {record['from_step']}." for record in records
             if record["event"] == "start" and record["restart"]]  # fmt: skip
    return still.figure([loss], 650, caption=" ".join(again))
