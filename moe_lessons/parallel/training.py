"""A small language model on several ranks: its experts divided among them, the rest on each, with

    torchrun --standalone --nproc-per-node 2 -m moe_lessons.parallel.training --steps 40 --checkpoint FOLDER

Each rank says its records as lines of JSON. After a fault, a run goes on from its last checkpoint: to the same bits on
as many ranks, or on another number that divides the experts. `Settings` has the options, faults on demand among them.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn import functional as F

from moe_lessons.nn import LanguageModel, TransformerConfig, seeded
from moe_lessons.parallel import exchange
from moe_lessons.parallel.launch import meet
from moe_lessons.support.errors import check_choice, check_number, check_positive_int, check_seed, first_line
from moe_lessons.support.saved import check_like, read_saved, write_saved
from moe_lessons.tasks import TextTask, make_text

SIZES = ("num_layers", "d_model", "d_ff", "num_experts", "top_k", "router", "capacity_factor")
MAX_NORM = 1.0  # of the gradient, over all ranks
FORMAT, KEPT = "moe_lessons checkpoint of ranks 1", 2  # so many, the last ones, are there
RESTART = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))  # how often torchrun has started all ranks again


@dataclass(frozen=True)
class Settings:
    """What to train, and how.

    batch: sequences in a step, of all ranks together. capacity_factor: counted by each rank for its own tokens.
    balance_weight: of the auxiliary loss, over the tokens of all ranks. timeout: seconds that a rank waits for another.
    checkpoint: a folder, written to every `every` steps. What is there already is gone on from, on as many ranks to the
        same bits.
    fault: 'kill' ends the rank `rank` in step `at`, for a try. After a restart it does not happen again."""

    steps: int = 40
    batch: int = 16
    context: int = 32
    num_layers: int = 2
    d_model: int = 32
    d_ff: int = 32
    num_experts: int = 8
    top_k: int = 2
    router: str = "top-k"
    capacity_factor: float | None = None
    balance_weight: float = 0.01
    lr: float = 3e-3
    dtype: str = "float32"
    seed: int = 0
    checkpoint: str | None = None
    every: int = 10
    fault: str | None = None
    at: int = 0
    rank: int = 1
    timeout: float = 10.0

    def check(self, ranks: int) -> None:
        """Raise ValueError for what does not go together on so many ranks."""
        for name in ("steps", "batch", "context", "every"):
            check_positive_int(name, getattr(self, name))
        for name in ("lr", "balance_weight"):
            check_number(name, getattr(self, name))
        check_seed(self.seed)
        check_choice("dtype", self.dtype, ("float32", "float64"))
        if self.fault is not None:
            check_choice("fault", self.fault, ("kill",))
            check_choice("rank", str(self.rank), map(str, range(ranks)))
        for name in ("num_experts", "batch"):
            if getattr(self, name) % ranks:
                raise ValueError(f"{name} ({getattr(self, name)}) must be a multiple of the number of ranks ({ranks})")
        self.model_config()

    def model_config(self) -> TransformerConfig:
        return TransformerConfig(max_positions=self.context, **{name: getattr(self, name) for name in SIZES})


def train(settings: Settings) -> Iterator[dict]:
    """Train on this rank of the process group, and yield what happens: start, step, saved, fault and end. Every rank
    calls it, as `launch(train, 2, settings)` does. Bad settings are refused on all alike, before any training."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    settings.check(ranks)
    last = settings.checkpoint and last_checkpoint(settings.checkpoint)
    with seeded(settings.seed):
        model = LanguageModel(settings.model_config()).to(getattr(torch, settings.dtype))
    experts = exchange.expert_parameters(exchange.shard_experts(model))
    dense = [p for name, p in model.named_parameters() if name not in experts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.0)
    step = load(last, model, optimizer) if last else 0
    start = {"event": "start", "rank": rank, "ranks": ranks, "pid": os.getpid(), "restart": RESTART}
    yield start | {"from_step": step}
    texts = {name: make_text(name, 50_000) for name in ("english", "code", "arithmetic")}  # made in a moment
    task, size = TextTask(texts, settings.context), settings.batch // ranks
    while step < settings.steps:
        begin = time.perf_counter()
        if settings.fault and (step, rank, RESTART) == (settings.at, settings.rank, 0):
            yield {"event": "fault", "how": settings.fault, "rank": rank, "step": step}
            os.kill(os.getpid(), signal.SIGKILL)
        seed = (settings.seed * 1_000_003 + step) % 2**50
        generator = torch.Generator().manual_seed(seed)  # whatever the number of ranks
        torch.manual_seed(seed * ranks + rank)  # for a router with noise: after a restart it is the same
        x, y = (part[rank * size : (rank + 1) * size] for part in task.batch(settings.batch, generator))
        logits, routings = model(x)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        balance = sum(map(exchange.global_load_balancing_loss, routings))
        optimizer.zero_grad()
        (loss + settings.balance_weight * balance).backward()
        average(dense)
        clip(dense, list(experts.values()))
        optimizer.step()
        step += 1
        record = {"event": "step", "step": step, **over_all_ranks(loss.detach(), routings)}
        yield record | {"seconds": round(time.perf_counter() - begin, 4)}
        if settings.checkpoint and (step % settings.every == 0 or step == settings.steps):
            save(settings.checkpoint, step, model, optimizer)
            yield {"event": "saved", "step": step}
    yield {"event": "end", "step": step, **weights_of(whole(model, state_of(model, optimizer)))}


def average(weights: list[Tensor]) -> None:
    """Give all ranks the mean of their gradients, as DDP does. That one orders them anew after its first step, so that
    of three ranks or more a run that was started again would sum in another order, and differ in the last digits."""
    gradients = [p.grad for p in weights]
    mean = nn.utils.parameters_to_vector(gradients)
    dist.all_reduce(mean)
    nn.utils.vector_to_parameters(mean / dist.get_world_size(), gradients)


@torch.no_grad()
def clip(dense: list[Tensor], experts: list[Tensor]) -> None:
    """Scale down the gradients as one process does: by the norm over all weights, wherever they are."""
    everywhere, mine = (sum(p.grad.double().square().sum() for p in part) for part in (dense, experts))
    dist.all_reduce(mine)
    factor = float((MAX_NORM / ((everywhere + mine).sqrt() + 1e-6)).clamp(max=1))
    for p in (*dense, *experts):
        p.grad.mul_(factor)


def over_all_ranks(loss: Tensor, routings: list) -> dict:
    """Return the mean loss, and how many rows, over all layers, were sent: traffic[i][j] from rank i to rank j."""
    mine = torch.stack([routing.tokens_per_expert for routing in routings])  # (L, E)
    dropped = mine.new_tensor(sum(routing.dropped for routing in routings))
    counts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_reduce(loss)
    dist.all_reduce(dropped)
    dist.all_gather(counts, mine)
    traffic = sum(map(exchange.rank_traffic, torch.stack(counts, dim=1)))  # (N, N)
    return {"loss": float(loss) / len(counts), "dropped": int(dropped), "traffic": traffic.tolist()}


def checkpoints_in(folder: str | Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first."""
    found = [path for path in Path(folder).glob("step*.checkpoint") if path.stem[4:].isdecimal()]
    return sorted(found, key=lambda path: int(path.stem[4:]))


def last_checkpoint(folder: str) -> Path | None:
    """Return the checkpoint to go on from, if any: rank 0 looks for all. ValueError where there cannot be a folder."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = "checkpoint must be a folder that can be written to"
        raise ValueError(f"{what}, got {folder} ({error.strerror})") from None
    last = [None, *checkpoints_in(folder)][-1:]
    dist.broadcast_object_list(last)
    return last[0]


def save(folder: str, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write all ranks' parts into one file; keep the `KEPT` last. Called by every rank; where it fails, each raises."""
    state, trouble = whole(model, state_of(model, optimizer)), [None]
    if dist.get_rank() == 0:
        try:
            write_saved(Path(folder, f"step{step}.checkpoint"), FORMAT, {"step": step, "state": state})
            left = Path(folder).glob(".step*.tmp")  # by one that was killed
            for old in (*checkpoints_in(folder)[:-KEPT], *left):
                old.unlink()
        except OSError as error:
            trouble = [error.strerror or first_line(error)]
    dist.broadcast_object_list(trouble)
    if trouble[0]:
        what = f"step {step} could not be saved in {folder} ({trouble[0]}); those before it are kept"
        raise RuntimeError(f"{what}. Make room, or name another folder, and start again")


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Take this rank's part of a checkpoint, and return its step. Every rank calls it. ValueError, before anything has
    changed, for one that is damaged or of another model."""
    mine, step = state_of(model, optimizer), int(path.stem[4:])
    example = {"step": step, "state": whole(model, mine)}
    try:
        saved = read_saved(path, FORMAT)
        check_like(saved, example, path.stem)
        if saved["step"] != step:
            raise ValueError(f"{path} must be of step {step}, got one of step {saved['step']}")
    except ValueError as error:
        before = [old.stem for old in checkpoints_in(path.parent) if int(old.stem[4:]) < step]
        way = f"the same command goes on from {before[-1]}" if before else "the same command starts afresh"
        raise ValueError(f"{error}. Delete {path}, and {way}; or name another folder") from None
    for name, value in saved["state"].items():
        is_part = value.shape != mine[name].shape  # of the experts of all ranks, those of this one
        mine[name].copy_(value.chunk(dist.get_world_size())[dist.get_rank()] if is_part else value)
    return step


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return all tensors of this rank's model and AdamW, which may be written to."""
    state = dict(model.named_buffers(prefix="buffer"))
    for name, p in model.named_parameters():
        if not optimizer.state[p]:  # before the first step
            zeros = {key: torch.zeros_like(p, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p] = {"step": torch.tensor(0.0), **zeros}
        averages = optimizer.state[p].items()
        state |= {f"weight.{name}": p.detach(), **{f"{key}.{name}": value for key, value in averages}}
    return state


def whole(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the experts of all ranks in the place of this one's, in what `state_of` gave. Every rank calls it."""
    experts, state = exchange.expert_parameters(model), dict(state)
    for name, value in state.items():
        if value.ndim and name.partition(".")[2] in experts:
            parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, value)
            state[name] = torch.cat(parts)
    return state


def weights_of(state: dict[str, Tensor]) -> dict:
    """Return a checksum of all weights, the same on any number of ranks that hold the same ones, and their norm."""
    weights = [value for name, value in state.items() if name.startswith("weight.")]
    digest = hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in weights))
    norm = sum(float(weight.double().square().sum()) for weight in weights) ** 0.5
    return {"weights": digest.hexdigest()[:16], "norm": norm}


def main() -> None:
    """Become one of the ranks that torchrun starts, and say what happens as lines of JSON."""
    parser = argparse.ArgumentParser(prog="moe_lessons.parallel.training", description=Settings.__doc__)
    for field in fields(Settings):
        kind = (get_args(field.type) or (field.type,))[0]
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    settings, step = Settings(**vars(parser.parse_args())), 0
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    try:
        if "RANK" not in os.environ:
            raise ValueError(f"start it by torchrun: torchrun --standalone --nproc-per-node 2 -m {__spec__.name}")
        meet(*next(rendezvous("env://")), check_number("timeout", settings.timeout, above=True))
        for record in train(settings):
            step = record.get("step", record.get("from_step", step))
            if dist.get_rank() == 0 or record["event"] in ("start", "fault"):
                print(json.dumps(record) + "\n", end="", flush=True)  # in one piece: all ranks share a pipe
        dist.barrier()
        dist.destroy_process_group()
    except Exception as error:
        what = first_line(error)
        record = {"event": "failed", "rank": int(os.environ.get("RANK", 0)), "step": step, "error": what}
        record |= {"restart": RESTART, "refused": isinstance(error, ValueError), "time": time.time()}
        with suppress(BrokenPipeError):  # nobody listens any more
            print(json.dumps(record) + "\n", end="", flush=True)
        if isinstance(error, ValueError):
            print(what, file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
            time.sleep(1)  # where another rank has died, torchrun sees that one first, and says how
        os._exit(1)  # the connections close now
    os._exit(0)  # Python takes a second to clear away what is imported


if __name__ == "__main__":
    main()
