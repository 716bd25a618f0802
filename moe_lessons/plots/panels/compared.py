"""The models or tiles of a view beside each other: their loss, what they know and cost, how balanced they are."""

import math
from itertools import zip_longest

import numpy as np

from moe_lessons.analysis.counting import count_parameters, flops_per_token
from moe_lessons.plots.marks import Axis, Boxes, Lamps, Line, Panel, Rule, Spots, Table, roomy
from moe_lessons.plots.panels._history import X_AXES, as_array, history, spent
from moe_lessons.plots.theme import DENSE, model_inks, short_number

ANSWER = "parameters", "FLOPs/token", "correct"  # the columns of `answer`
WITH_DEAD = "Dead experts occupy memory for nothing. The MoE gets {right} right, {largest}, {other}."
LONGEST, VALUE = 0.44, 0.48  # of a column: its longest bar, and where its numbers begin
NUM_HELD_OUT, NUM_HELD_OUT_SEQUENCES = 256, 48  # to measure loss and accuracy on: points, or sequences of text
SPOT = 5  # an ink
LONGEST_END = 5  # letters that stand at the end of a line


def spent_axis(x_axis: str, reach: float, first: float, until: float = 0) -> Axis:
    """Make the axis of what is spent, with room for `reach`; first: where it ends at first; until: how many steps are
    trained, where that is known."""
    link, most = ("step", until) if x_axis == "steps" else ("", 0)
    return Axis(0, roomy(reach, first, most), X_AXES[x_axis], link=link)


def loss_panel(
    curves, ghost=None, x_axis: str = "steps", marks=(), names=(), first_x: float = 200, until: float = 0
) -> Panel:
    """Show losses: `curves`: name -> (x, loss); ghost: that of an earlier run; marks: x of what was changed, with names
    or without."""
    first = {"steps": first_x, "FLOPs": 1e7, "seconds": 0.25}[x_axis]
    ends = [name.removeprefix(f"{DENSE}, ") for name in curves]
    ends = ends if len(ends) > 1 and max(map(len, ends)) <= LONGEST_END else [""] * len(ends)
    inks = model_inks(curves)
    lines = [Line(*map(as_array, curves[name]), name, ink, end=end) for name, ink, end in zip(curves, inks, ends)]
    reach = max((float(line.x[-1]) for line in lines if len(line.x)), default=0.0)
    highest = max((float(line.y.max()) for line in lines if len(line.y)), default=0.0)
    if ghost is not None and len(ghost[0]):
        reach = max(reach, min(float(ghost[0][-1]), 2 * reach or float("inf")))
        inside = as_array(ghost[0]) <= spent_axis(x_axis, reach, first, until).high
        earlier = [as_array(values)[inside] for values in ghost]
        lines.insert(0, Line(*earlier, "previous run", -1, end="prev." if any(ends) else ""))
        highest = max(highest, float(ghost[1][0]))  # where it began: later it may have diverged
    top = next((top for top in (0.5, 1, 1.5, 2, 2.5, 3, 4, 6, 7) if top >= highest), 10)
    rules = [Rule(x=float(x), kind="mark", name=name) for x, name in zip_longest(marks, names, fillvalue="")]
    return Panel("Loss (cross entropy, nats)", [*rules, *lines], spent_axis(x_axis, reach, first, until), Axis(0, top))


def loss(view) -> Panel:
    x_axis, ghost = view.state.x_axis, view.state.ghost
    curves = {name: (spent(run, x_axis), history(run).column("loss")) for name, run in view.runs.items()}
    earlier = ghost and (spent(ghost, x_axis), history(ghost).column("loss"))
    changes = spent(view.main_run, x_axis, view.state.changes)
    names = [view.state.names.get(step, "") for step in view.state.changes]
    return loss_panel(curves, earlier, x_axis, changes, names, view.spec.first_x, view.loop.until)


def facts_known(view) -> Panel:
    """Show how many entries of the book each model has memorised."""
    steps, names = [step for step, _ in view.readings], list(view.runs)
    lines = []
    for model, (name, ink) in enumerate(zip(names, model_inks(names))):
        x = as_array(spent(view.runs[name], view.state.x_axis, steps), "f4")
        counts = as_array([int(known[name].sum()) for _, known in view.readings], "f4")
        lines.append(Line(x, counts, name, ink, model))
    first = {"steps": view.spec.first_x, "FLOPs": 1e9, "seconds": 1}[view.state.x_axis]
    x = spent_axis(view.state.x_axis, max(float(line.x[-1]) for line in lines), first, view.loop.until)
    return Panel("Memorised facts", lines, x, Axis(0, len(view.main_run.task.entries)))


def held_out(view, x_axis: str = "") -> Panel:
    """Show the held-out losses that a race has read. x_axis: of `X_AXES`; if empty, what the view's control says."""
    x_axis = x_axis or view.state.x_axis
    lines = []
    for name, ink in zip(view.runs, model_inks(view.runs)):
        steps, seconds, losses = np.reshape(view.readings[name], (-1, 3)).T
        x = seconds if x_axis == "seconds" else spent(view.runs[name], x_axis, steps)
        lines.append(Line(as_array(x, "f4"), as_array(losses, "f4"), name, ink))
    reach = max((float(line.x[-1]) for line in lines if len(line.x)), default=0.0)
    read = [float(loss) for line in lines for loss in line.y] or [1.0, 3.0]
    x = spent_axis(x_axis, reach, {"steps": 400, "FLOPs": 3e11, "seconds": 8}[x_axis])
    by = {"steps": "step", "seconds": "second"}.get(x_axis, x_axis)
    y = Axis(math.floor(2 * min(read)) / 2, math.ceil(2 * max(read)) / 2)
    return Panel(f"Held-out loss (nats per byte) by {by}", lines, x, y)


def columns_of(count: int) -> int:
    """Of a memorisation grid: with full rows if it is then at most twice as wide as high, else about a square."""
    least, most = (math.ceil(math.sqrt(part * count)) for part in (1, 2))
    return next((columns for columns in range(least, most + 1) if count % columns == 0), least)


def wall(view, place: int) -> Panel:
    """Show a square for each entry: in full colour where the model of this place has memorised it, pale where some
    digits of its answer are right."""
    (name, run), ink = list(view.runs.items())[place], model_inks(view.runs)[place]
    entries, answers = as_array(run.task.tokens, "u1"), as_array(view.answers[name], "u1")
    right = (answers == entries[:, -answers.shape[1] :]).sum(axis=1).astype("u1")
    known, count = int((right == answers.shape[1]).sum()), len(right)
    columns = columns_of(count)
    axes = Axis(0, columns, ticks=()), Axis(-(-count // columns), 0, ticks=())
    flops, parameters = flops_per_token(run.model), count_parameters(run.model).total
    caption = f"{short_number(flops)} FLOPs/token\n{short_number(parameters)} parameters"
    lamps = Lamps(right, columns, name, ink, entries, answers)
    return Panel(f"{name}: {known:,}/{count:,}", [lamps], *axes, caption=caption)


def cost(view) -> Panel:
    """Show a column for each model: its size, what a token and a step cost, and what it has learned."""
    columns = {}
    for name, run in view.runs.items():
        count = count_parameters(run.model)
        sizes = {"parameters": count.total, "active/token": count.active, "FLOPs/token": flops_per_token(run.model)}
        times = [record.ms_per_step for record in run.records[-50:]]
        held_out = run.evaluate(NUM_HELD_OUT_SEQUENCES if hasattr(run.task, "context") else NUM_HELD_OUT)
        loss = "loss" if hasattr(run.task, "known") or is_own(run) else "held-out loss"  # of facts, none are held out
        costs = sizes | {"ms/step": float(np.median(times)) if times else math.nan, loss: held_out["loss"]}
        right = "digits right" if hasattr(run.task, "known") else "accuracy"  # a fact has several digits
        columns[name] = costs | {right: f"{100 * held_out['accuracy']:.1f} %"}
    rows = tuple(next(iter(columns.values())))
    cells = [alike([column[row] for column in columns.values()]) for row in rows]
    return Panel("What each model costs", [Table(tuple(columns), rows, cells, model_inks(columns))])


def alike(values: list) -> list[str]:
    """Write the numbers of a row with as many digits as the largest has: three, or all of a count below 100,000."""
    if isinstance(values[0], str):
        return values
    most = max(values)
    if isinstance(most, int):
        return [f"{value:,}" if most < 100_000 else short_number(value) for value in values]
    digits = 2 - math.floor(math.log10(most)) if math.isfinite(most) and most > 0 else 2
    return ["–" if math.isnan(value) else f"{value:.{min(max(digits, 0), 4)}f}" for value in values]


def answer(view) -> Panel:
    """Show what each model stores, what it computes for a token, and how much of what is held out it gets right."""
    models = [run.model for run in view.runs.values()]
    sizes, flops = [count_parameters(model).total for model in models], list(map(flops_per_token, models))
    right = [100 * run.evaluate(NUM_HELD_OUT)["accuracy"] for run in view.runs.values()]
    columns = (sizes, max(sizes), "{:,}"), (flops, max(flops), "{:,}"), (right, 100, "{:.0f} %")
    heads = [((at, -0.9, 0, 0), name, 0, "") for at, name in enumerate(ANSWER)]
    boxes = []
    for row, (model, ink) in enumerate(zip(view.runs, model_inks(view.runs))):
        for at, (values, most, form) in enumerate(columns):
            wide, text = LONGEST * values[row] / most, form.format(values[row])
            boxes.append(((at + wide / 2, row, wide, 0.6), "", 4 + ink, f"{model}, {ANSWER[at]}: {text}"))
            boxes.append(((at + VALUE, row, 0, 0), text, 0, ""))
    places, texts, fills, says = zip(*heads, *boxes)
    none = [-1] * len(places)
    mark = Boxes(np.array(places, "f4"), texts, np.array(fills, "i4"), np.array(none, "i4"), np.array(none, "i4"), says)
    rows = Axis(len(models) - 0.5, -1.4, ticks=list(enumerate(view.runs)))
    (_, first, *_), largest = view.runs, list(view.runs)[-1]
    percents = [f"{percent:.0f}\N{NO-BREAK SPACE}%" for percent in right]
    stores, computes = beside(sizes[0], sizes[-1]), beside(flops[0], flops[1])
    caption = f"The MoE is {percents[0]} right: stores {stores} {largest} ({percents[-1]}), "
    caption += f"computes {computes} {first} ({percents[1]})."
    if first == largest:
        caption = f"The MoE is {percents[0]} right: stores {stores} and computes {computes} {first} ({percents[1]}), "
        caption += "both baselines in one, as top-k = E."
        if view.main_run.num_experts == [1]:
            caption += " They differ in their initial weights alone."
    if view.dead:
        said = {"right": percents[0], "largest": largest, "other": percents[-1]}
        caption = WITH_DEAD.format(**said)
    block = view.main_run.model.block
    wide = f"{largest}: as wide as {block.num_experts} expert{'s' * (block.num_experts > 1)}"
    if first != largest:
        wide = f"{first}: as wide as {block.top_k} expert{'s' * (block.top_k > 1)}, {wide.replace(' experts', '')}"
    return Panel(f"Stored, computed, correct ({wide})", [mark], Axis(0, 3, ticks=()), rows, height=108, caption=caption)


def beside(one: float, other: float) -> str:
    """Say how much one is, beside another."""
    ratio = one / other
    return "like" if abs(math.log(ratio)) < math.log(1.15) else f"{ratio:.2g} times as much as"


def is_own(run) -> bool:
    """Return whether it learns points that were drawn by hand: none of them are held out."""
    return bool(getattr(run.task, "points", ""))


def dead(view) -> Panel:
    return rows_panel(view, "Dead experts without noise", "dead", Axis(0, view.state.values["num_experts"], "experts"))


def balance(view) -> Panel:
    return rows_panel(view, "Load of the busiest expert", "max_over_mean", Axis(1, 0, "× the mean (1: uniform)"))


def quality(view) -> Panel:
    return rows_panel(view, "Accuracy", "accuracy", Axis(1, 1, "share of held-out points"))


def rows_panel(view, title: str, quantity: str, x: Axis) -> Panel:
    """Show a quantity of the last readings, a row for each tile: its mean, and a line to the least and the largest."""
    values = np.array([getattr(tile.readings[-1], quantity) for tile in view.tiles.values()], "f4")  # (tiles, S)
    names, rows = list(view.tiles), np.arange(len(view.tiles), dtype="f4")
    spots = Spots([values.mean(1), values.min(1), values.max(1)], [rows] * 3, np.full(len(rows), SPOT), names)
    low = next(stop for stop in (x.low, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2, 0) if stop <= values.min())
    high = x.high or next((stop for stop in (2, 3, 4, 6, 8) if stop >= values.max()), 1.05 * float(values.max()))
    y = Axis(len(names) - 0.5, -0.5, "", list(enumerate(names)))
    return Panel(title, [spots], x._replace(low=low, high=high), y)
