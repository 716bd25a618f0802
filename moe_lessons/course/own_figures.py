"""What lesson 12 measures with: the stored sweep that it reads, and the models that race."""

from collections.abc import Sequence

import pandas as pd

from moe_lessons.analysis import EffectiveWidth, effective_width
from moe_lessons.analysis.results import load_results
from moe_lessons.course import progress
from moe_lessons.nn import EQUAL_ACTIVE, EQUAL_TOTAL, LanguageModel, dense_twin
from moe_lessons.training import facts_model

SWEEP, MIXTURE = "facts", "MoE, E=16"  # what lesson 12 says of stored runs is of this sweep, and of this mixture in it
WIDTHS = {EQUAL_ACTIVE: 64, EQUAL_TOTAL: 512}


def trained() -> pd.DataFrame:
    """Read how the runs of the mixture and of the dense models ended, a row each; `known` in %."""
    runs = load_results(SWEEP)
    runs = runs[(runs.step == runs.attrs["steps"]) & (~runs.model.str.startswith("MoE") | (runs.model == MIXTURE))]
    return runs.assign(known=100 * runs.known / runs.attrs["num_entries"])


def times_as_wide() -> EffectiveWidth:
    """Find how many times the active width a dense model needs to know as much as the mixture, with three seeds."""
    known = {name: list(runs.known) for name, runs in trained().groupby("model")}
    mixture = known.pop(MIXTURE)
    family = {WIDTHS.get(name) or int(name.partition("=")[2]): shares for name, shares in known.items()}
    return effective_width(family, mixture).times(WIDTHS[EQUAL_ACTIVE])


def contenders(d_model: int, **sizes) -> dict[str, LanguageModel]:
    """Make the mixture, its equal-active twin and the equally good dense model, their widths as in the sweep."""
    sizes |= {"d_model": d_model, "d_ff": d_model}
    moe, width = facts_model(**sizes), 16 * round(times_as_wide().width * 2 * d_model / 16)
    good = facts_model(**sizes | {"d_ff": width, "moe_layers": ()})
    return {"MoE": moe, EQUAL_ACTIVE: dense_twin(moe), "equally good dense": good}


def keep(unit: str, keys: Sequence[str], values: Sequence[float]) -> None:
    """Note figures in the learner's progress."""
    for key, value in zip(keys, values):
        progress.record("figures", key, value=float(value), unit=unit)
