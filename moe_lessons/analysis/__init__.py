"""What is measured: the load of the experts, what a model costs, and how long things take."""

from moe_lessons.analysis.cost import (
    MODEL_SHAPES,
    ParameterCount,
    TransformerShape,
    count_parameters,
    flops_per_token,
    published_models,
)
from moe_lessons.analysis.load import LoadStatistics, balance_by_layer, describe_load, load_statistics
from moe_lessons.analysis.memory import peak_extra_bytes
from moe_lessons.analysis.timing import Ratio, paired_ratio

__all__ = [
    "MODEL_SHAPES",
    "LoadStatistics",
    "ParameterCount",
    "Ratio",
    "TransformerShape",
    "balance_by_layer",
    "count_parameters",
    "describe_load",
    "flops_per_token",
    "load_statistics",
    "paired_ratio",
    "peak_extra_bytes",
    "published_models",
]
