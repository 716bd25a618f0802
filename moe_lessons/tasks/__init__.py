"""What is learned: tasks that are generated as you watch, and the models that take them on."""

from moe_lessons.tasks.plane import (
    PLANE_TASKS,
    PRESETS,
    REMEDIES,
    ROUTERS,
    PlaneClassifier,
    PlaneSetting,
    PlaneTask,
    grid,
    plane_model,
    remedy_setting,
    spread_prototypes,
)

__all__ = [
    "PLANE_TASKS",
    "PRESETS",
    "REMEDIES",
    "ROUTERS",
    "PlaneClassifier",
    "PlaneSetting",
    "PlaneTask",
    "grid",
    "plane_model",
    "remedy_setting",
    "spread_prototypes",
]
