"""What is measured: the load of the experts, what a model costs, and how long things take."""

from moe_lessons.analysis.cost import (
    MODEL_SHAPES,
    ParameterCount,
    TransformerShape,
    count_parameters,
    flops_per_token,
    published_models,
)
from moe_lessons.analysis.load import LoadStatistics, describe_load, load_statistics
from moe_lessons.analysis.timing import Ratio, paired_ratio

__all__ = [
    "MODEL_SHAPES",
    "LoadStatistics",
    "ParameterCount",
    "Ratio",
    "TransformerShape",
    "count_parameters",
    "describe_load",
    "flops_per_token",
    "load_statistics",
    "paired_ratio",
    "published_models",
]
