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
from moe_lessons.tasks.text import BYTE_CLASSES, DOMAINS, TextTask, byte_class, decode, encode, make_text

__all__ = [
    "BYTE_CLASSES",
    "DOMAINS",
    "PLANE_TASKS",
    "PRESETS",
    "REMEDIES",
    "ROUTERS",
    "PlaneClassifier",
    "PlaneSetting",
    "PlaneTask",
    "TextTask",
    "byte_class",
    "decode",
    "encode",
    "grid",
    "make_text",
    "plane_model",
    "remedy_setting",
    "spread_prototypes",
]
