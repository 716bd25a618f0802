"""What lesson 11 says under 'What to notice': of ranks on this machine, of real loads, and of bytes and seconds."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from everywhere import seeds

from moe_lessons.analysis import real_routing, replicate
from moe_lessons.analysis.releases import modern_models, release_costs
from moe_lessons.analysis.roofline import machine_for, machines, published_sizes
from moe_lessons.analysis.speedup import edges
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
    """The experts stand in blocks; in the mixture each kind of text weighs the same."""
    table = real_routing()["OLMoE-1B-7B"][15]
    shares = table.div(table.sum(axis=1), axis=0)
    for rows, busiest in ((shares.loc["arxiv"], {64: 7.5, 8: 1.5}), (shares.mean(), {64: 2.7, 8: 1.2})):
        for ranks, expected in busiest.items():
            received = rows.to_numpy().reshape(ranks, -1).sum(axis=1)
            assert received.max() / received.mean() == pytest.approx(expected, abs=0.05)
    assert shares.shape == (5, 64) and 0.9 < 8 * shares.loc["arxiv"].max() < 1  # of the tokens: each has 8 experts


H200 = machines().loc["NVIDIA H200 SXM"]


@pytest.mark.claim("the-exchange-takes-as-long-as-the-arithmetic")
def test_the_exchange_takes_as_long_as_the_arithmetic():
    """Bytes are counted row by row. The sizes are those of the stored releases."""
    v3, k3 = published_sizes()["DeepSeek-V3"], modern_models().set_index("name").loc["Kimi K3"]
    (group,), dense = v3.groups, modern_models().set_index("name").loc["DeepSeek-V3"]
    assert (group.layers, group.top_k, dense.d_model, dense.active_params_b) == (58, 8, 7168, 37)
    assert (k3.top_k, k3.d_model, k3.active_params_b) == (16, 7168, 104) and "3584-wide latent" in k3.note
    peak = 0.4 * H200.bf16_flops_per_second
    micros = {name: 1e6 * 2 * active * 1e9 / peak for name, active in (("V3", 37), ("K3", 104))}
    sent = {(L, K, D): sum(K * D * (1 + 2) for _ in range(L)) for L, K, D in
            ((58, 8, 7168), (58, 4, 7168), (92, 8, 7168), (92, 16, 3584))}  # fmt: skip
    exchange = {key: 1e6 * size / 50e9 for key, size in sent.items()}
    assert sent[58, 8, 7168] == pytest.approx(10e6, rel=0.01)
    assert exchange[58, 8, 7168] == pytest.approx(200, abs=1) and micros["V3"] == pytest.approx(187, abs=1)
    assert exchange[58, 4, 7168] < 0.6 * micros["V3"]
    assert exchange[92, 16, 3584] == exchange[92, 8, 7168] < 0.65 * micros["K3"]  # 16 narrow rows, or 8 of full width
    assert 2 * 37e15 / (0.4 * H200.fp8_flops_per_second) == pytest.approx(94, abs=1)  # clearly shorter, in fp8
    assert 2 * v3.matrices * 1e6 / peak == pytest.approx(micros["V3"], rel=0.05)  # counted, without the embedding


@pytest.mark.claim("wide-expert-parallelism-is-beyond-the-upper-edge")
def test_wide_expert_parallelism_is_beyond_the_upper_edge():
    """Of DeepSeek-V3 over dense, 4×, also with its shared expert, and in fp8."""
    for dtype, size in (("bfloat16", 2), ("fp8", 1)):
        for shared in (0, 1):
            upper = edges(256, 8, 4, machine_for(H200, dtype).ridge, size, shared)[1]
            assert 32 * 16 < 0.5 * upper and 2 * upper < 32 * 144
    costs = release_costs().loc["DeepSeek-V3"]
    routed = (costs.gb - costs.gb_per_token) / (1 - 1 / costs.sparsity)
    loaded = costs.gb - routed + routed / 144  # by a device, with a copy of the rest
    milliseconds = 32 * 1e3 * 58 * 8 * 7168 * 3 / 50e9, 1e12 * loaded / H200.bytes_per_second
    assert loaded == pytest.approx(21, abs=0.2) and milliseconds == pytest.approx((6.4, 4.4), abs=0.05)
    assert 150 < 1e3 / milliseconds[0] < 160  # tokens/s
    (group,) = published_sizes()["DeepSeek-V3"].groups
    ffn = 4 * group.layers * group.top_k * group.expert  # parameters of dense, 4×, a byte each
    computed, copied = 2e3 * 32 * ffn / (0.4 * H200.fp8_flops_per_second), 1e3 * ffn / H200.bytes_per_second
    assert (computed, copied) == pytest.approx((6.6, 17), abs=0.05) and ffn == pytest.approx(82e9, rel=0.01)
    assert milliseconds[0] == pytest.approx(computed, rel=0.1) and 2 * group.layers == 116
    generator = np.random.default_rng(0)  # the tokens that an expert gets, drawn: 144 devices, 32 on each
    chosen = np.concatenate([generator.choice(256, 8, replace=False) for _ in range(32 * 144)])
    assert np.bincount(chosen).mean() == 144


@pytest.mark.claim("tensor-parallelism-sends-more-on-many-devices")
@pytest.mark.parametrize("N, times", [(8, 1.33), (64, 10.7)])
def test_tensor_parallelism_sends_more_on_many_devices(N, times):
    """An all-reduce as a ring sends it: in N - 1 rounds each device passes on a sum of one part, in as many more the
    whole of one. A token's K rows leave its device but for 1/N."""
    D = 64 * N
    parts = np.random.default_rng(0).normal(size=(N, N, D // N))  # of each device, in N parts
    total, sent = parts.sum(axis=0), 0
    for rounds, adds in ((range(N - 1), True), (range(N - 1, 2 * N - 2), False)):
        for step in rounds:
            for device, part in [(d, (d - step) % N) for d in range(N)]:
                value, to = parts[device, part], (device + 1) % N
                parts[to, part] = parts[to, part] + value if adds else value
                sent += value.size
    np.testing.assert_allclose(parts, np.broadcast_to(total, parts.shape))
    tensor, expert = 2 * sent, 3 * 8 * D * (N - 1) / N  # bytes: bfloat16; fp8 there and bfloat16 back, K = 8
    assert tensor == 4 * (N - 1) * D and tensor / expert == pytest.approx(times, abs=0.05)


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
