"""The results of long sweeps, kept in ``data/results`` as lines of JSON: the settings first, then one line a run."""

import json
from pathlib import Path

import pandas as pd

from moe_lessons.datafiles import data_path

POINTS = ["step", "loss"]  # the lists of a stored run, a value for each measurement


def read_runs(path: Path) -> tuple[dict, list[dict], int]:
    """The settings of a results file, its runs, and how many of its bytes are whole lines.

    What follows the last whole line was cut off by an interrupt, and is left out. A file without one whole line gives
    no settings ({}) and no runs. Raises ValueError for a whole line that is not a JSON object.
    """
    data = path.read_bytes()
    num_whole = data.rfind(b"\n") + 1
    lines = []
    for number, line in enumerate(data[:num_whole].splitlines(), start=1):
        try:
            lines.append(json.loads(line))
            if not isinstance(lines[-1], dict):
                raise ValueError(f"a {type(lines[-1]).__name__}")
        except ValueError as error:
            raise ValueError(f"{path} must have a JSON object on each line, got on line {number}: {error}") from None
    return (lines[0] if lines else {}), lines[1:], num_whole


def load_results(name: str) -> pd.DataFrame:
    """The stored sweep `name`, one row for each time that a run was measured.

    Columns: model, lr, seed, step, loss (held-out, nats), flops and seconds (of training, up to that step),
    parameters (all), active (those that a token uses), spikes (of the run's training loss), diverged (whether the run
    ended by that; step and loss are NaN where it did before it was measured), and what it was made with: date, python,
    torch, cpu, threads. `attrs` has the settings. Raises FileNotFoundError, with the names that there are, for a sweep
    that is not stored, and ValueError for one without a finished run.

    >>> results = load_results("capacity")
    >>> bool((results.groupby(["model", "seed"]).loss.first() > results.groupby(["model", "seed"]).loss.last()).all())
    True
    """
    path = data_path(f"results/{name}.jsonl")
    settings, runs, _ = read_runs(path)
    if not runs:
        raise ValueError(f"{path} must hold at least one run, got none yet: go on with the sweep")
    frame = pd.DataFrame(runs).explode(POINTS, ignore_index=True)
    frame[POINTS] = frame[POINTS].apply(pd.to_numeric)
    frame["flops"] = frame.step * frame.pop("flops_per_step")
    frame["seconds"] = frame.step * frame.pop("ms_per_step") / 1000
    frame.attrs |= settings
    return frame
