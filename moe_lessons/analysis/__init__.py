"""Measurements: the load of the experts, the cost of a model, times, and what limits them."""

from moe_lessons.analysis.counting import TransformerShape, count_parameters, flops_per_token
from moe_lessons.analysis.inference import Machine, bytes_per_step, decode_speed, distinct_experts, union_law
from moe_lessons.analysis.load import balance_by_layer, load_statistics, replicate
from moe_lessons.analysis.quality import EffectiveWidth, effective_width
from moe_lessons.analysis.results import load_results
from moe_lessons.analysis.traces import (
    expert_shares,
    muted_losses,
    mutual_information,
    real_routing,
    real_told_bits,
    routing_counts,
    shuffled_counts,
    told_bits,
    trace,
    trace_text,
)
