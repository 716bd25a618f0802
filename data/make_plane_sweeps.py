"""``python data/make_plane_sweeps.py``: accuracy and balance of MoEs in the plane by the coefficient of the auxiliary
loss (lesson 08); written to data/results (minutes)."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from moe_lessons.nn.seeding import torch_threads
from moe_lessons.support.data import FOLDER
from moe_lessons.support.files import write_rows
from moe_lessons.training import PRESETS, PlaneSetting, SeedBand, is_dead, train

POINTS = 2048  # held out, for each seed


@dataclass(frozen=True)
class PlaneSweep:
    """Mixtures that differ from `base` by what `changes` says of each, trained as a band from `num_seeds` seeds, and
    measured after so many steps."""

    base: PlaneSetting
    changes: Sequence[dict]
    num_seeds: int
    measured: Sequence[int]

    def header(self, name: str) -> dict:
        """Make the first line of the file: what all its rows have in common."""
        common = {"sweep": name, "seeds": self.num_seeds, "measured": self.measured, "setting": asdict(self.base)}
        return json.loads(json.dumps(common))  # lists, as stored


COLLAPSE = PRESETS["collapse"]
COEFFICIENTS = [{"router_aux_loss_coef": coefficient} for coefficient in (0.0, 0.03, 0.1, 0.3, 1.0, 10.0)]
SWEEPS = {
    "coefficients": PlaneSweep(replace(COLLAPSE, task="checker", d_ff=1), COEFFICIENTS, 10, measured=(200, 600)),
}


@torch_threads(1)  # the same numbers wherever it is trained
def train_row(sweep: PlaneSweep, change: dict) -> dict:
    """Train one mixture of a sweep, and return what is stored of it: see data/README.md."""
    setting = replace(sweep.base, **change)
    band, found = SeedBand(setting, range(sweep.num_seeds)), {"accuracy": [], "max_over_mean": [], "dead": []}
    for step in sweep.measured:
        train(band, step - len(band.records))
        read = band.evaluate(POINTS)
        loads = read["loads"]  # (S, E)
        found["accuracy"].append(read["accuracies"].round(4).tolist())
        found["max_over_mean"].append((loads.max(axis=1) * setting.num_experts).round(3).tolist())
        found["dead"].append(is_dead(loads * setting.top_k).sum(axis=1).tolist())
    return change | found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(SWEEPS)} (default: all)")
    parser.add_argument("--output", type=Path, default=FOLDER / "results")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(SWEEPS):
        parser.error(f"NAME must be one of {', '.join(SWEEPS)}, got {', '.join(sorted(unknown))}")
    for name in options.names or SWEEPS:
        rows = [SWEEPS[name].header(name), *(train_row(SWEEPS[name], change) for change in SWEEPS[name].changes)]
        write_rows(options.output / f"{name}.jsonl", rows)


if __name__ == "__main__":
    main()
