"""Experts on many machines: the exchange of tokens, a training script for torchrun, and two ways to start ranks.

A rank is one process of several that train one model together. Read `exchange` first, then `balancing`: they are what
is taught. `launch` starts ranks from a cell, `job` by torchrun, and `faults` says why they ended; `training`, with
`settings` and `checkpoints`, is what they run.
"""

from moe_lessons.parallel.exchange import (
    ExpertShard,
    bytes_sent,
    exchange_dispatch,
    expert_parameters,
    rank_traffic,
    shard_experts,
)
from moe_lessons.parallel.global_balance import global_load_balancing_loss, limit_globally, update_global_expert_bias
from moe_lessons.parallel.job import Job, torchrun
from moe_lessons.parallel.launch import launch
