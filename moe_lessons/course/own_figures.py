"""The measurements of lessons 05 and 12: the stored sweep that they read, and the models that race."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import median

import pandas as pd

from moe_lessons.analysis import studies
from moe_lessons.analysis.timing import take_turns
from moe_lessons.course import progress
from moe_lessons.nn import LanguageModel
from moe_lessons.tasks import Facts
from moe_lessons.training import Run

BOOK, MIXTURE, AS_GOOD = "book_8000", "MoE, E=16", "dense, F=256"
STEPS = 3000  # of the runs by which it is said how wide a dense model is that knows as much


def models(names: Iterable[str], times: int = 1, **sizes) -> dict[str, LanguageModel]:
    """Make models of the sweep by their names, all their widths so many `times` as large: D = 32 times."""
    study = replace(studies.LARGE_BOOK, times=times, sizes=studies.LARGE_BOOK.sizes | sizes)
    return {name: study.make_model(name) for name in names}


def writers(names: Iterable[str]) -> dict[str, LanguageModel]:
    """Make them at D = 768, where a model that writes waits for its weights; of one layer, since all must be there."""
    return models(names, 24, num_heads=8, num_kv_heads=8, max_positions=16, num_layers=1)


def learners(names: Iterable[str], times: int = 1, batch_size: int = 256) -> dict[str, Run]:
    """Make runs in which they learn the phone book of the lessons."""
    return {name: Run(model, Facts(), batch_size=batch_size) for name, model in models(names, times).items()}


def priced(ends: pd.DataFrame, repeats: int = 5) -> pd.DataFrame:
    """Add the minutes of training that this machine takes."""
    runs = learners(ends.model.unique())
    ms = dict(zip(runs, map(median, take_turns([run.step for run in runs.values()], repeats))))
    return ends.assign(minutes=ends.steps * ends.model.map(ms) / 60_000)


def keep(unit: str, keys: Sequence[str], values: Sequence[float]) -> None:
    """Note figures in the learner's progress."""
    for key, value in zip(keys, values):
        progress.record("figures", key, value=float(value), unit=unit)
