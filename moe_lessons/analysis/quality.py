"""The quality of a mixture in the stored sweeps: how wide a dense FFN must be to be as good, and what that costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moe_lessons.analysis.results import load_ends, load_results
from moe_lessons.nn.baselines import dense_width
from moe_lessons.support.errors import check_choice

REAL_TEXTS = ("prose", "source")  # stored sweeps of text that comes with Python
QUALITY_TASKS = (*REAL_TEXTS, "facts")
FACTS_STEPS = 3000  # of the runs by which it is said which dense model knows as much


@dataclass(frozen=True)
class EffectiveWidth:
    """The `width` of the dense FFN that is as good as a mixture, or its cost, and the lowest and highest that one
    seed gives: `inf` for a mixture better than the widest of the `family`, 0 for one worse than the narrowest."""

    width: float
    low: float
    high: float
    family: tuple[float, float]

    def times(self, width: float) -> "EffectiveWidth":
        """Say it in multiples of `width`: of K·F, what the idle experts are worth."""
        narrow, wide = self.family
        return EffectiveWidth(self.width / width, self.low / width, self.high / width, (narrow / width, wide / width))

    def __str__(self) -> str:
        """Say it as '490 (430 to 560)', or 'above 512' where nothing in the family is as good, or both in one."""
        outside = {0: f"below {self.family[0]:.3g}", math.inf: f"above {self.family[1]:.3g}"}
        width, low, high = (outside.get(width, f"{width:.3g}") for width in (self.width, self.low, self.high))
        return width if low == high else f"{width} ({low} to {high})"  # equal: both outside, on the same side


def effective_width(family: Mapping[float, Sequence[float]], mixture: Sequence[float]) -> EffectiveWidth:
    """Find the width at which the dense models of a family are as good as a mixture.

    family: for each width of the dense FFN the quality (more is better) that its seeds reached; mixture: its own with
    the same seeds. The running maximum of the means is joined by straight lines over the logarithm of the width.

    >>> print(effective_width({64: [0.1, 0.12], 128: [0.3, 0.32], 256: [0.7, 0.72]}, [0.5, 0.56]))
    187 (181 to 194)
    """
    widths = sorted(family)
    counts = [len(mixture), *(len(family[width]) for width in widths)]
    if len(widths) < 2 or len(set(counts)) > 1 or not counts[0]:
        raise ValueError(f"family must have two widths or more, with as many seeds as the mixture, got {counts}")
    curves, reached = np.array([family[width] for width in widths], float), np.asarray(mixture, float)  # (W, S), (S,)
    if not (np.isfinite(curves).all() and np.isfinite(reached).all()):
        raise ValueError("family and mixture must have finite qualities, got others: leave out the runs that diverged")
    of_seeds = [_width_at(widths, curve, quality) for curve, quality in zip(curves.T, reached)]
    width = _width_at(widths, curves.mean(axis=1), reached.mean())
    return EffectiveWidth(width, min(*of_seeds, width), max(*of_seeds, width), (widths[0], widths[-1]))


def _width_at(widths: Sequence[float], curve: np.ndarray, quality: float) -> float:
    """Find the least width at which a curve (W,), made monotone, reaches this quality."""
    curve = np.maximum.accumulate(curve)
    i = int(np.searchsorted(curve, quality))  # the first that is as good
    if i in (0, len(curve)):
        return math.inf if i else float(widths[0]) * (quality == curve[0])
    share = (quality - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(widths[i - 1] ** (1 - share) * widths[i] ** share)


def dense_families(ends: pd.DataFrame, cost: str) -> dict[int, dict[float, list[float]]]:
    """Group what the seeds of the dense models of a `load_ends` knew: for each number of steps that several widths were
    trained, by their cost (a column)."""
    known = ends[ends.width.notna()].sort_values("seed").groupby(["steps", cost]).known.agg(list)
    return {steps: table.droplevel(0).to_dict() for steps, table in known.groupby(level=0) if len(table) > 1}


def times_the_cost(ends: pd.DataFrame, mixture: str, steps: int, cost: str = "flops") -> EffectiveWidth:
    """Find how many times the cost of a mixture (a column of `load_ends`) the best dense model has that knows as much:
    of each length of training and any width, also between those that were trained."""
    seeds = ends[(ends.model == mixture) & (ends.steps == steps)].sort_values("seed")
    found = [effective_width(family, list(seeds.known)) for family in dense_families(ends, cost).values()]
    # one that is worse than the narrowest (0) costs no more than that one
    least = [min(getattr(width, end) or width.family[0] for width in found) for end in ("width", "low", "high")]
    return EffectiveWidth(*least, min(each.family for each in found)).times(seeds[cost].iloc[0])


def times_as_wide(ends: pd.DataFrame, mixture: str, steps: int) -> EffectiveWidth:
    """Find how many times the active width a dense model needs to know as much after the same steps."""
    seeds = ends[(ends.model == mixture) & (ends.steps == steps)].sort_values("seed")
    return effective_width(dense_families(ends, "width")[steps], list(seeds.known))


def _matched(results: pd.DataFrame, step: int, argument: str, model: str) -> EffectiveWidth:
    """Find the quality-matched width of a mixture of a sweep of real text after a step, in multiples of its active
    width, by the held-out loss of the seeds that all models have reached. ValueError, with the name of the argument,
    for a model that is not there."""
    quality = -results[results.step == step].pivot(index="seed", columns="model", values="loss").dropna()
    check_choice(argument, model, [name for name in quality if not name.startswith("dense")])
    family = {width: list(quality[name]) for name in quality if (width := dense_width(name)) > 0}
    return effective_width(family, list(quality[model]))


def width_over_steps(task: str, model: str) -> pd.DataFrame:
    """Find the quality-matched width of a mixture of the sweep of a real text after each number of steps, in multiples
    of its active width: a row for each step, with the columns `width`, `low` and `high` of `EffectiveWidth`."""
    results = load_results(check_choice("task", task, REAL_TEXTS))
    found = {step: _matched(results, step, "model", model) for step in sorted(results.step.unique())}
    rows = [(step, match.width, match.low, match.high) for step, match in found.items()]
    return pd.DataFrame(rows, columns=["step", "width", "low", "high"])


def quality_matched_width(task: str, num_experts: int) -> EffectiveWidth:
    """Find how many times the active width a dense model needs to be as good as a mixture of `num_experts`, 2 for a
    token, after as many steps: of real text by the held-out loss after 4,000, of facts by what is known after 3,000.
    ValueError where no mixture of so many was trained."""
    model = f"MoE, E={num_experts}"
    if check_choice("task", task, QUALITY_TASKS) == "facts":
        ends = load_ends("book_8000")
        check_choice("num_experts", model, ends.model.unique())
        return times_as_wide(ends, model, FACTS_STEPS)
    results = load_results(task)
    return _matched(results, results.step.max(), "num_experts", model)
