"""Say what the page needs beside its graphs: controls, presets and texts once, and for each graph its panels."""

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_lessons.analysis.counting import flops_per_token
from moe_lessons.analysis.load import EVEN, WORDS
from moe_lessons.nn import with_baselines
from moe_lessons.plots.marks import encode_panel
from moe_lessons.plots.panels._history import LOAD_WINDOW, LOSS_WINDOW, MOST_PLACES, X_AXES
from moe_lessons.plots.panels.compared import LONGEST, WITH_DEAD
from moe_lessons.tasks import PLANE_TASKS, PlaneTask
from moe_lessons.tasks.plane import CLASS_MAP, MOST_POINTS, OWN_NOISE, PLACES, POINTS_ARE, spread_prototypes
from moe_lessons.training import DEAD_SHARE, PRESETS, PlaneSetting, Run
from moe_lessons.training.as_pytorch import TEMPLATE, read_parts
from moe_lessons.training.knobs import KNOBS, idle_with
from moe_lessons.training.run import HELD_OUT, NOISE
from moe_lessons.training.settings import D_MODEL, NUM_CLASSES, ROUTER_STARTS, plane_model
from moe_lessons.widgets.canvas import COLORS, pack
from moe_lessons.widgets.controls import CONTROLS, TIPS, named_stops
from moe_lessons.widgets.plane_readings import NUM_TOKENS, SHOWN, read_plane
from moe_lessons.widgets.playground import (
    COLLAPSE,
    FRONT,
    FRONT_CONTROLS,
    PLANE_PANELS,
    PLAYGROUND,
    PRESET_LABELS,
    RESCUE,
    Playground,
)
from moe_lessons.widgets.spec import HEADINGS
from web.graphs import DRAWN, LEFT_OUT, NUM_MEASURED, STEP_KNOBS, TrainedPlane

STOPS = {  # what the page has graphs or starts for
    "task": PLANE_TASKS,
    "num_experts": (1, 2, 4, 8, 16),
    "d_ff": (3, 8),
    "router": ("top-k", "frozen", "sigmoid", "expert choice"),
    "router_start": tuple(ROUTER_STARTS),
    "seed": tuple(range(10)),
    "token": tuple(range(NUM_TOKENS)),
    "x_axis": tuple(name for name in X_AXES if name != "seconds"),
}
BY_EXPERTS = {  # by the number of experts
    "top_k": {experts: sorted({k for k in (1, 2, 4) if k <= experts} | {experts}) for experts in STOPS["num_experts"]},
    "mute": {experts: ["none", *(f"E{e}" for e in range(experts))] for experts in STOPS["num_experts"]},
}
USUAL = (PlaneSetting().router,)  # routers that every site has; others are made by `make site ALL=1`
NOT_MADE = "this site has no graph for it; the notebook trains it"
STARTS = [(task, start) for task in PLANE_TASKS for start, sharpness in ROUTER_STARTS.items() if sharpness]
PAGE = replace(PLAYGROUND, live=tuple(name for name in PLAYGROUND.live if name in STEP_KNOBS))
MOST_STEPS = 2000  # that Play trains: the losses have come to rest
STRUCTURE = "router", "num_experts", "top_k", "d_ff"  # of a setting: a graph is of these, and has its name from them
OWN = {  # of points that are drawn by hand
    "tips": TIPS["own"], "nothing": TIPS["own"]["nothing"], "start": "random",
    "idle": {"task": TIPS["own"]["idle"], "router_start": "this page has no k-means of your own points"},
}  # fmt: skip
NOT_PER_MODEL = "ms/step"  # a row of the cost panel: a step of the graph trains all models at once


def offered(routers: Sequence[str] = STOPS["router"]) -> dict[str, PlaneSetting]:
    """Name every graph that the page may ask for with some routers, each with a setting that it is of."""
    found = {}
    for experts in STOPS["num_experts"]:
        for top_k in BY_EXPERTS["top_k"][experts]:
            for d_ff in STOPS["d_ff"]:
                for router in routers:
                    setting = PlaneSetting(num_experts=experts, top_k=top_k, d_ff=d_ff, router=router)
                    found[graph_name(setting)] = setting
    return found


def graph_name(setting: PlaneSetting) -> str:
    """Name the graph of a setting."""
    return "-".join(str(getattr(setting, name)).replace(" ", "-") for name in STRUCTURE)


def manifest(graphs: list[str], seeds: int) -> dict[str, Any]:
    """Say what is the same for all graphs, in what JSON can hold. graphs: those that are there; seeds: how many."""
    names, lab = sum(PAGE.groups.values(), ()), Playground()
    shown = {name: lab.state.values[name] for name in names}
    lab.close()
    presets = {
        name: {
            "label": PRESET_LABELS.get(name, name),
            "tip": TIPS["presets"][name],
            "values": shown | asdict(setting),
            "off": why_off(setting, graphs),
        }  # fmt: skip
        for name, setting in PRESETS.items()
    }
    front = {"panels": len(FRONT), "controls": FRONT_CONTROLS, "collapse": COLLAPSE, "rescue": RESCUE}
    front["tips"] = {"Healthy": TIPS["presets"]["healthy"], **TIPS["front"]}
    stops = STOPS | {"seed": STOPS["seed"][:seeds]}
    tasks = {n: {"blobs": PlaneTask(n).has_blobs, "frequency": PlaneTask(n).frequency.tolist()} for n in PLANE_TASKS}
    return {
        "graphs": graphs,
        "graph_of": STRUCTURE,
        "presets": presets,
        "headings": HEADINGS,
        **PAGE.groups,
        "controls": {name: describe_control(name, stops.get(name), BY_EXPERTS.get(name)) for name in names},
        "knobs": STEP_KNOBS,
        "left_out": LEFT_OUT,
        "kept": [n for n in names if n == "points" or n not in asdict(PlaneSetting())],  # by whoever chooses a preset
        "drawn": DRAWN,
        "idle": {router: idle_with(router) for router in STOPS["router"]},
        "tasks": tasks,
        "starts": STARTS,
        "axes": X_AXES,
        "colors": COLORS,
        "panels": PLANE_PANELS,
        "code_of": {"parts": read_parts(TEMPLATE), "tip": TIPS["code"]},
        "front": front,
        "words": {"load": WORDS, "reading": TIPS["reading"], "hints": TIPS["hints"],
                  "dead": WITH_DEAD, "title": PLAYGROUND.title,
                  "not_made": NOT_MADE, "own": OWN},
        "numbers": {
            "map": CLASS_MAP, "width": D_MODEL, "tokens": NUM_TOKENS, "classes": NUM_CLASSES, "measured": NUM_MEASURED,
            "recent": LOAD_WINDOW, "window": LOSS_WINDOW, "places": MOST_PLACES, "dead": DEAD_SHARE, "even": EVEN,
            "budget": MOST_STEPS, "noise": NOISE, "held_out": HELD_OUT, "own_noise": OWN_NOISE, "shown": SHOWN,
            "longest": LONGEST,
        },
    }  # fmt: skip


def why_off(setting: PlaneSetting, graphs: list[str]) -> str:
    """Say why the page cannot train a setting; empty: it can."""
    turned = [name for name in LEFT_OUT if getattr(setting, name) != KNOBS[name].off]
    if turned:
        return f"not in this page: {LEFT_OUT[turned[0]]}"
    return "" if graph_name(setting) in graphs else f"not in this page: {NOT_MADE}"


def describe_control(name: str, stops: Any = None, by_experts: dict[int, Sequence] | None = None) -> dict[str, Any]:
    """Describe a control: its label with the unit, its tip, and its stops as (text, value)s or, by the number of
    experts, lists of such; of a knob also its limits, and the value at which it is off. stops: those of the table,
    unless others are given."""
    row, by_experts = CONTROLS[name], by_experts or {}
    if name == "points":
        return {"label": row.description, "most": MOST_POINTS, "end": NUM_CLASSES * PLACES**2, "allowed": POINTS_ARE}
    stops = stops or next(iter(by_experts.values()), row.stops)
    said = {"label": row.description, "tip": row.tip, "is_list": isinstance(stops[0], str), "stops": said_stops(stops)}
    if by_experts:
        said["by_experts"] = {experts: said_stops(found) for experts, found in by_experts.items()}
    if name in KNOBS:
        low, high = row.limits
        allowed = f"a number {'above' if row.is_above else 'of at least'} {low:g} and at most {high:g}"
        said |= {"limits": row.limits, "is_above": row.is_above, "allowed": allowed, "off": row.off}
    return said


def said_stops(stops: Sequence) -> list[tuple[str, Any]]:
    return [(stop, stop) for stop in stops] if isinstance(stops[0], str) else named_stops(stops)


def graph_manifest(runs: dict[str, Run], setting: PlaneSetting) -> dict[str, Any]:
    """Say what one graph needs: sizes of its state, FLOPs of a step of each model, and the panels as they are encoded,
    without their arrays."""
    trained = TrainedPlane(runs)
    fixed = {name: getattr(setting, name) for name in STRUCTURE}
    lab = Playground(panels=PLANE_PANELS, **fixed)
    lab.show_more()
    encoded = [encode_panel(panel, place) for place, panel in enumerate(lab.panels())]
    lab.close()
    headers = {place: header for place, (header, _) in enumerate(encoded)}
    strip = encoded[PLANE_PANELS.index("answer")][1]
    without_times(headers[PLANE_PANELS.index("cost")])
    return {
        "experts": setting.num_experts,
        "top_k": setting.top_k,
        "batch": trained.batch_size,
        "weights": trained.num_weights,
        "size": trained.size,
        "router_at": router_place(runs),
        "flops": [trained.batch_size * flops_per_token(run.model, training=True) for run in runs.values()],
        "answer": {
            slot.partition(".")[2]: (values.dtype.str[1:], values.shape, values.ravel().tolist())
            for slot, values in strip.items()
        },
        "panels": headers,
    }


def first_picture() -> bytes:
    """Encode what the playground shows before its first step, as the canvas takes it: a line of JSON, then arrays."""
    lab = Playground()
    encoded = [encode_panel(panel, place) for place, panel in enumerate(lab.panels())]
    words = lab.lines() | {"step": 0, "state": "loading", "until": 0, "count": len(encoded)}
    words["experts"] = lab.state.values["num_experts"]
    lab.close()
    slots, data = pack({slot: array for _, arrays in encoded for slot, array in arrays.items()})
    headers = {place: header for place, (header, _) in enumerate(encoded)}
    content = {"frame": 1, "colors": COLORS, "panels": headers, "slots": slots, "words": words}
    return json.dumps(content).encode() + b"\n" + data


def without_times(cost: dict[str, Any]) -> None:
    """Take out of the header of a cost panel what is not measured for each model."""
    (table,) = cost["marks"]
    kept = [i for i, row in enumerate(table["rows"]) if row != NOT_PER_MODEL]
    table |= {"rows": [table["rows"][i] for i in kept], "cells": [table["cells"][i] for i in kept]}


def router_place(runs: dict[str, Run]) -> int:
    """Find where in the state the router's weight (E, D) begins."""
    at = 0
    for name, weight in next(iter(runs.values())).model.named_parameters():
        if name == "block.router.weight":
            return at
        at += weight.numel()
    raise ValueError("runs must have a router.weight, got none")


def start_numbers(setting: PlaneSetting, seed: int) -> np.ndarray:
    """Give the weights of all models at torch's own start (P,), then the router (E, D) of each of `STARTS`."""
    sizes = {"num_experts": setting.num_experts, "top_k": setting.top_k, "d_ff": setting.d_ff}
    model, _ = plane_model(PlaneSetting(**sizes, router_start="random"), seed)
    parts = [p.detach().flatten().clone() for each in with_baselines(model, seed).values() for p in each.parameters()]
    for task, start in STARTS:
        model.start_router_at(prototypes(task, setting.num_experts, seed), ROUTER_STARTS[start])
        parts.append(model.block.router.weight.detach().flatten().clone())
    return torch.cat(parts).numpy()


@functools.lru_cache
def prototypes(task: str, num: int, seed: int) -> Tensor:
    """Place those of `spread_prototypes`, once for all sizes."""
    return spread_prototypes(PlaneTask(task, seed), num, seed)


def seed_numbers(seed: int) -> np.ndarray:
    """Give the prototypes of a seed (24, 2), then of each task the tokens (32, 2), their classes (32,), and the map of
    classes (96, 96)."""
    parts = [PlaneTask("blobs", seed).prototypes.flatten()]
    for name in PLANE_TASKS:
        setting = PlaneSetting(name, num_experts=1, top_k=1)
        model, task = plane_model(setting, seed)
        plane = read_plane(Run(model, task, seed=seed))
        parts += [plane.points.flatten(), plane.classes.float(), task.class_map.flatten().float()]
    return torch.cat(parts).numpy()
