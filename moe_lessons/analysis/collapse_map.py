"""In which settings experts die: a stored sweep over the router's start, K, its weights and the learning rate."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from moe_lessons.analysis.collapse import RECENT
from moe_lessons.analysis.results import read_runs
from moe_lessons.support.data import data_path
from moe_lessons.training import PRESETS, PlaneSetting, SeedBand

COLLAPSE = PRESETS["collapse"]
# what the outputs of the chosen experts are multiplied by: K, and whether their probabilities are divided by their sum
WEIGHTS = {"K = 1, p": (1, False), "K = 1, p / sum": (1, True), "K = 2, p": (2, False), "K = 2, p / sum": (2, True)}


def band_of(setting: PlaneSetting, divided: bool, seeds: Sequence[int]) -> SeedBand:
    """Make a band of top-k routers whose K probabilities are `divided` by their sum, or not (`norm_topk_prob`).

    p / p is 1 whatever the scores, so with K = 1 the gradient of such a router is 0. It stands still here: else Adam
    would make steps of the rounding errors."""
    band = SeedBand(setting, seeds)
    for router in band.model.block.router.routers:
        router.norm_topk_prob = divided
        router.requires_grad_(not divided or setting.top_k > 1)
    return band


@dataclass(frozen=True)
class CollapseSweep:
    """Is a table of bands of `seeds` seeds from 0 up, for `sweeps.train_missing`: each of `starts` and `weights` (a
    'model') at each of `rates`. A row has dead[i][s]: of seed s, the mean of `RECENT` steps up to measured[i]."""

    starts: Sequence[str] = ("spread", "soft spread", "random")
    weights: Sequence[str] = tuple(WEIGHTS)
    rates: Sequence[float] = (0.001, 0.003, 0.01, 0.03)
    seeds: int = 10
    measured: Sequence[int] = (RECENT, 300, 600)  # steps

    def table(self) -> list[tuple]:
        return [(f"{s}, {w}", lr, 0) for s in self.starts for w in self.weights for lr in self.rates]

    def header(self, name: str) -> dict:
        return json.loads(json.dumps({"sweep": name, **asdict(self), "setting": asdict(COLLAPSE)}))  # lists, as stored

    def train(self, model: str, lr: float, seed: int = 0) -> dict:
        """Train one cell of the table, and return what is stored of it: see data/README.md."""
        start, weights = model.split(", ", 1)
        top_k, divided = WEIGHTS[weights]
        setting = replace(COLLAPSE, router_start=start, top_k=top_k, lr=lr)
        band = band_of(setting, divided, range(seed, seed + self.seeds))
        dead = np.array([band.step().dead for _ in range(self.measured[-1])])  # (steps, S)
        ends = [dead[at - RECENT : at].mean(axis=0).round(2).tolist() for at in self.measured]
        read = band.evaluate()
        more = {"loss": [round(read["loss"], 4)], "accuracy": round(read["accuracy"], 4), "diverged": False}
        return {"model": model, "lr": lr, "seed": seed, "start": start, "weights": weights, "dead": ends, **more}


def load_collapse_map() -> pd.DataFrame:
    """Read the stored sweep: a row for each cell and step, with start, weights, lr, step, and dead: the mean of the
    seeds."""
    settings, cells, _ = read_runs(data_path("results/collapse.jsonl"))
    frame = pd.DataFrame(cells).assign(step=[settings["measured"]] * len(cells)).explode(["step", "dead"])
    return frame.assign(dead=frame["dead"].map(np.mean)).reset_index(drop=True)
