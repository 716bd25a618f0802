"""Models of Hugging Face (extra: hf): theirs as ours, and ours as theirs."""

import importlib

from moe_lessons.hub.blocks import FAMILIES, SwitchMoE, convert_block
from moe_lessons.hub.engine_files import write_engine_configs
from moe_lessons.hub.models import byte_tokenizer, convert_model, export_model
from moe_lessons.hub.routing_lens import Lens, RunModel

LATE = {"LensCallback": "callback", "ConfigCalculator": "calculator"}  # whose modules import transformers or widgets


def __getattr__(name: str):
    if name not in LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{LATE[name]}"), name)
