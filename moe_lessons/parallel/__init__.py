"""Experts on many machines: the exchange of tokens, a training script for torchrun, and two ways to start ranks.

A rank is one process of several that train one model together. Read `exchange` first: it is what is taught. `launch`
starts ranks from a cell, or by torchrun; `training` is what they run, and `measure` times them."""

from moe_lessons.parallel.exchange import (
    bytes_sent,
    exchange_dispatch,
    global_load_balancing_loss,
    rank_traffic,
    shard_experts,
)
from moe_lessons.parallel.launch import Job, launch, torchrun
