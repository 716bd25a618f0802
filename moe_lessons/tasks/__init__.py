"""What is learned: tasks that are generated as you watch, and the models that take them on."""

from moe_lessons.tasks.plane import (
    PLANE_TASKS,
    PRESETS,
    PlaneClassifier,
    PlaneSetting,
    PlaneTask,
    grid,
    plane_model,
    spread_prototypes,
)

__all__ = [
    "PLANE_TASKS",
    "PRESETS",
    "PlaneClassifier",
    "PlaneSetting",
    "PlaneTask",
    "grid",
    "plane_model",
    "spread_prototypes",
]
