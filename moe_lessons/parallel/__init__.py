"""Experts on many devices: the exchange of tokens, and a training script for several ranks.

A rank is one process of several that train one model together. Read `exchange` first: it is what is taught. `launch`
starts ranks from a cell; `training` is what they run, also by torchrun."""

from moe_lessons.parallel.exchange import (
    exchange_dispatch,
    global_load_balancing_loss,
    rank_traffic,
    shard_experts,
)
from moe_lessons.parallel.launch import launch
