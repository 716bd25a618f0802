"""Tasks that are generated as you watch, and the models that take them on."""

from moe_lessons.tasks.facts import NOT_SCORED, Facts
from moe_lessons.tasks.plane import PLANE_TASKS, PlaneClassifier, PlaneTask, grid
from moe_lessons.tasks.text import BYTE_CLASSES, DOMAINS, TextTask, byte_class, decode, encode, make_text
