"""The measurements of lessons 05 and 12: the stored sweep that they read, the models that they time and train."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import median

import pandas as pd

from moe_lessons.analysis import decode_speed, studies
from moe_lessons.analysis.quality import times_as_wide, times_the_cost
from moe_lessons.analysis.results import load_ends
from moe_lessons.analysis.timing import paired_ratio, take_turns
from moe_lessons.course import progress
from moe_lessons.course.interview import lacking
from moe_lessons.nn import SAME_ACTIVE, LanguageModel
from moe_lessons.tasks import Facts
from moe_lessons.training import PRESETS, Run, SeedBand, facts_runs, is_dead, remedy_setting, train

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


def measure_missing() -> None:
    """Measure those figures of the answer that the learner's progress lacks, as their lessons do: a minute or less."""
    ends, names = load_ends(BOOK), (MIXTURE, SAME_ACTIVE, AS_GOOD)
    found = [measure(ends, MIXTURE, STEPS).width for measure in (times_as_wide, times_the_cost)]
    keep("times", ["05.effective_width", "05.work"], found)
    if lacking(*(keys := ["05.known_mixture", "05.known_active", "05.known_total"])):
        train((runs := facts_runs(num_entries=300)).values(), 85)
        keep("%", keys, [100 * run.task.known(run.model).double().mean() for run in runs.values()])
    if lacking(*(keys := ["05.writing_speed", "05.writing_speed_active"])):
        moe, baseline, good = decode_speed(writers(names), batch_sizes=(1,)).tokens_per_second
        keep("times", keys, [moe / good, moe / baseline])
    if lacking("05.training_speed"):
        moe, _, good = (run.step for run in learners(names, times=4).values())
        keep("times", ["05.training_speed"], [paired_ratio(good, moe, 4).median])
    balanced = remedy_setting("auxiliary loss", router_aux_loss_coef=1.0)
    for keys, steps, setting in (
        (["07.dead", "07.slowdown"], 300, PRESETS["collapse"]),
        (["08.dead_cured"], 200, balanced),
    ):
        if lacking(*keys):
            train(band := SeedBand(setting, range(3)), steps)
            loads = band.clean_loads()  # (seeds, E) shares
            keep("experts", keys, [is_dead(loads).sum(axis=1).mean(), 8 * loads.max(axis=1).mean()])
