"""``python data/make_collapse_map.py``: in which settings experts die, by the router's start, K, the division of its
weights and the learning rate; written to data/results/collapse.jsonl (minutes)."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from moe_lessons.analysis.collapse import RECENT, WEIGHTS, band_of
from moe_lessons.nn.seeding import torch_threads
from moe_lessons.support.data import FOLDER
from moe_lessons.support.files import write_rows
from moe_lessons.training import PRESETS

COLLAPSE = PRESETS["collapse"]
STARTS, RATES, SEEDS = ("spread", "soft spread", "random"), (0.001, 0.003, 0.01, 0.03), 10
MEASURED = (RECENT, 300, 600)  # steps: dead[i][s] is, of seed s, the mean of `RECENT` steps up to MEASURED[i]


def header() -> dict:
    """Make the first line of the file: what all cells have in common."""
    axes = {"starts": STARTS, "weights": tuple(WEIGHTS), "rates": RATES, "seeds": SEEDS, "measured": MEASURED}
    return json.loads(json.dumps({"sweep": "collapse", **axes, "setting": asdict(COLLAPSE)}))  # lists, as stored


@torch_threads(1)  # the same numbers wherever it is trained
def train_cell(start: str, weights: str, lr: float, measured: Sequence[int] = MEASURED) -> dict:
    """Train one cell, a band of `SEEDS` seeds, and return what is stored of it: see data/README.md."""
    top_k, divided = WEIGHTS[weights]
    band = band_of(replace(COLLAPSE, router_start=start, top_k=top_k, lr=lr), divided, range(SEEDS))
    dead = np.array([band.step().dead for _ in range(measured[-1])])  # (steps, S)
    ends = [dead[at - RECENT : at].mean(axis=0).round(2).tolist() for at in measured]
    read = band.evaluate()
    cell = {"model": f"{start}, {weights}", "lr": lr, "seed": 0, "start": start, "weights": weights, "dead": ends}
    return cell | {"loss": [round(read["loss"], 4)], "accuracy": round(read["accuracy"], 4), "diverged": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=FOLDER / "results/collapse.jsonl")
    parser.add_argument("--jobs", type=int, default=1, help="processes of this machine that train (default: 1)")
    options = parser.parse_args()
    cells = Parallel(options.jobs, verbose=10)(delayed(train_cell)(*cell) for cell in product(STARTS, WEIGHTS, RATES))
    write_rows(options.output, (header(), *cells))


if __name__ == "__main__":
    main()
