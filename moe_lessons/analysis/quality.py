"""The quality of a mixture in the stored sweeps: how wide a dense FFN must be to be as good."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moe_lessons.analysis.results import interval, last_of, load_results
from moe_lessons.nn.baselines import dense_width
from moe_lessons.support.data import data_path

SIZES = (64, 128, 256)  # D of the models of the sweeps `size_64`, …
PLACES = 1000  # at which the lines between two widths are read


@dataclass(frozen=True)
class EffectiveWidth:
    """The `width` of the dense FFN that is as good as a mixture, and its 95 % interval, from `low` to `high`: `inf` for
    above the `widest` that was trained, 0 for below the `narrowest`."""

    width: float
    low: float
    high: float
    narrowest: float
    widest: float

    def __str__(self) -> str:
        """Say it as '4.9 (4.3 to 5.6)', or 'above 8' where nothing is as good, or both in one."""
        outside = {0: f"below {self.narrowest:.2g}", math.inf: f"above {self.widest:.2g}"}
        width, low, high = (outside.get(width, f"{width:.2g}") for width in (self.width, self.low, self.high))
        return width if low == high else f"{width} ({low} to {high})"  # equal: both outside, on the same side


def effective_width(dense: Mapping[float, Sequence[float]], mixture: Sequence[float]) -> EffectiveWidth:
    """Find the width at which dense models are as good as a mixture.

    dense: for each width the losses of S seeds; mixture: its own with the same seeds. Each seed's loss is joined by
    straight lines over the logarithm of the width, and the mixture's is subtracted. The width is the least at which the
    mean of these differences is 0; the interval has the widths at which 0 lies in the 95 % interval of the mean. So
    widths beyond those that were trained need no value.

    >>> print(effective_width({1: [0.3, 0.31, 0.32], 2: [0.1, 0.11, 0.12], 4: [-0.12, -0.11, -0.1]}, [0, 0, 0]))
    2.8 (2.6 to 3.1)
    """
    widths = sorted(dense)
    losses, reached = [np.asarray(dense[width], float) for width in widths], np.asarray(mixture, float)
    counts = [len(reached), *map(len, losses)]
    if len(widths) < 2 or len(set(counts)) > 1 or counts[0] < 2:
        raise ValueError(f"dense must have two widths or more, with as many seeds as the mixture, got {counts}")
    if not np.isfinite([reached, *losses]).all():
        raise ValueError("dense and mixture must have finite losses, got others: leave out the runs that diverged")
    places = np.geomspace(widths[0], widths[-1], PLACES)
    behind = [np.interp(np.log(places), np.log(widths), seed - own) for seed, own in zip(np.transpose(losses), reached)]
    mean, half = interval(np.transpose(behind))  # of PLACES differences, from S seeds
    found = [_first(places, edge <= 0) for edge in (mean, mean - half, mean + half)]
    return EffectiveWidth(*found, widths[0], widths[-1])


def _first(places: np.ndarray, is_reached: np.ndarray) -> float:
    """Find the first place that is reached; 0 if that is the first of all, inf if there is none."""
    if not is_reached.any():
        return math.inf
    return float(places[is_reached.argmax()]) if not is_reached[0] else 0.0


def size_losses(d_model: int) -> tuple[dict[float, np.ndarray], np.ndarray]:
    """Read the last held-out losses of a sweep of `SIZES`: of the dense models by their width, in multiples of the
    active width of the mixture, and of the mixture, (S,) each, of the same S seeds."""
    losses = last_of(f"size_{d_model}").dropna()  # a seed that all models have
    dense = {width: losses[name].to_numpy() for name in losses if (width := dense_width(name)) > 0}
    return dict(sorted(dense.items())), losses["MoE"].to_numpy()


def width_over_size() -> pd.DataFrame:
    """Find the quality-matched width of 16 experts, top-2, in multiples of the active width, for models of each of
    `SIZES`: a row for each D, with the fields of `EffectiveWidth`, and it `said`."""
    found = {d_model: effective_width(*size_losses(d_model)) for d_model in SIZES}
    rows = [vars(match) | {"said": str(match)} for match in found.values()]
    return pd.DataFrame(rows, index=pd.Index(found, name="D"))


def race_by_clock() -> pd.DataFrame:
    """Read the sweep `race`: a row for each model, seed and reading, with the held-out `loss` after so many `seconds`
    of training, which are its steps times the CPU time of one, of the seed that other programs disturbed least."""
    runs = load_results("race")
    return runs.assign(seconds=runs.step * runs.groupby("model").ms_per_step.transform("min") / 1000)


def lead_by_clock(race: pd.DataFrame, seconds: Sequence[float], rival: str) -> tuple[np.ndarray, np.ndarray]:
    """Give by how much the loss of the MoE is below a rival's after so many seconds of `race_by_clock`: the mean over
    the seeds, and how far its 95 % interval reaches to both sides. Between two readings the loss is a straight line
    over log(seconds)."""
    runs = race.groupby(["model", "seed"])
    at = {run: np.interp(np.log(seconds), np.log(rows.seconds), rows.loss) for run, rows in runs}
    return interval(np.transpose([at[rival, seed] - at["MoE", seed] for seed in race.seed.unique()]))


def published_pairs() -> pd.DataFrame:
    """Read `published_quality.csv`: mixtures that were as good as a dense model trained on the same tokens, by their
    name; `width`: how many times their active parameters it has."""
    frame = pd.read_csv(data_path("published_quality.csv"), index_col="mixture")
    return frame.assign(width=frame.dense_b / frame.active_b)
