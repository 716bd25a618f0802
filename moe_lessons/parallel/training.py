"""A small language model on several ranks: its experts divided among them, the rest on each, with

    torchrun --standalone --nproc-per-node 2 -m moe_lessons.parallel.training --steps 40 --checkpoint FOLDER

Rank 0 prints its records as lines of JSON. After a fault, a run goes on from its last checkpoint: to the same bits on
as many ranks, or on another number that divides the experts. `Settings` has the options, a fault on demand among them.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional as F

from moe_lessons.nn import LanguageModel, TransformerConfig, seeded
from moe_lessons.parallel import exchange
from moe_lessons.support.errors import check_choice, check_number, check_positive_int, check_seed, shown
from moe_lessons.tasks import TextTask, make_text

MODEL_SETTINGS = ("num_layers", "d_model", "d_ff", "num_experts", "top_k", "capacity_factor")
MAX_NORM = 1.0  # of the gradient, over all ranks
ABOUT = "model.json"  # beside the tensors of a checkpoint: of which model they are


@dataclass(frozen=True)
class Settings:
    """The settings of a training.

    batch: sequences in a step, of all ranks together. capacity_factor: counted by each rank for its own tokens.
    balance_weight: of the auxiliary loss, over the tokens of all ranks.
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
        if self.batch % ranks:
            raise ValueError(f"batch ({self.batch}) must be a multiple of the number of ranks ({ranks})")

    def model_config(self) -> TransformerConfig:
        return TransformerConfig(max_positions=self.context, **{name: getattr(self, name) for name in MODEL_SETTINGS})


def train_rank(settings: Settings) -> Iterator[dict]:
    """Train on this rank of the process group, and yield what happens: start, step, saved, fault and end. Every rank
    calls it, as `launch(train_rank, 2, settings)` does. Bad settings are refused on all alike, before any training."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))  # how often all ranks have started again
    settings.check(ranks)
    with seeded(settings.seed):
        model = LanguageModel(settings.model_config()).to(getattr(torch, settings.dtype))
    experts = exchange.expert_parameters(exchange.shard_experts(model))
    dense = [p for name, p in model.named_parameters() if name not in experts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.0)
    step = load_ranks(settings, model, optimizer) if settings.checkpoint else 0
    yield {"event": "start", "ranks": ranks, "restart": restart, "from_step": step}
    texts = {name: make_text(name, 50_000) for name in ("english", "code", "arithmetic")}  # made in a moment
    task = TextTask(texts, settings.context)
    size = settings.batch // ranks
    while step < settings.steps:
        begin = time.perf_counter()
        if settings.fault and (step, restart) == (settings.at, 0):
            yield {"event": "fault", "how": settings.fault, "rank": settings.rank, "step": step}
            if rank == settings.rank:
                os.kill(os.getpid(), signal.SIGKILL)
        generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + step) % 2**50)  # of all ranks
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
            save_ranks(settings, step, model, optimizer)
            yield {"event": "saved", "step": step}
    yield {"event": "end", "step": step, "weights": checksum(state_of(model, optimizer))}


def train_each(several: Sequence[Settings]) -> Iterator[dict]:
    """Train by several settings, one after the other, on the same ranks: what `train_rank` yields, with 'run', the
    place of its settings."""
    for run, settings in enumerate(several):
        for record in train_rank(settings):
            yield {"run": run, **record}


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
    found = [path for path in Path(folder).glob("step*") if path.name[4:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[4:]))


def describe(settings: Settings) -> dict[str, Any]:
    """Name what the tensors of a checkpoint depend on."""
    return {name: value for name, value in asdict(settings).items() if name in (*MODEL_SETTINGS, "context", "dtype")}


def save_ranks(settings: Settings, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write all ranks' parts into one folder. Every rank calls it."""
    target = Path(settings.checkpoint, f"step{step}")
    part = target.with_name(f"{target.name}.part")  # by its name no checkpoint, until it is whole
    if dist.get_rank() == 0:
        shutil.rmtree(part, ignore_errors=True)  # of one that was killed
    dist.barrier()
    try:
        dcp.save(state_of(model, optimizer), storage_writer=HuggingFaceStorageWriter(str(part), save_distributed=True))
    except dcp.api.CheckpointException as error:
        raise RuntimeError(f"step {step} could not be saved in {settings.checkpoint}; make room there") from error
    if dist.get_rank() == 0:
        (part / ABOUT).write_text(json.dumps(describe(settings)), "utf-8")
        part.rename(target)
    dist.barrier()


def load_ranks(settings: Settings, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Read this rank's part of the last checkpoint, of any number of ranks, and return its step; 0 where there is none.
    Every rank calls it. ValueError, on all, where it is damaged or of another model. Nothing of it is executed."""
    Path(settings.checkpoint).mkdir(parents=True, exist_ok=True)
    if not (found := checkpoints_in(settings.checkpoint)):
        return 0
    path = found[-1]
    ours = describe(settings)
    try:
        about = json.loads((path / ABOUT).read_text("utf-8"))
        theirs = {name: about[name] for name, value in ours.items() if about[name] != value}
        if not theirs:
            dcp.load(state_of(model, optimizer), storage_reader=HuggingFaceStorageReader(str(path)))  # in place
    except (OSError, ValueError, KeyError, TypeError, RecursionError, dcp.api.CheckpointException) as error:
        again = "delete it to go on from the one before, or name another folder"
        raise ValueError(f"checkpoint {path} is damaged: {again}") from error
    if theirs:
        wanted = {name: ours[name] for name in theirs}
        raise ValueError(f"checkpoint must be of a model with {wanted}, got {path} with {shown(theirs)}")
    return int(path.name[4:])


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return all tensors of model and AdamW, which may be written to; those of experts as parts of the whole."""
    experts = exchange.expert_parameters(model)
    state = {}
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for name, p in model.named_parameters():
        if not optimizer.state[p]:  # before the first step
            zeros = {key: torch.zeros_like(p, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p] = {"step": torch.tensor(0.0), **zeros}
        for key, value in {"weight": p.detach(), **optimizer.state[p]}.items():
            is_part = name in experts and value.ndim > 0
            state[f"{key}.{name}"] = DTensor.from_local(value, mesh, [Shard(0)]) if is_part else value
    return state


def checksum(state: dict[str, Tensor]) -> str:
    """Return a checksum of all weights, the same on any number of ranks that hold the same ones."""
    weights = [value for name, value in state.items() if name.startswith("weight.")]
    weights = [weight.full_tensor() if isinstance(weight, DTensor) else weight for weight in weights]
    return hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in weights)).hexdigest()[:16]


def main() -> None:
    """Become one of the ranks that torchrun starts; rank 0 prints its records as lines of JSON."""
    parser = argparse.ArgumentParser(prog="moe_lessons.parallel.training", description=Settings.__doc__)
    for field in fields(Settings):
        kind = (get_args(field.type) or (field.type,))[0]
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    settings = Settings(**vars(parser.parse_args()))
    if "RANK" not in os.environ:
        parser.error(f"start it by torchrun: torchrun --standalone --nproc-per-node 2 -m {__spec__.name}")
    dist.init_process_group("gloo")
    try:
        for record in train_rank(settings):
            if dist.get_rank() == 0:
                print(json.dumps(record), flush=True)
        dist.barrier()
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
