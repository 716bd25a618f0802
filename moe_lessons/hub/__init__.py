"""Models of Hugging Face (extra: hf): theirs as ours."""

from moe_lessons.hub.blocks import FAMILIES, SwitchMoE, convert_block
from moe_lessons.hub.models import convert_model
