"""What test_parallel runs on several ranks. Each function is called on every rank; the records of rank 0 come back."""

import itertools
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import moe_lessons
from moe_lessons.nn import MoE, SigmoidRouter, load_balancing_loss, seeded, update_expert_bias
from moe_lessons.parallel import exchange
from moe_lessons.parallel import global_balance as balancing
from moe_lessons.parallel.training import Settings, train

D, F, E, K, TOKENS = 12, 20, 8, 2, 24
KINDS = {
    "plain": {},
    "switch": {"top_k": 1},
    "shared expert": {"shared_d_ff": 8, "shared_expert_gate": True},
    "biases": {"bias": True, "router_bias": True, "activation": "clamped_swiglu"},
    "weight_input": {"weight_input": True, "bias": True},
    "sigmoid with groups": {"router": SigmoidRouter, "num_groups": 4, "topk_groups": 2},
}
SPLITS = {  # the tokens of each rank
    1: [(24,), (0,)],
    2: [(12, 12), (24, 0), (0, 24), (5, 19), (0, 0)],
    4: [(6, 6, 6, 6), (0, 1, 20, 3), (24, 0, 0, 0), (0, 0, 0, 0)],
}
UNEVEN = {1: (24,), 2: (5, 19), 4: (0, 1, 20, 3)}  # those of every kind; the plain one has them all
MODES = [("none", "local"), ("none", "global"), ("local", "local"), ("global", "global")]  # capacity, auxiliary loss


def make(kind: str, capacity_factor: float | None = None) -> MoE:
    options = {"top_k": K, "capacity_factor": capacity_factor} | KINDS[kind]
    with seeded(3):
        moe = MoE(D, F, E, **options).double()
        for parameter in moe.experts.parameters():  # biases start at zero
            torch.nn.init.normal_(parameter, std=0.5)
    return moe


def tokens(num: int) -> torch.Tensor:
    """Of which half agree, so that some experts are wanted by many."""
    x = torch.randn(num, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[: num // 2] = 0.1 * x[: num // 2] + x[:1]
    return x


def loss_of(y: torch.Tensor) -> torch.Tensor:
    """A sum over tokens."""
    return (y * torch.arange(1, D + 1)).square().sum()


def in_one_process(kind: str, sizes: tuple, capacity: str, loss: str) -> tuple:
    """What the ranks are to give, by the package alone: y, the gradients of x and of the weights, and who is dropped.

    'local': each rank's tokens by themselves, one rank after the other; 'global': all in one call.
    """
    moe = make(kind, None if capacity == "none" else 0.8)
    x = tokens(sum(sizes)).requires_grad_()
    parts = x.split(sizes)
    y, routings = zip(*map(moe, [x] if capacity == "global" else parts))
    if loss == "global":
        balance = load_balancing_loss(moe.router(x))
    else:
        balance = sum(load_balancing_loss(moe.router(part)) for part in parts) / len(parts)
    (loss_of(torch.cat(y)) / max(sum(sizes), 1) + 0.1 * balance).backward()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in moe.named_parameters()}
    return torch.cat(y).detach(), x.grad, grads, sum(routing.dropped for routing in routings)


def on_ranks(kind: str, sizes: tuple, capacity: str, loss: str, group) -> tuple:
    """The same on the ranks of a group: this rank's part of it."""
    process_group = getattr(group, "get_group", lambda: group)()
    rank, size = dist.get_rank(process_group), len(sizes)
    limit = "local" if capacity == "none" else capacity
    moe = exchange.shard_experts(make(kind, None if capacity == "none" else 0.8), group, capacity=limit)
    x = tokens(sum(sizes)).split(sizes)[rank].clone().requires_grad_()
    y, routing = moe(x)
    balance = load_balancing_loss(routing) if loss == "local" else None
    balance = balancing.global_load_balancing_loss(routing, process_group) if balance is None else balance
    (loss_of(y) / max(sum(sizes), 1) * size + 0.1 * balance).backward()
    sharded, grads = exchange.expert_parameters(moe), {}
    for name, p in moe.named_parameters():
        grads[name] = torch.zeros_like(p) if p.grad is None else p.grad
        if name not in sharded:
            dist.all_reduce(grads[name], group=process_group)
            grads[name] /= size
    dropped = torch.tensor(routing.dropped)
    dist.all_reduce(dropped, group=process_group)
    return y.detach(), x.grad / size, grads, int(dropped)


def difference(case: tuple, group) -> float:
    """The largest one, over the output, the gradients, and who is dropped, on this rank."""
    kind, sizes, *_ = case
    process_group = getattr(group, "get_group", lambda: group)()
    rank, size = dist.get_rank(process_group), len(sizes)
    y, dx, grads, dropped = in_one_process(*case)
    my_y, my_dx, my_grads, my_dropped = on_ranks(*case, group)
    assert my_dropped == dropped, (case, my_dropped, dropped)
    pairs = [(my_y, y.split(sizes)[rank]), (my_dx, dx.split(sizes)[rank])]
    for name, grad in grads.items():
        is_mine = name.startswith("experts.")
        pairs.append((my_grads[name], grad.chunk(size)[rank] if is_mine else grad))
        assert pairs[-1][0].shape == pairs[-1][1].shape, name
    return max(float((mine - other).abs().max()) if mine.numel() else 0.0 for mine, other in pairs)


def exact() -> Iterator[dict]:
    """Groups of one, two and four of the four ranks, as a process group, a mesh, and None."""
    alone = [dist.new_group([rank]) for rank in range(4)][dist.get_rank()]
    pairs = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "experts"))["experts"]
    for size, group in ((1, alone), (2, pairs), (4, None)):
        for kind, sizes, (capacity, loss) in itertools.product(KINDS, SPLITS[size], MODES):
            plain, uneven = kind == "plain", sizes == UNEVEN[size]
            if not (plain and uneven) and (not (plain or uneven) or capacity == "none"):
                continue
            case = (kind, sizes, capacity, loss)
            worst = torch.tensor(difference(case, group), dtype=torch.float64)
            dist.all_reduce(worst, op=dist.ReduceOp.MAX)
            yield {"case": case, "difference": float(worst)}


def exact_and_measured() -> Iterator[dict]:
    yield from exact()
    yield from measured()


def measured() -> Iterator[dict]:
    """What is sent, against the formula; the bias of a router, against one process; what `shard_experts` refuses."""
    rank, sizes, sent = dist.get_rank(), SPLITS[4][1], []
    all_to_all = dist.all_to_all_single

    def counted(out, rows, receive=None, send=None, group=None):
        if send is not None:  # rows, not their numbers
            sent.append(sum(n for other, n in enumerate(send) if other != rank) * rows[0:1].numel() * rows.itemsize)
        return all_to_all(out, rows, receive, send, group=group)

    whole, x = make("plain"), tokens(sum(sizes))
    moe, mine = exchange.shard_experts(make("plain")), x.split(sizes)[rank].clone().requires_grad_()
    dist.all_to_all_single = counted
    y, routing = moe(mine)
    forward = sum(sent)
    y.sum().backward()
    dist.all_to_all_single = all_to_all
    counts = torch.stack([whole.router(part).tokens_per_expert for part in x.split(sizes)])  # (N, E)
    traffic = exchange.rank_traffic(counts)
    formula = [exchange.bytes_sent(traffic, D, 8, training=training).tolist() for training in (False, True)]
    yield {"sent": everyone([forward, sum(sent)]), "formula": formula}

    ours, expected = (make("sigmoid with groups").router for _ in range(2))
    balancing.update_global_expert_bias(ours, ours(x.split(sizes)[rank]), rate=0.01)
    update_expert_bias(expected, expected(x), rate=0.01)
    yield {"biases": everyone(ours.expert_bias.tolist()), "expected": expected.expert_bias.tolist()}

    refused = []
    for bad, capacity in ((MoE(4, 4, 6), "local"), (moe, "local"), (make("plain", 1.0), "whole")):
        refused.append(message(exchange.shard_experts, bad, capacity=capacity))
    by_weight = MoE(4, 4, 8, capacity_factor=1.0, capacity_priority="weight")
    yield {"refused": [*refused, message(exchange.shard_experts, by_weight, capacity="global")]}


def everyone(value) -> list:
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def message(call, *args, **options) -> str:
    try:
        call(*args, **options)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def refusals(folder: str) -> Iterator[dict]:
    """What `train` refuses, in what words, on each rank. Then a disk that fills, and a damaged checkpoint."""
    good, rank = Settings(steps=2, batch=4, every=1, checkpoint=folder, d_model=16), dist.get_rank()
    list(train(good))  # two checkpoints
    one = dist.get_rank() == 1
    if not one:
        shutil.copytree(Path(folder, "step2"), Path(folder, "step2 copy"))
    dist.barrier()
    cases = {
        "experts": replace(good, num_experts=9),
        "batch": replace(good, batch=5),
        "choice": replace(good, dense="none"),
        "fault": replace(good, fault="kill", rank=7),
        "settings differ": replace(good, lr=0.1 if one else 0.2, top_k=2),
        "another model": replace(good, d_model=32),
        "seed": replace(good, seed="a"),
        "one rank alone": replace(good, batch=0 if one else 4),
        "no folder": replace(good, checkpoint=str(Path(folder, "step1", ".metadata"))),
    }
    for name, settings in cases.items():
        yield {"case": name, "errors": everyone(message(list, train(settings)))}
    if one:
        moe_lessons.__version__ = "0.0.1"
    yield {"case": "versions differ", "errors": everyone(message(list, train(good)))}
    moe_lessons.__version__ = "0.1.0"
    if one:  # each file of this rank may be as long as this
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    errors = everyone(message(list, train(replace(good, steps=3))))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    yield {"case": "full disk", "errors": errors, "there": sorted(path.name for path in Path(folder).iterdir())}
    went_on = [record for record in train(replace(good, steps=3)) if record["event"] in ("start", "end")]
    dist.barrier()
    yield {"case": "after it", "records": went_on, "there": sorted(path.name for path in Path(folder).iterdir())}
    for part in ("__0_0.distcp", "settings.json", ".metadata"):  # the last is looked at first
        if rank == 0:
            path = Path(folder, "step3", part)
            path.write_bytes(path.read_bytes()[: 100 if part == "__0_0.distcp" else 20])
        dist.barrier()
        yield {"case": f"damaged {part}", "errors": everyone(message(list, train(replace(good, steps=4))))}
    if rank == 0:
        shutil.rmtree(Path(folder, "step3"))
    dist.barrier()
    yield {"case": "the one before", "records": [next(train(replace(good, steps=4)))]}


# --- ranks that fail -------------------------------------------------------------------------------------------


def breaks(how: str) -> Iterator:
    """Rank 1 fails after a first record."""
    yield torch.ones(2)
    if dist.get_rank() == 1:
        if how == "raise":
            raise LookupError("rank 1 has had enough")
        if how == "exit":
            os._exit(7)
        while how == "hang":
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)
    dist.all_reduce(torch.ones(1))
    yield "no fault"


def counts_up(folder: str) -> Iterator[int]:
    """For ever. Each rank leaves its number in the folder."""
    Path(folder, f"{os.getpid()}").touch()
    for number in itertools.count():
        dist.barrier()
        yield number


def is_there(pid: int) -> bool:
    """A process that has ended and is not waited for yet is not there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
