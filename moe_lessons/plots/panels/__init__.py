"""The panels of live views (`widgets.loop`), by name: each function view -> Panel in a module of this folder is one. It
is called up to 30 times a second while a model trains, so it never walks over all records: see `_history`."""

from collections.abc import Callable
from importlib import import_module
from inspect import getmembers, isfunction, signature
from pkgutil import iter_modules
from typing import Any

from moe_lessons.plots.marks import Panel

PANELS: dict[str, Callable[[Any], Panel]] = {
    name.replace("_", " "): function
    for module in iter_modules(__path__)
    for name, function in getmembers(import_module(f"{__name__}.{module.name}"), isfunction)
    if list(signature(function).parameters) == ["view"] and signature(function).return_annotation is Panel
}
