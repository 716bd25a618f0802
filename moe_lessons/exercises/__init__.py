"""The exercises, which say of an answer what differs. `EXERCISES` is all of them, in the order of the course.

They are found by the names of their files, lesson_00.py to lesson_12.py, and imported when one of a file is asked for.
"""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

MODULES = {  # name -> its module, read from the sources
    name: path.stem
    for path in sorted(Path(__file__).parent.glob("lesson_*.py"))
    for name in re.findall(r"^@exercise\(.*?^def (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
}


def __getattr__(name: str) -> Any:
    if name == "EXERCISES":
        return tuple(map(__getattr__, MODULES))
    if name not in MODULES:
        raise AttributeError(f"there is no exercise {name!r}; there are: {', '.join(MODULES)}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*MODULES, "EXERCISES"]
