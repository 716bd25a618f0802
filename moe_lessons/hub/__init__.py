"""Models of Hugging Face (extra: hf): theirs as ours, and ours as theirs."""

from moe_lessons.hub.adapter import RunModel
from moe_lessons.hub.blocks import FAMILIES, SwitchMoE, convert_block
from moe_lessons.hub.engine_files import write_engine_configs
from moe_lessons.hub.models import byte_tokenizer, convert_model, export_model
from moe_lessons.hub.routing_lens import Lens


def __getattr__(name: str):
    if name != "LensCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from moe_lessons.hub.callback import LensCallback  # which imports transformers

    return LensCallback
