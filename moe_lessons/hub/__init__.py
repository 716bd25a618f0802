"""Models of Hugging Face: what their routers decide, and what they cost."""

import importlib

from moe_lessons.hub.routing_lens import Lens


def __getattr__(name: str):
    if name != "ConfigCalculator":  # whose module imports widgets
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.calculator").ConfigCalculator
