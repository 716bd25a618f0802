"""What lesson 11 says under 'What to notice': of ranks on this machine, and of the planner."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from everywhere import seeds

from moe_lessons.analysis import plan, real_routing, replicate
from moe_lessons.analysis.timing import WARM_UP
from moe_lessons.nn import MoE, Routing, seeded
from moe_lessons.parallel import launch
from moe_lessons.parallel.exchange import exchange_dispatch, shard_experts
from moe_lessons.parallel.training import Settings, train_each, train_rank

SEEDS = seeds(3, first=1)


def steps_of(ranks: int, **options) -> list[dict]:
    return [record for record in launch(train_rank, ranks, Settings(**options)) if record["event"] == "step"]


def share_away(traffic: torch.Tensor) -> float:
    return 1 - (traffic.trace() / traffic.sum()).item()


@pytest.mark.claim("the-ranks-agree-with-one-process")
@pytest.mark.claim("most-rows-leave-their-rank")
@pytest.mark.parametrize("seed", SEEDS)
def test_ranks_agree_and_most_rows_leave(seed):
    runs = {ranks: steps_of(ranks, steps=12, dtype="float64", seed=seed) for ranks in (1, 2, 4)}
    losses = {ranks: np.array([step["loss"] for step in steps]) for ranks, steps in runs.items()}
    assert losses[1][-1] < losses[1][0] - 1  # it learns
    for ranks in (2, 4):
        assert abs(losses[ranks] - losses[1]).max() < 1e-12
        shares = [share_away(torch.tensor(step["traffic"])) for step in runs[ranks]]
        assert np.mean(shares) == pytest.approx((ranks - 1) / ranks, abs=0.03)


def rank_work(shares: Sequence[float]) -> Iterator[dict]:
    """Yield the processor's seconds of each of two ranks in forward and backward of a layer's experts, seven times for
    each share: of all tokens, 1,024 on each rank, so many choose one of the four experts of rank 0."""
    with seeded(0):
        moe, x = shard_experts(MoE(128, 1024, 8, top_k=1)), torch.randn(1024, 128, requires_grad=True)
    token, probs = torch.arange(1024), torch.full((1024, 8), 1 / 8)
    for share in shares:
        expert = token % 4 + 4 * (token >= share * 1024)
        routing = Routing.all_kept(probs.log(), probs, token, expert, torch.ones(1024))
        for step in range(WARM_UP + 7):
            dist.barrier()
            start = time.thread_time()
            exchange_dispatch(moe.experts, x, routing).square().mean().backward()
            works = [torch.empty(1) for _ in range(2)]
            dist.all_gather(works, torch.tensor([time.thread_time() - start]))
            if step >= WARM_UP:
                yield {"share": share, "work": torch.cat(works).tolist()}


@pytest.mark.alone
@pytest.mark.claim("the-slowest-rank-sets-the-time")
def test_the_slowest_rank_sets_the_time():
    """Time is the processor's: the least of seven steps, the median of three. By the rows it would be twice as long,
    and the other rank would have nothing to do."""
    longer, idle = [], []
    for _ in SEEDS:
        steps = pd.DataFrame(launch(rank_work, 2, (0.5, 1.0)))
        work = {share: np.stack(own.work).min(axis=0) for share, own in steps.groupby("share")}  # of both ranks
        longer.append(work[1.0].max() / work[0.5].max())
        idle.append(work[1.0].min() / work[1.0].max())
    assert np.median(longer) > 1 > np.median(idle)  # the other one waits


@pytest.mark.claim("capacity-evens-the-traffic-for-drops")
@pytest.mark.parametrize("seed", seeds(3))
def test_capacity_evens_the_traffic_for_drops(seed):
    even, busiest, dropped = 16 * 32 * 2 / 4, {}, {}
    free = Settings(steps=20, num_layers=1, balance_weight=0.0, seed=seed)
    factors = None, 1.0, 2.0
    said = launch(train_each, 4, [replace(free, capacity_factor=factor) for factor in factors])
    for run, factor in enumerate(factors):
        steps = [record for record in said if record["run"] == run and record["event"] == "step"]
        traffic = torch.tensor([step["traffic"] for step in steps])
        busiest[factor] = traffic[-1].sum(dim=0).max().item() / even
        dropped[factor] = steps[-1]["dropped"] / (4 * even)
        if factor is None:  # even or not, as many leave
            assert np.mean([share_away(step) for step in traffic]) == pytest.approx(0.75, abs=0.05)
    assert busiest[None] > 1.35 and dropped[None] == 0
    assert busiest[1.0] <= 1 and busiest[2.0] <= 2 and dropped[1.0] > 0.1  # .18 to .5 by seed


@pytest.mark.claim("a-killed-rank-costs-only-the-steps-since")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_rank_costs_only_the_steps_since(seed, tmp_path):
    options = {"steps": 12, "every": 5, "seed": seed}
    whole = launch(train_rank, 2, Settings(**options))[-1]
    options |= {"checkpoint": str(tmp_path), "fault": "kill", "at": 8}
    said = launch(train_rank, 2, Settings(**options), max_restarts=1)
    again = said[[record["event"] for record in said].index("fault") + 1 :]
    assert again[0]["from_step"] == 5 and sum(record["event"] == "step" for record in again) == 7
    assert again[-1]["weights"] == whole["weights"]


@pytest.mark.claim("hot-experts-make-a-straggler")
def test_hot_experts_make_a_straggler():
    """By the loads alone, without the 4,096 draws; the experts stand in blocks, as in the exercise."""
    table = real_routing()["OLMoE-1B-7B"][15]
    rows = torch.tensor(table.loc["arxiv"].to_numpy()).double()
    for ranks, expected in ((64, 7.5), (8, 1.5)):
        received = rows.view(ranks, -1).sum(dim=1)
        assert (received.max() / received.mean()).item() == pytest.approx(expected, abs=0.05)


@pytest.mark.claim("copies-cool-hot-experts")
def test_copies_cool_hot_experts():
    table = real_routing()["OLMoE-1B-7B"][15]
    rows, others = (torch.tensor(table.loc[texts].to_numpy()).float() for texts in ("arxiv", "github"))
    busiest = {}
    for devices in (64, 72):
        copies = replicate(rows, devices)
        busiest[devices] = [((each / copies).max() / each.mean()).item() for each in (rows, others)]
    assert 7.4 < busiest[64][0] < 7.6 and 2.4 < busiest[72][0] < 2.6
    assert all(4.4 < busiest[devices][1] < 4.6 for devices in (64, 72))


@pytest.mark.claim("more-devices-lower-the-latency")
def test_more_devices_lower_the_latency():
    own = {"machine": "NVIDIA H800 SXM", "inside": "NVLink 4 cut (H800)", "context": 4989}
    own |= {"weights": "fp8", "dispatch_bytes": 1, "overlap": 1.0}
    made = {n: [plan("DeepSeek-V3", **own, devices=n, tokens_per_device=2**i) for i in range(9)]
            for n in (8, 16, 144)}  # fmt: skip
    fitting = {n: [point for point in points if point.memory < 80e9] for n, points in made.items()}
    assert not fitting[8] and fitting[144][-1].tokens >= 4 * fitting[16][-1].tokens
    best = max(point.tokens / point.seconds for point in fitting[16])
    (quick,) = [point for point in fitting[144] if point.tokens == 32]  # as fast as 16 devices ever are, and sooner
    assert quick.tokens / quick.seconds >= best and quick.seconds < 0.5 * fitting[16][-1].seconds
    more = made[16][7]  # of 128 texts: with room for them 16 devices are as good, and later
    assert 80.3e9 < more.memory < 80.5e9
    assert more.tokens / more.seconds == pytest.approx(quick.tokens / quick.seconds, rel=0.01)
    assert more.seconds == pytest.approx(4 * quick.seconds, rel=0.02)
    for n in (16, 144):  # along a curve both grow
        assert all(a.seconds < b.seconds for a, b in zip(fitting[n], fitting[n][1:]))
    assert made[144][5].exchange > made[16][5].exchange
    own["overlap"] = 0.0  # what full overlap hides
    bare = {n: [plan("DeepSeek-V3", **own, devices=n, tokens_per_device=2**i) for i in range(9)]
            for n in (16, 144)}  # fmt: skip
    bare = {n: [point for point in points if point.memory < 80e9] for n, points in bare.items()}
    most = {n: max(points, key=lambda point: point.tokens / point.seconds) for n, points in bare.items()}
    rates = {n: point.tokens / point.seconds for n, point in most.items()}
    (quick,) = [point for point in bare[144] if point.tokens == 32]  # nearly as fast as 16 devices, and sooner
    assert 0.94 * rates[16] < quick.tokens / quick.seconds and quick.seconds < 0.55 * most[16].seconds
    ruled = [point for point in fitting[144] if point.arithmetic > max(point.reading, point.exchange)]
    flat = [point.tokens / point.seconds for point in ruled]
    assert len(flat) > 2 and max(flat) < 1.01 * min(flat)
