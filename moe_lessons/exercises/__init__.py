"""What is checked: exercises that say of an answer what differs.

`exercise` is the base and `compare` the check of most of them. `from moe_lessons.exercises import slowdown` imports
one; `EXERCISES` is all of them, in the order of the course.
"""

from importlib import import_module
from typing import Any

MODULES = {  # name -> its module, in the order of the course; a module is imported when its exercise is
    # 00
    "token_weights": "check_weights",
    # 01
    "causal_attention": "check_dense",
    "layer_parameters": "check_dense",
    # 02
    "masked_weights": "check_block",
    "moe_block": "check_block",
    "sort_tokens": "check_block",
    "ties": "check_block",
    # 03
    "active_parameters": "check_sizes",
    "cache_bytes": "check_sizes",
    "card_design": "check_sizes",
    # 04
    "times_even": "check_counts",
    "information_bits": "check_counts",
    "chance": "check_counts",
    # 05
    "slowdown": "check_load",
    "push": "check_load",
    "mended_router": "check_router",
    # 06
    "find_places": "check_capacity",
    "balancing_loss": "check_balancing",
    "biased_weights": "check_balancing",
    "new_bias": "check_balancing",
    # 06b
    "causality": "check_causality",
    "surest": "check_capacity",
    "bill": "check_bill",
    # 07
    "token_speed": "check_decoding",
    "touched_experts": "check_decoding",
    "full_batch": "check_decoding",
    "cache_step": "check_cache_step",
    # 08
    "dense_width": "check_opponents",
    "token_costs": "check_opponents",
    "exchange": "check_exchange",
    # 09
    "finer_experts": "check_modern",
    "grouped_choice": "check_modern",
    "soft_moe": "check_modern",
    # 10
    "router_health": "check_health",
    "pooled_loss": "check_health",
    # 11
    "step_time": "check_machines",
    "sent_bytes": "check_machines",
    # 12
    "lead": "check_interview",
    "pick": "check_interview",
}


def __getattr__(name: str) -> Any:
    if name == "EXERCISES":
        return tuple(__getattr__(exercise) for exercise in MODULES)
    if name not in MODULES:
        raise AttributeError(f"there is no exercise {name!r}; there are: {', '.join(MODULES)}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*MODULES, "EXERCISES"]
