"""Training: a run and its knobs, settings in the plane, of facts and of a race, seeds side by side."""

from moe_lessons.training.bands import SeedBand
from moe_lessons.training.bars import bar, train
from moe_lessons.training.record import DEAD_SHARE, Record, dead_experts, is_dead, load_share
from moe_lessons.training.run import Run, TrainingDiverged, step_together
from moe_lessons.training.settings import (
    BALANCING_METHODS,
    PRESETS,
    PlaneSetting,
    balancing_setting,
    facts_model,
    facts_run,
    facts_runs,
    plane_model,
    plane_runs,
    race_runs,
)
