"""The results of long sweeps, kept in ``data/results`` as lines of JSON: the settings first, then one line a run."""

import json
from pathlib import Path

import pandas as pd

from moe_lessons.support.data import data_path

POINTS = ("step", "loss")  # the lists of a stored run, a value for each measurement; of facts also 'known'


def read_runs(path: Path) -> tuple[dict, list[dict], int]:
    """Read the settings of a results file ({} where it has none yet), its runs, and how many bytes are whole lines.

    What follows them was cut off by an interrupt. ValueError for a whole line that is no JSON object.
    """
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
    """Read the stored sweep `name`, one row for each time that a run was measured; `attrs` has the settings.

    data/README.md has the columns; here flops and seconds are those of training up to the step. FileNotFoundError for a
    sweep that is not stored, ValueError for one without a finished run.

    >>> load_results("capacity").attrs["steps"]
    500
    """
    path = data_path(f"results/{name}.jsonl")
    settings, runs, _ = read_runs(path)
    if not runs:
        raise ValueError(f"{path} must hold at least one run, got none yet: go on with the sweep")
    frame = pd.DataFrame(sorted(runs, key=lambda run: run["seed"]))  # of each model the seeds in one order
    points = [name for name in (*POINTS, "known") if name in frame]
    frame = frame.explode(points, ignore_index=True)
    frame[points] = frame[points].apply(pd.to_numeric)
    frame["flops"] = frame.step * frame.pop("flops_per_step")
    frame["seconds"] = frame.step * frame.pop("ms_per_step") / 1000
    frame.attrs |= settings
    return frame


def last_of(name: str, column: str = "loss") -> pd.DataFrame:
    """Read what the stored sweep `name` (of one rate for each model) ended with: a row a seed, a column a model.

    >>> last_of("facts", "known")["equal-active twin"].to_dict()
    {1: 392, 2: 495, 3: 298}
    """
    results = load_results(name)
    last = results[results.step == results.attrs["steps"]]
    return last.pivot(index="seed", columns="model", values=column)
