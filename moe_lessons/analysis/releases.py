"""Published mixtures by the day of their release, and what each costs in decoding: edges, bytes, memory, devices."""

import math

import numpy as np
import pandas as pd

from moe_lessons.analysis.roofline import WEIGHT_BYTES, machine_for, machines
from moe_lessons.analysis.speedup import edges
from moe_lessons.support.data import data_path
from moe_lessons.support.errors import check_choice

BYTES = WEIGHT_BYTES | {"4-bit": 4.25 / 8}  # as released, with a scale for 32 weights (MXFP4)


def modern_models() -> pd.DataFrame:
    """Read mixtures by the day of their release, the middle of a month where no more is known: data/README.md."""
    frame = pd.read_csv(data_path("modern_models.csv")).fillna({"balancing": "", "note": ""})
    day = frame.release_date.where(frame.release_date.str.len() > len("2025-01"), frame.release_date + "-15")
    return frame.assign(day=pd.to_datetime(day)).sort_values("day", ignore_index=True)


def release_costs(machine: str = "NVIDIA H200 SXM", width: float = 4.0) -> pd.DataFrame:
    """Count what each of `modern_models()` costs, in the types of its release: a row for each, by its name.

    sparsity: E/K. lower, upper: the `edges` over a dense model of this width, of routed experts alone; NaN where there
    are none; experts in 4 bits are computed in the type of the other weights. gb_per_token, gb: the weights that a
    token loads, and all of them, in 10⁹ bytes. devices: the fewest of `machine` that hold all weights, each a slice of
    them. day: of the release.

    The active parameters are rest + K/E · routed, and the total is rest + routed; the routed experts follow."""
    row = machines().loc[check_choice("machine", machine, machines().index)]
    models = modern_models().set_index("name")
    share = models.top_k / models.num_experts
    routed = (models.total_params_b - models.active_params_b) / (1 - share)  # 10⁹ parameters
    expert, other = models.expert_weights.map(BYTES), models.other_weights.map(BYTES)
    rest = other * (models.total_params_b - routed)  # 10⁹ bytes
    costs = pd.DataFrame({"day": models.day, "weights": models.expert_weights, "sparsity": 1 / share})
    computed = models.expert_weights.where(models.expert_weights != "4-bit", models.other_weights)
    ridges = [machine_for(row, kind).ridge for kind in computed]
    sizes = zip(models.num_experts, models.top_k, ridges, expert)
    found = [edges(int(E), int(K), width, ridge, size) or (math.nan, math.nan) for E, K, ridge, size in sizes]
    costs[["lower", "upper"]] = found
    costs["gb_per_token"], costs["gb"] = rest + share * routed * expert, rest + routed * expert
    costs["devices"] = np.ceil(1e9 * costs.gb / row.memory_bytes).astype("Int64")
    return costs
