"""What is checked: exercises that say of an answer what differs.

`exercise` is the base and `compare` the check of most of them. `from moe_lessons.exercises import slowdown` imports
one; `EXERCISES` is all of them, in the order of the course.
"""

from importlib import import_module
from typing import Any

MODULES = {  # name -> its module, in the order of the course; a module is imported when its exercise is
    # 00
    "token_weights": "lesson_00",
    # 01
    "causal_attention": "lesson_01",
    "layer_parameters": "lesson_01",
    # 02
    "masked_weights": "lesson_02",
    "moe_block": "lesson_02",
    "sort_tokens": "lesson_02",
    "ties": "lesson_02",
    # 03
    "active_parameters": "lesson_03",
    "cache_bytes": "lesson_03",
    "card_design": "lesson_03",
    # 04
    "times_even": "lesson_04",
    "information_bits": "lesson_04",
    "chance": "lesson_04",
    # 05
    "slowdown": "lesson_05",
    "push": "lesson_05",
    "mended_router": "check_router",
    # 06
    "find_places": "check_capacity",
    "balancing_loss": "lesson_06",
    "biased_weights": "lesson_06",
    "new_bias": "lesson_06",
    # 06b
    "causality": "lesson_06b",
    "surest": "check_capacity",
    "bill": "check_bill",
    # 07
    "token_speed": "lesson_07",
    "touched_experts": "lesson_07",
    "full_batch": "lesson_07",
    "cache_step": "check_cache_step",
    # 08
    "dense_width": "lesson_08",
    "token_costs": "lesson_08",
    "exchange": "check_exchange",
    # 09
    "finer_experts": "lesson_09",
    "grouped_choice": "lesson_09",
    "soft_moe": "lesson_09",
    # 10
    "router_health": "lesson_10",
    "pooled_loss": "lesson_10",
    # 11
    "step_time": "lesson_11",
    "sent_bytes": "lesson_11",
    # 12
    "lead": "lesson_12",
    "pick": "lesson_12",
}


def __getattr__(name: str) -> Any:
    if name == "EXERCISES":
        return tuple(__getattr__(exercise) for exercise in MODULES)
    if name not in MODULES:
        raise AttributeError(f"there is no exercise {name!r}; there are: {', '.join(MODULES)}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*MODULES, "EXERCISES"]
