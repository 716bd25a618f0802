"""The results of long sweeps, kept in ``data/results`` as lines of JSON: the settings first, then one line a run."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from moe_lessons.support.data import data_path

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, 1 to 9 degrees of freedom
POINTS = ("step", "loss")  # the lists of a stored run, a value for each measurement


def read_runs(path: Path) -> tuple[dict, list[dict], int]:
    """Read the settings of a results file ({} where it has none yet), its runs, and how many bytes are whole lines:
    what follows was cut off by an interrupt. ValueError for a whole line that is no JSON object."""
    data = path.read_bytes()
    num_whole = data.rfind(b"\n") + 1
    rows = []
    for number, line in enumerate(data[:num_whole].splitlines(), start=1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} must have a JSON object on each line, got on line {number}: {error}") from None
    return (rows[0] if rows else {}), rows[1:], num_whole


def load_results(name: str) -> pd.DataFrame:
    """Read the stored sweep `name`, one row for each time that a run was measured. Columns as in data/README.md, and
    the steps of the whole run. ValueError without a finished run."""
    path = data_path(f"results/{name}.jsonl")
    settings, runs, _ = read_runs(path)
    if not runs:
        raise ValueError(f"{path} must hold at least one run, got none yet: go on with the sweep")
    frame = pd.DataFrame(sorted(runs, key=lambda run: run["seed"]))  # of each model the seeds in one order
    frame = frame.explode([*POINTS, "dead"] if "dead" in frame else [*POINTS], ignore_index=True)
    numbers = [*POINTS, *frame.columns.intersection(["max_over_mean"])]  # None of a dense model
    frame[numbers] = frame[numbers].apply(pd.to_numeric)
    return frame.assign(steps=settings["steps"])


def last_of(name: str) -> pd.DataFrame:
    """Read the losses with which the stored sweep `name` (of one rate for each model) ended: a row a seed, a column a
    model."""
    results = load_results(name)
    last = results[results.step == results.steps]
    return last.pivot(index="seed", columns="model", values="loss")


def interval(values) -> tuple[np.ndarray, np.ndarray]:
    """Give the means of 2 to 10 seeds (..., S), and how far the 95 % interval of each reaches to both sides.

    >>> print("{:.1f} ± {:.2f}".format(*interval([1, 2, 3])))
    2.0 ± 2.48
    """
    values = np.asarray(values, float)
    return values.mean(-1), T_95[values.shape[-1] - 2] * values.std(-1, ddof=1) / values.shape[-1] ** 0.5


def by_step(name: str, measures: list[str]) -> tuple[dict, pd.DataFrame]:
    """Read a sweep of the plane: its settings, and a row for each cell and step that is `measured`."""
    settings, cells, _ = read_runs(data_path(f"results/{name}.jsonl"))
    frame = pd.DataFrame(cells).assign(step=[settings["measured"]] * len(cells))
    return settings, frame.explode(["step", *measures])


def load_collapse_map() -> pd.DataFrame:
    """Read in which settings experts die: a row for each cell and step, with start, weights, lr, step, and dead: the
    mean of the seeds."""
    _, frame = by_step("collapse", ["dead"])
    return frame.assign(dead=frame["dead"].map(np.mean)).reset_index(drop=True)


def dead_over_steps(name: str) -> tuple[list[int], dict[str, np.ndarray]]:
    """Read how many experts are dead in all layers of a sweep that keeps them, 'source_dead': the steps (N,), and for
    each model the counts (S, N) of S seeds."""
    frame = load_results(name)
    frame["count"] = [sum(map(len, layers)) for layers in frame.dead]
    tables = {model: rows.pivot(index="seed", columns="step", values="count") for model, rows in frame.groupby("model")}
    return sorted(frame.step.unique()), {model: table.to_numpy() for model, table in tables.items()}


def load_plane_sweep(name: str) -> pd.DataFrame:
    """Read a stored sweep of balancing methods in the plane, such as 'strengths': a row for each method, strength, step
    and seed, with accuracy, max_over_mean and dead."""
    measures = ["accuracy", "max_over_mean", "dead"]
    settings, frame = by_step(name, measures)
    seeds = list(range(settings["seeds"]))
    frame = frame.assign(seed=[seeds] * len(frame)).explode(["seed", *measures], ignore_index=True)
    return frame.assign(**frame[["step", "seed", *measures]].apply(pd.to_numeric))
