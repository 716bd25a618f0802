"""The exercises, which say of an answer what differs. `EXERCISES` is all of them, in the order of the course.

They are found by the names of their files, lesson_00.py and so on."""

from importlib import import_module
from pkgutil import iter_modules

from moe_lessons.exercises.exercise import Exercise

LESSON_MODULES = sorted(module.name for module in iter_modules(__path__) if module.name.startswith("lesson_"))
FOUND = {
    name: value
    for lesson in LESSON_MODULES
    for name, value in vars(import_module(f"{__name__}.{lesson}")).items()
    if isinstance(value, Exercise)
}
EXERCISES = tuple(FOUND.values())


def __getattr__(name: str) -> Exercise:
    if name not in FOUND:
        raise AttributeError(f"there is no exercise {name!r}; there are: {', '.join(FOUND)}")
    return FOUND[name]


def __dir__() -> list[str]:
    return [*FOUND, "EXERCISES"]
