"""What is measured: the load of the experts, what a model costs, how long things take, and what limits it."""

from moe_lessons.analysis.cost import (
    MODEL_SHAPES,
    ParameterCount,
    TransformerShape,
    count_parameters,
    flops_per_token,
    published_models,
)
from moe_lessons.analysis.inference import (
    Machine,
    arithmetic_intensity,
    bytes_per_step,
    decode_speed,
    distinct_experts,
    measure_machine,
    product_bandwidth,
    roofline_points,
    union_law,
)
from moe_lessons.analysis.load import LoadStatistics, balance_by_layer, describe_load, load_statistics
from moe_lessons.analysis.memory import peak_extra_bytes
from moe_lessons.analysis.results import load_results
from moe_lessons.analysis.timing import Ratio, paired_ratio
from moe_lessons.analysis.traces import (
    agreement,
    expert_shares,
    information,
    mutual_information,
    repeats,
    trace,
    trace_text,
)

__all__ = [
    "LoadStatistics",
    "MODEL_SHAPES",
    "Machine",
    "ParameterCount",
    "Ratio",
    "TransformerShape",
    "agreement",
    "arithmetic_intensity",
    "balance_by_layer",
    "bytes_per_step",
    "count_parameters",
    "decode_speed",
    "describe_load",
    "distinct_experts",
    "expert_shares",
    "flops_per_token",
    "information",
    "load_results",
    "load_statistics",
    "measure_machine",
    "mutual_information",
    "paired_ratio",
    "peak_extra_bytes",
    "product_bandwidth",
    "published_models",
    "repeats",
    "roofline_points",
    "trace",
    "trace_text",
    "union_law",
]
