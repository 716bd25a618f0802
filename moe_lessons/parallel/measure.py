"""The times that ranks work: a generator for `launch`, which measures and yields."""

import time
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from moe_lessons.analysis.timing import WARM_UP
from moe_lessons.nn import MoE, Routing, seeded
from moe_lessons.parallel.exchange import exchange_dispatch, shard_experts


def given_routing(num_tokens: int, num_experts: int, ranks: int, share: float) -> Routing:
    """One expert for each token: `share` of all tokens go to the experts of rank 0, the others evenly to the rest.

    >>> given_routing(100, 4, ranks=2, share=0.8).tokens_per_expert
    tensor([40, 40, 10, 10])
    """
    own = num_experts // ranks
    shares = torch.full((num_experts,), (1 - share) / max(num_experts - own, 1))
    shares[:own] = share / own
    ends = (shares.double().cumsum(0) * num_tokens).round().long()  # (E,)
    expert_idx = torch.searchsorted(ends, torch.arange(num_tokens), right=True).clamp(max=num_experts - 1)
    probs = torch.full((num_tokens, num_experts), 1 / num_experts)
    return Routing.all_kept(probs.log(), probs, torch.arange(num_tokens), expert_idx, torch.ones(num_tokens))


def rank_times(shares: Sequence[float]) -> Iterator[dict]:
    """Measure forward and backward of one layer's experts, seven times for each share. Each rank has 1,024 tokens, and
    the experts of rank 0 get `share` of all. Yield of each its 'share' and 'seconds', and for each rank its 'rows' and
    its seconds at 'work'."""
    ranks = dist.get_world_size()
    with seeded(0):
        moe, x = shard_experts(MoE(128, 1024, 8, top_k=1)), torch.randn(1024, 128, requires_grad=True)
    for share in shares:
        routing = given_routing(len(x), moe.num_experts, ranks, share)
        rows = ranks * routing.tokens_per_expert.view(ranks, -1).sum(dim=1)  # (N,): all send the same
        for step in range(WARM_UP + 7):
            dist.barrier()
            start, work = time.perf_counter(), time.thread_time()
            exchange_dispatch(moe.experts, x, routing).square().mean().backward()
            work = torch.tensor([time.thread_time() - work])
            dist.barrier()  # the step is over when it is over for all
            seconds, works = time.perf_counter() - start, [torch.empty(1) for _ in range(ranks)]
            dist.all_gather(works, work)
            if step >= WARM_UP:
                yield {"share": share, "seconds": seconds, "rows": rows.tolist(), "work": torch.cat(works).tolist()}
