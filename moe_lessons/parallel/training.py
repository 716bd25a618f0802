"""A small language model on several ranks: its experts divided among them, the rest in DDP or FSDP2, with restart.

    torchrun --standalone --nproc-per-node 2 -m moe_lessons.parallel.training --steps 40 --checkpoint FOLDER

Each rank says its records as lines of JSON. After a fault, a run goes on from its last checkpoint, on as many ranks as
divide the experts. `Settings` has the options, faults on demand among them.
"""

import argparse
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from typing import get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.fsdp import fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from moe_lessons.nn import LanguageModel, load_balancing_loss, seeded
from moe_lessons.parallel import exchange, global_balance
from moe_lessons.parallel.launch import meet
from moe_lessons.parallel.options import Settings, agree
from moe_lessons.support.errors import check_choice
from moe_lessons.tasks import TextTask, make_text

DOMAINS, TEXT_BYTES = ("english", "code", "arithmetic"), 50_000


def train(settings: Settings) -> Iterator[dict]:
    """Train on this rank of the process group, and yield what happens: start, step, saved, fault and end.

    Every rank calls it; `launch(train, 2, settings)` does. Bad settings are refused on all ranks alike, before any
    training.
    """
    rank, ranks, restart = dist.get_rank(), dist.get_world_size(), restarts()
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    last = agree(settings)
    mesh = init_device_mesh(device.type, (ranks,))
    with seeded(settings.seed):
        model = LanguageModel(settings.model_config()).to(device, getattr(torch, settings.dtype))
    exchange.shard_experts(model, mesh, settings.capacity)
    net, experts = share_the_rest(model, mesh, settings.dense), exchange.expert_parameters(model)
    dense = {name: p for name, p in model.named_parameters() if name not in experts}
    groups = [{"params": list(part.values())} for part in (dense, experts)]  # tensors of two kinds with FSDP2
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=0.0)
    step = 0 if last is None else restart.load_state(last, restart.state_of(model, optimizer, mesh))
    yield {"event": "start", "rank": rank, "ranks": ranks, "pid": os.getpid(), "restart": restart, "from_step": step}
    task, size = make_task(settings.context), settings.batch // ranks
    while step < settings.steps:
        begin = time.perf_counter()
        if settings.fault and (step, rank, restart) == (settings.at, settings.rank, 0):
            yield {"event": "fault", "how": settings.fault, "rank": rank, "step": step}
            break_down(settings.fault)
        seed = (settings.seed * 1_000_003 + step) % 2**50
        generator = torch.Generator().manual_seed(seed)  # whatever the number of ranks
        torch.manual_seed(seed * ranks + rank)  # for a router with noise: after a restart it is the same
        x, y = (part[rank * size : (rank + 1) * size].to(device) for part in task.batch(settings.batch, generator))
        logits, routings = net(x)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        balance = global_balance.global_load_balancing_loss if settings.balance == "global" else load_balancing_loss
        optimizer.zero_grad()
        (loss + settings.balance_weight * sum(balance(routing) for routing in routings)).backward()
        clip(dense.values(), experts.values(), settings.clip)
        optimizer.step()
        for layer, routing in zip(model.layers, routings):
            if hasattr(layer.ffn.router, "expert_bias"):
                global_balance.update_global_expert_bias(layer.ffn.router, routing)
        step += 1
        record = {"event": "step", "step": step, **over_all_ranks(loss.detach(), routings)}
        yield record | {"seconds": round(time.perf_counter() - begin, 4)}
        if settings.checkpoint and (step % settings.every == 0 or step == settings.steps):
            state = restart.state_of(model, optimizer, mesh)
            restart.save(settings.checkpoint, step, state, settings.what_makes_the_model())
            yield {"event": "saved", "step": step}
    yield {"event": "end", "step": step, **restart.weights_of(restart.state_of(model, optimizer, mesh))}
    del net  # DDP's reducer must not be the last that holds the process group: it would end it with Python's lock held


def make_task(context: int) -> TextTask:
    """Short texts, which each rank makes in a moment."""
    return TextTask({name: make_text(name, TEXT_BYTES) for name in DOMAINS}, context)


def share_the_rest(model: LanguageModel, mesh: DeviceMesh, dense: str) -> nn.Module:
    """The model with all but its experts in DDP (a copy on each rank) or in FSDP2 (a part on each)."""
    experts = exchange.expert_parameters(model)
    if mesh.size() == 1:
        return model
    if dense == "ddp":
        left_alone = [*experts, *(name for name, _ in model.named_buffers())]  # buffers are equal already
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, left_alone)
        return nn.parallel.DistributedDataParallel(model)
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # of views, which nothing here changes in place
    for part in (*model.layers, model):
        fully_shard(part, mesh=mesh, ignored_params=set(experts.values()))
    return model


@torch.no_grad()
def clip(dense, experts, limit: float) -> None:
    """Scale down the gradients as one process does: by the norm over all weights, wherever they are."""
    mine = [p.grad for p in experts] + [p.grad.to_local() for p in dense if isinstance(p, DTensor)]  # a part on each
    everywhere = [p.grad for p in dense if not isinstance(p, DTensor)]
    square = sum((grad.double().square().sum() for grad in mine), mine[0].new_zeros((), dtype=torch.double))
    dist.all_reduce(square)
    norm = (square + sum(grad.double().square().sum() for grad in everywhere)).sqrt()
    factor = float((limit / (norm + 1e-6)).clamp(max=1))
    for grad in (*mine, *everywhere):
        grad.mul_(factor)


def over_all_ranks(loss: Tensor, routings: list) -> dict:
    """The mean loss, and who sent how many rows to whom, over all layers: traffic[i][j] from rank i to rank j."""
    ranks = dist.get_world_size()
    dist.all_reduce(loss)
    mine = torch.stack([routing.tokens_per_expert for routing in routings])  # (L, E)
    dropped = mine.new_tensor(sum(routing.dropped for routing in routings))
    dist.all_reduce(dropped)
    counts = [torch.empty_like(mine) for _ in range(ranks)]
    dist.all_gather(counts, mine)
    traffic = sum(exchange.rank_traffic(layer) for layer in torch.stack(counts, dim=1))  # (N, N)
    return {"loss": float(loss) / ranks, "dropped": int(dropped), "traffic": traffic.tolist()}


# --- the door, and the faults ------------------------------------------------------------------------------------


def say(record: dict) -> None:
    """One line, in one piece: the lines of all ranks come through one pipe."""
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def restarts() -> int:
    """How often torchrun has started all ranks again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def break_down(fault: str) -> None:
    if fault == "raise":
        raise RuntimeError("a fault on demand")
    while fault == "hang":
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL if fault == "kill" else signal.SIGSTOP)


def join(settings: Settings) -> None:
    """Become a rank of the process group that torchrun, or another launcher, describes in the environment."""
    if "RANK" not in os.environ:
        command = "torchrun --standalone --nproc-per-node 2 -m moe_lessons.parallel.training"
        raise ValueError(f"start it by torchrun: {command}")
    there = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available() and torch.cuda.is_available()}
    check_choice("backend", settings.backend, [name for name in there if there[name]])
    if settings.backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        meet(*next(rendezvous("env://")), settings.backend, settings.timeout)
    except dist.DistNetworkError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        taken = "EADDRINUSE" in str(error)
        what = "is taken: give another --master-port, or --standalone" if taken else "does not answer"
        raise ValueError(f"{where}, where the ranks are to meet, {what}") from error


def main() -> None:
    parser = argparse.ArgumentParser(prog="moe_lessons.parallel.training", description=Settings.__doc__)
    for field in fields(Settings):
        kind = (get_args(field.type) or (field.type,))[0]
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    settings, step = Settings(**vars(parser.parse_args())), 0
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    try:
        join(settings)
        for record in train(settings):
            step = record.get("step", record.get("from_step", step))
            if dist.get_rank() == 0 or record["event"] in ("start", "fault"):
                say(record)
        dist.barrier()
        dist.destroy_process_group()
    except Exception as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        record = {"event": "failed", "rank": int(os.environ.get("RANK", 0)), "step": step, "error": what}
        record |= {"restart": restarts(), "refused": isinstance(error, ValueError), "time": time.time()}
        with suppress(BrokenPipeError):  # nobody listens any more
            say(record)
        if isinstance(error, ValueError):
            get_error_handler().record_exception(error)  # torchrun ends with it
            print(what, file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
            time.sleep(1)  # where another rank has died, torchrun sees that one first, and says how
        os._exit(1)  # the connections close now
    os._exit(0)  # Python takes a second to clear away what is imported


if __name__ == "__main__":
    main()
