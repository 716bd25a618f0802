"""Say what the speedup map needs in the page: models, machines, controls, and its panel."""

from typing import Any

import numpy as np

from moe_lessons.analysis.counting import TransformerShape
from moe_lessons.analysis.quality import effective_width, size_losses
from moe_lessons.analysis.roofline import (
    ATTENTION,
    CACHE_BYTES,
    ROUTER,
    WEIGHT_BYTES,
    ModelSizes,
    machines,
    published_sizes,
    sizes_of,
)
from moe_lessons.analysis.speedup import speedups
from moe_lessons.plots.marks import Panel, Table, encode_panel
from moe_lessons.plots.speeds import EDGE_INKS, LAST, LEVELS, speedup_panel
from moe_lessons.plots.theme import DENSE_INKS, OTHER
from moe_lessons.widgets.canvas import COLORS
from moe_lessons.widgets.speedup_map import EXPERT_STOPS, SpeedupMap
from web.manifest import describe_control

COURSE = "the course's own"  # a model of its language models
SHAPE = TransformerShape(256, 512, 2, 8, 4, 64, 1024, num_experts=16, top_k=2)  # that of lessons 04 and 05
NAMES = "Mixtral 8x7B", "OLMoE-1B-7B", "Qwen3-30B-A3B", "gpt-oss-20b", "DeepSeek-V3"
TOP_K = 1, 2, 4, 8, 16
ROOFLINE = (
    "Speedup: the dense model's time for a decoding step over the MoE's. By the roofline (contours) each part of it "
    "loads or computes, whichever takes longer."
)
HEIGHT = 404  # pixels: the map with both axes, and all above it, on one screen


def models() -> dict[str, ModelSizes]:
    """The models that the page offers; of none the cache of a layer ends at a window."""
    found = {name: published_sizes()[name] for name in NAMES} | {COURSE: sizes_of(SHAPE)}
    return {name: sizes for name, sizes in found.items() if all(layer.window is None for layer in sizes.cached)}


def described(sizes: ModelSizes) -> dict[str, float]:
    """Count what the costs of a model follow from, with any number of experts; of all layers together."""
    (group,), parts = sizes.groups, sizes.parts(1)
    weights, flops = parts[ATTENTION]
    return {
        "experts": group.num_experts,
        "top_k": group.top_k,
        "rest": sizes.total - group.num_experts * group.layers * group.expert - parts[ROUTER][0],
        "weights": weights,
        "flops": flops,
        "router": parts[ROUTER][0] / group.num_experts,
        "shared": sizes.shared,
        "expert": group.layers * group.expert,
        "matrix": group.layers * group.matrix,
        "cache": sizes.cache(1),
        "scores": sizes.flops(1) - sizes.flops(0),
    }


def speedup_manifest() -> dict[str, Any]:
    """Say all that the page needs, in what JSON can hold."""
    offered, rows = models(), machines()
    first, stops = next(iter(offered)), {"num_experts": EXPERT_STOPS, "top_k": TOP_K}
    stops |= {"machine": tuple(rows.index), "weights": tuple(WEIGHT_BYTES)}
    view = SpeedupMap(first, machine="NVIDIA H200 SXM")  # into which it fits
    usual = {"model": first} | view.settings | {"width": 2, "batch_size": 1}
    view.close()
    controls = {name: describe_control(name, stops.get(name)) for name in view.inputs}
    model = {"label": "Model", "tip": "With how large experts, and what else", "is_list": True}
    model["stops"] = [(name, name) for name in offered]
    one = speedups(offered[first], view.roof, "bfloat16", 2.0 ** np.arange(LAST + 1))
    heat = {"places": [], "columns": 1, "titles": [], "selected": [0, 0]}
    found = effective_width(*size_losses(64))  # as lesson 05 has it on its map
    name = f"quality-matched width: {found}"
    table = Panel("", [Table((), (), ())], width=4, height=HEIGHT)
    return {
        "models": {name: described(sizes) for name, sizes in offered.items()},
        "machines": {
            row.Index: [row.bytes_per_second, row.bf16_flops_per_second, row.fp8_flops_per_second, row.memory_bytes]
            for row in rows.itertuples()
        },
        "bytes": {kind: [WEIGHT_BYTES[kind], CACHE_BYTES[kind]] for kind in WEIGHT_BYTES},
        "controls": {"model": model} | controls,
        "usual": usual,
        "matched": {"model": COURSE, "width": found.width, "low": found.low, "high": found.high, "name": name},
        "levels": LEVELS,
        "edges": EDGE_INKS,
        "last": LAST,
        "panel": encode_panel(speedup_panel(one, 4.0, heat, caption=ROOFLINE, width=8, height=HEIGHT), 0)[0],
        "table": encode_panel(table, 1)[0],
        "inks": {"": OTHER} | DENSE_INKS,  # of dense models
        "colors": COLORS,
    }
