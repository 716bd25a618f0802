"""Counts the sizes of mixtures that were planned on many devices and are not in published_models.csv, and writes
planned_models.json.

    python data/make_planned_models.py

Their makers published no configuration for `transformers`, so each is counted from the sizes in its paper.
"""

import json
from dataclasses import asdict
from pathlib import Path

from moe_lessons.analysis.counting import TransformerShape
from moe_lessons.analysis.roofline import ExpertGroup, ModelSizes, sizes_of

JSON = Path(__file__).with_name("planned_models.json")


def _older(d_model: int, layers: int, num_experts: int, top_k: int, expert: int, rest: int) -> tuple[ModelSizes, int]:
    """Count `layers` of experts, each of so many weights, and `rest` weights that every token uses."""
    group = ExpertGroup(num_experts, top_k, num_experts * expert, expert, expert, True, layers)
    return ModelSizes(layers * group.size + rest, (group,), layers * top_k * expert + rest, 0, cached=()), d_model


def _gshard(num_experts: int, layers: int) -> tuple[ModelSizes, int]:
    """Count half encoder, half decoder; every other FFN a mixture; D 1024, F 8192, 16 heads of 128, 32,000 words
    (arXiv:2006.16668, section 4.3 and appendix A.2). A token is one of the source with one of the target."""
    ffn, attention = 2 * 1024 * 8192, 4 * 1024 * 16 * 128  # a decoder's layer attends twice
    return _older(1024, layers // 2, num_experts, 2, ffn, layers // 2 * (ffn + 3 * attention) + 1024 * 32000)


MODELS = {
    "Mixtral 8x22B": TransformerShape(32000, 6144, 56, 48, 8, 128, 16384, num_experts=8, top_k=2),
    "Mixtral 8x22B G8T8": TransformerShape(32000, 6144, 56, 48, 8, 128, 2048, num_experts=64, top_k=8),
    "Qwen2-57B-A14B": TransformerShape(151936, 3584, 28, 28, 4, 128, 2560, num_experts=64, top_k=8, shared_experts=8),
    "GShard 600B": _gshard(2048, 36),
    "GShard 200B": _gshard(2048, 12),
    "GShard 150B": _gshard(512, 36),
    "GShard 37B": _gshard(128, 36),
    # arXiv:2112.06905, section 4 and table 4: 64 layers, half with experts, half with a gated FFN; 128 heads of 128
    "GLaM": _older(8192, 32, 64, 2, 2**29, 32 * 3 * 2**28 + 64 * 4 * 8192 * 16384 + 256000 * 8192),
    # arXiv:2101.03961, table 9: 124 GFLOPs for 512 + 114 tokens; 6 layers with experts for each
    "Switch-Base-128": _older(768, 6, 128, 1, 3 * 768 * 2048, 99_041_534 - 6 * 3 * 768 * 2048),
}


def text() -> str:
    """A line for each model: its D, and all that the planner needs."""
    lines = []
    for name, model in MODELS.items():
        sizes, d_model = model if isinstance(model, tuple) else (sizes_of(model), model.d_model)
        lines.append(f"{json.dumps(name)}: {json.dumps({'d_model': d_model, **asdict(sizes)})}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    JSON.write_text(text(), encoding="utf-8")
