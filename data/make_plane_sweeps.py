"""``python data/make_plane_sweeps.py``: what balancing methods do in the plane at several strengths, from the start and
from a collapse, and what the auxiliary loss does on the checkerboard (lesson 08); written to data/results (minutes)."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from moe_lessons.analysis.collapse import STRENGTHS
from moe_lessons.nn.seeding import torch_threads
from moe_lessons.support.data import FOLDER
from moe_lessons.support.files import write_rows
from moe_lessons.training import PRESETS, PlaneSetting, SeedBand, balancing_setting, is_dead, train

POINTS = 2048  # held out, for each seed
KNOBS = STRENGTHS | {"top-2": "top_k"}


@dataclass(frozen=True)
class PlaneSweep:
    """Mixtures with balancing methods, `tried`: pairs of a method and its strength (None: it has none). Each is trained
    as a band from `num_seeds` seeds, after `collapsed` steps of `base` alone, and measured so many steps later."""

    base: PlaneSetting
    tried: Sequence[tuple[str, float | None]]
    num_seeds: int
    measured: Sequence[int]
    collapsed: int = 0

    def header(self, name: str) -> dict:
        """Make the first line of the file: what all its rows have in common."""
        common = {"sweep": name, "seeds": self.num_seeds, "measured": self.measured, "collapsed": self.collapsed}
        return json.loads(json.dumps(common | {"setting": asdict(self.base)}))  # lists, as stored


COLLAPSE = PRESETS["collapse"]
COEFFICIENTS = [("auxiliary loss", coefficient) for coefficient in (0.0, 0.03, 0.1, 0.3, 1.0, 10.0)]
TRIED = {
    "no balancing": [None],
    "Gaussian noise": (0.3, 1.0, 3.0, 10.0),
    "learned noise": [None],
    "jitter": (0.01, 0.1, 0.3, 1.0),
    "top-2": (2, 3, 4, 6),
    "capacity": (1.0, 1.25, 1.5, 2.0),
    "z-loss": (0.001, 0.01, 0.1, 1.0),
    "auxiliary loss": (0.01, 0.1, 1.0, 10.0),
    "bias update": (0.001, 0.01, 0.1, 1.0),
    "expert choice": [None],
}
METHODS = [(method, strength) for method, strengths in TRIED.items() for strength in strengths]
STEPS = (100, 300, 600, 1200)
SWEEPS = {
    "coefficients": PlaneSweep(replace(COLLAPSE, task="checker", d_ff=1), COEFFICIENTS, 10, measured=(200, 600)),
    "strengths": PlaneSweep(COLLAPSE, METHODS, 5, STEPS),
    "strengths_collapsed": PlaneSweep(COLLAPSE, METHODS, 5, STEPS, collapsed=100),
}


@torch_threads(1)  # the same numbers wherever it is trained
def train_row(sweep: PlaneSweep, method: str, strength: float | None) -> dict:
    """Train one mixture of a sweep, and return what is stored of it: see data/README.md."""
    fields = {} if strength is None else {KNOBS[method]: strength}
    setting = balancing_setting(method, base=sweep.base, **fields)
    band, found = SeedBand(sweep.base, range(sweep.num_seeds)), {"accuracy": [], "max_over_mean": [], "dead": []}
    train(band, sweep.collapsed)
    band = band.branch(setting)
    for step in sweep.measured:
        train(band, sweep.collapsed + step - len(band.records))
        read = band.evaluate(POINTS)
        loads = read["loads"]  # (S, E)
        found["accuracy"].append(read["accuracies"].round(4).tolist())
        found["max_over_mean"].append((loads.max(axis=1) * setting.num_experts).round(3).tolist())
        found["dead"].append(is_dead(loads * setting.top_k).sum(axis=1).tolist())
    return {"method": method, "strength": strength} | found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(SWEEPS)} (default: all)")
    parser.add_argument("--output", type=Path, default=FOLDER / "results")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(SWEEPS):
        parser.error(f"NAME must be one of {', '.join(SWEEPS)}, got {', '.join(sorted(unknown))}")
    for name in options.names or SWEEPS:
        rows = [SWEEPS[name].header(name), *(train_row(SWEEPS[name], *each) for each in SWEEPS[name].tried)]
        write_rows(options.output / f"{name}.jsonl", rows)


if __name__ == "__main__":
    main()
