"""The panels of live views, by name. A new one is a file: its module has a function of its own name, view -> Panel.

What a view is: see `widgets.loop`. A panel is asked for up to 30 times a second while a model trains, so it never walks
over all records: see `_history`.
"""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from moe_lessons.plots.marks import Panel
from moe_lessons.plots.panels.film import tile as tile  # of one tile of the balancing laboratory: tile(view, name)

_modules = [module.name for module in iter_modules(__path__) if not module.name.startswith("_")]
PANELS: dict[str, Callable[[Any], Panel]] = {
    name.replace("_", " "): getattr(import_module(f"{__name__}.{name}"), name) for name in _modules
}
