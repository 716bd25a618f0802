"""Panels of the load of the experts, now and over time, and of which token goes to whom."""

from dataclasses import replace

import numpy as np

from moe_lessons.nn import is_moe
from moe_lessons.plots import marks as all_marks
from moe_lessons.plots.marks import Axis, Bars, Cells, Field, Panel, Points, Route, Rule, Stack, experts_axis, roomy
from moe_lessons.plots.panels._history import LOAD_WINDOW, as_array, history, num_experts, of_layer, recent_load
from moe_lessons.training import is_dead

TITLE, FILM_TITLE = "Load of each expert", "Load share over time"
PLANE = Axis(-1, 1, ticks=[(-1, "−1"), (0, "0"), (1, "1")])
EMPTY = Axis(ticks=())
HOTTEST = 3.0  # multiples of the uniform load: from here on all look alike


def load_panel(load, capacity=None, clean=None, title=TITLE) -> Panel:
    """Show a bar for each expert: load (E,), which share of all assignments wants it. capacity: as a share of
    all: a red line, above which a bar is pale. clean (E,): without noise: a tick on each bar."""
    load, clean = as_array(load, "f4"), None if clean is None else as_array(clean, "f4")
    even = 1 / len(load)
    marks = [Bars(load, capacity, clean, "without noise"), Rule(y=even, name="uniform load")]
    marks += [] if capacity is None else [Rule(y=capacity, kind="limit", name="capacity")]
    highest = float(max(*load, *(() if clean is None else clean), capacity or 0, even))
    top = next(top for top in (min(1.15, 4 * even), 0.5, 1.15, 1.1 * highest) if top >= highest)
    return Panel(title, marks, experts_axis(len(load)), Axis(0, top, "share of assignments"))


def load(view) -> Panel:
    run, experts = view.main_run, num_experts(view)
    clean = view.clean_load if run.knobs.is_noisy or not run.records else None  # else training is as clean
    shares = recent_load(run, view.state.layer) if run.records else [0.0] * experts if clean is None else clean
    factor = run.knobs.capacity_factor
    return load_panel(shares, factor and factor / experts, clean if run.knobs.is_noisy else None, of_layer(TITLE, view))


def layers(view) -> Panel:
    """Show which share of the tokens wants each expert in the last steps, over the even one; crosses: dead; a frame
    around the layer that the other panels show."""
    run = view.main_run
    wanted = np.full((len(run.num_experts), num_experts(view)), np.nan)
    if run.records:
        top_k = np.array([[module.top_k] for module in run.model.modules() if is_moe(module)])  # (layers, 1)
        wanted = top_k * np.mean([record.load for record in run.records[-LOAD_WINDOW:]], axis=0)  # (layers, E)
    rows, experts = wanted.shape
    load = experts * wanted / np.maximum(wanted.sum(axis=1, keepdims=True), 1e-9)
    selected = view.state.layer if rows > 1 else None
    cells = Cells(load.astype("f4"), even=1.0, most=HOTTEST, rows="layer", selected=selected)
    layer, expert = (place.astype("u1") for place in np.nonzero(is_dead(wanted)))
    y = Axis(rows - 0.5, -0.5, "layer", [(row, str(row)) for row in range(rows)])
    crosses = Points(expert, layer, np.full(len(layer), 2, "u1"), expert)
    return Panel("Load of each layer, × dead", [cells, crosses], experts_axis(experts), y)


def film_panel(steps, loads, marks=(), first_x=200, title=FILM_TITLE, clean=None, until=0) -> Panel:
    """Show the share of each expert at every step: steps (N,), loads (N, E); marks, clean: see `Rule` and `Stack`;
    first_x, until: of the axis, see `roomy`."""
    steps, loads = as_array(steps, "f4"), as_array(loads, "f4")
    experts = loads.shape[1]
    last = float(steps[-1]) if len(steps) else 0.0
    rules = [Rule(y=expert / experts, kind="even") for expert in range(1, experts)]
    rules += [Rule(x=float(step), kind="mark") for step in marks]
    x, y = Axis(0, roomy(last, first_x, until), "step", link="step"), Axis(0, 1, "share of assignments")
    return Panel(title, [Stack(steps, loads, clean), *rules], x, y)


def film(view) -> Panel:
    past = history(view.main_run)
    loads = past.loads(view.state.layer, num_experts(view))
    title = of_layer(FILM_TITLE, view)
    return film_panel(past.column("steps"), loads, view.state.changes, view.spec.first_x, title, until=view.loop.until)


def tile(view, name: str) -> Panel:
    """Show the film of a tile of the balancing laboratory, of its first seed; in a strip, its reading without noise."""
    shown = view.tiles[name]
    values = view.state.values
    model = list(view.tiles).index(name)
    past = history(shown.band)
    clean = shown.clean[0] if shown.is_noisy and shown.clean is not None else None
    loads = past.loads(0, values["num_experts"])
    made = film_panel(past.column("steps"), loads, shown.changes, title=name, clean=clean, until=view.loop.until)
    axes = {"x": made.x._replace(label=""), "y": Axis(0, 1, ticks=()), "width": 3, "height": 150}
    return replace(made, **axes, caption=view.caption(shown), model=model, selected=name == values["highlight"])


def territory(view) -> Panel:
    """Show who is the first choice where, the classes, pale, and tokens: light where their class is named, else dark
    crosses."""
    plane = view.plane
    x, y = as_array(plane.points, "f4").T
    symbol, first = (~as_array(plane.correct)).astype("u1"), as_array(plane.routing.router_probs.argmax(dim=-1), "u1")
    tokens = Points(x, y, symbol, first, True, view.state.token, ("correct", "wrong"))
    classes = as_array(view.main_run.task.class_map, "u1") if view.state.shows_classes else None
    field = Field(as_array(plane.scores, "f2"), classes)
    points, pen = view.main_run.task.points, view.state.pen
    drawn = [all_marks.Drawn(points, pen)] if points or pen is not None else []
    return Panel("Territory: each point's first choice", [field, tokens, *drawn], PLANE, PLANE)


def heatmap_panel(routing, selected: int | None = None) -> Panel:
    """Show a row for each token, a column for each expert, by the router's probability; a dot says who serves."""
    tokens, experts = routing.router_probs.shape
    token, expert = as_array(routing.token_idx, "i4"), as_array(routing.expert_idx, "u1")
    marks = Cells(as_array(routing.router_probs, "f2"), selected=selected), Points(expert, token, expert=expert)
    y = Axis(tokens - 0.5, -0.5, "token", [(row, str(row)) for row in range(0, tokens, max(1, tokens // 8))])
    return Panel("Router probabilities, ○ served", marks, experts_axis(experts), y)


def heatmap(view) -> Panel:
    return heatmap_panel(view.plane.routing, view.state.token)


def route(view) -> Panel:
    """Show how the selected token goes through the router to its experts, and what they make of it."""
    plane, token = view.plane, view.state.token
    model = view.main_run.model.block
    routing = plane.routing
    weights = np.zeros(model.num_experts, "f4")
    mine = routing.token_idx == token
    weights[as_array(routing.expert_idx[mine])] = as_array(routing.weight[mine])
    head = "token {} at ({:.2f}, {:.2f})".format(token, *plane.points[token].tolist()).replace("-", "−")
    label = all_marks.CLASSES[plane.classes[token]]
    foot = f"{'correct: class' if plane.correct[token] else 'wrong: the class is'} {label}"
    idle = model.num_experts - model.top_k
    rest = f"; {idle} only occup{'y' if idle > 1 else 'ies'} memory" if idle else ""
    caption = f"This token loads {model.top_k} of {model.num_experts} experts{rest}."
    if view.state.muted is not None:
        caption = f"E{view.state.muted} is muted: its output counts as 0."
    marks = [Route(as_array(routing.router_probs[token], "f4"), weights, head, foot)]
    return Panel("A token through the block", marks, EMPTY, EMPTY, caption=caption)
