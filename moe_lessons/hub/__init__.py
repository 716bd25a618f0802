"""Models of Hugging Face (extra: hf): theirs as ours, and ours as theirs."""

import importlib

from moe_lessons.hub.blocks import BLOCKS, convert_block
from moe_lessons.hub.models import byte_tokenizer, convert_model, export_model
from moe_lessons.hub.routing_lens import Lens


def __getattr__(name: str):
    if name != "ConfigCalculator":  # whose module imports widgets
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.calculator").ConfigCalculator
