"""What test_parallel runs on several ranks. Each function is called on every rank; the records of rank 0 come back."""

import itertools
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from moe_lessons.nn import MoE, SigmoidRouter, load_balancing_loss, seeded
from moe_lessons.parallel import exchange
from moe_lessons.parallel.training import ABOUT, Settings, train_rank

D, F, E, K = 12, 20, 8, 2
KINDS = {
    "plain": {},
    "switch": {"top_k": 1},
    "shared expert": {"shared_d_ff": 8},
    "sigmoid": {"router": SigmoidRouter},
}
SPLITS = {  # the tokens of each rank; every kind has the first
    1: [(24,), (0,)],
    2: [(5, 19), (12, 12), (24, 0), (0, 24), (0, 0)],
    4: [(0, 1, 20, 3), (6, 6, 6, 6), (24, 0, 0, 0), (0, 0, 0, 0)],
}


def make(kind: str, capacity_factor: float | None = None) -> MoE:
    options = {"top_k": K, "capacity_factor": capacity_factor} | KINDS[kind]
    with seeded(3):
        moe = MoE(D, F, E, **options).double()
        for parameter in moe.experts.parameters():  # biases start at zero
            torch.nn.init.normal_(parameter, std=0.5)
    return moe


def tokens(num: int) -> torch.Tensor:
    """Make tokens of which half are nearly the same, so that some experts are wanted by many."""
    x = torch.randn(num, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[: num // 2] = 0.1 * x[: num // 2] + x[:1]
    return x


def loss_of(y: torch.Tensor) -> torch.Tensor:
    return (y * torch.arange(1, D + 1)).square().sum()


def in_one_process(kind: str, sizes: tuple, capacity_factor: float | None) -> tuple:
    """Return what the package gives without ranks: y, gradients of x and of the weights, and what each part drops."""
    moe, x = make(kind, capacity_factor), tokens(sum(sizes)).requires_grad_()
    y, routings = zip(*map(moe, x.split(sizes)))  # each part has queues of its own
    (loss_of(torch.cat(y)) / max(sum(sizes), 1) + 0.1 * load_balancing_loss(moe.router(x))).backward()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in moe.named_parameters()}
    return y, x.grad.split(sizes), grads, [routing.dropped for routing in routings]


def on_ranks(kind: str, sizes: tuple, capacity_factor: float | None) -> tuple:
    moe, size = exchange.shard_experts(make(kind, capacity_factor)), len(sizes)
    x = tokens(sum(sizes)).split(sizes)[dist.get_rank()].clone().requires_grad_()
    y, routing = moe(x)
    (loss_of(y) / max(sum(sizes), 1) * size + 0.1 * exchange.global_load_balancing_loss(routing)).backward()
    sharded, grads = exchange.expert_parameters(moe), {}
    for name, p in moe.named_parameters():
        grads[name] = torch.zeros_like(p) if p.grad is None else p.grad
        if name not in sharded:
            dist.all_reduce(grads[name])
            grads[name] /= size
    return y, x.grad / size, grads, routing.dropped


def exact() -> Iterator[dict]:
    """Yield the largest difference from one process, over outputs and gradients, for each kind, split and capacity."""
    rank, size = dist.get_rank(), dist.get_world_size()
    cases = [(kind, SPLITS[size][0]) for kind in KINDS] + [("plain", sizes) for sizes in SPLITS[size][1:]]
    for (kind, sizes), factor in itertools.product(cases, (None, 0.8)):
        y, dx, grads, dropped = in_one_process(kind, sizes, factor)
        my_y, my_dx, my_grads, my_dropped = on_ranks(kind, sizes, factor)
        pairs = [(my_y, y[rank]), (my_dx, dx[rank])]
        pairs += [(my_grads[n], g.chunk(size)[rank] if n.startswith("experts.") else g) for n, g in grads.items()]
        assert my_dropped == dropped[rank] and all(mine.shape == other.shape for mine, other in pairs)
        worst = torch.stack([(mine - other).abs().sum() for mine, other in pairs]).max()
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        yield {"case": (kind, sizes, factor), "difference": float(worst), "dropped": sum(dropped)}


class HalfMoE(MoE):
    def run_experts(self, x, routing):
        return super().run_experts(x / 2, routing)


def not_sharded() -> Iterator[list[str]]:
    bad = (MoE(4, 4, 6), exchange.shard_experts(make("plain")), HalfMoE(4, 4, 8))
    yield [message(exchange.shard_experts, model) for model in bad]


def everyone(value) -> list:
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def message(call, *args) -> str:
    try:
        call(*args)
    except (ValueError, RuntimeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def refusals(folder: str) -> Iterator[dict]:
    """Yield in what words `train_rank` refuses settings on each rank, and at last a place that cannot be written to."""
    good = Settings(steps=2, batch=4, every=1, checkpoint=folder, d_model=16)
    list(train_rank(good))  # two checkpoints
    Path(folder, "step3.part").touch()  # where the third is to be written
    cases = {
        "experts": replace(good, num_experts=9),
        "batch": replace(good, batch=3),
        "another model": replace(good, d_model=32),
        "no folder": replace(good, checkpoint=str(Path(folder, "step1", ABOUT))),
        "not saved": replace(good, steps=3),
    }
    for name, settings in cases.items():
        yield {"case": name, "errors": everyone(message(list, train_rank(settings)))}


def breaks(how: str) -> Iterator:
    yield torch.ones(2)
    if dist.get_rank() == 1:
        if how == "raise":
            raise LookupError("rank 1 has had enough")
        if how == "exit":
            os._exit(7)
        while how == "hang":
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1))


def counts_up(folder: str) -> Iterator[int]:
    """Count for ever, after each rank has left its process's number in the folder."""
    Path(folder, f"{os.getpid()}").touch()
    for number in itertools.count():
        dist.barrier()
        yield number


def is_there(pid: int) -> bool:
    """Tell whether a process runs: one that has ended and is not waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
