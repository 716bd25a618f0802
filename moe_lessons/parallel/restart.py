"""Checkpoints by `torch.distributed.checkpoint`: each rank writes its part, and any number of ranks reads them."""

import hashlib
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from moe_lessons.parallel.exchange import expert_parameters

KEPT = 2  # the last ones


def complete_ones(folder: str) -> list[Path]:
    """Return the checkpoints in a folder that were written to their end, oldest first."""
    found = [path.parent for path in Path(folder).glob("step*/.metadata")]  # it is written last
    return sorted((path for path in found if path.name[4:].isdecimal()), key=step_of)


def step_of(path: Path) -> int:
    return int(path.name[4:])


def last_one(folder: str) -> Path | None:
    """Return the checkpoint to go on from, if any: rank 0 looks for all. ValueError where there cannot be a folder."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"checkpoint must be a folder that can be written to, got {folder} ({error.strerror})"
        raise ValueError(what) from None
    last = [None, *complete_ones(folder)][-1:]
    dist.broadcast_object_list(last)
    return last[0]


def save(folder: str, step: int, state: dict[str, Tensor]) -> None:
    """Write all ranks' parts of `state`. Every rank calls it.

    They get their name when all are on the disk, and then those before the last two go: whatever goes wrong (a full
    disk, a rank that dies), a whole one is there. RuntimeError, on all ranks, where it cannot be written.
    """
    temporary, trouble = Path(folder, f".step{step}"), [None]
    try:
        dcp.save(state, checkpoint_id=temporary)
        if dist.get_rank() == 0:
            temporary.rename(Path(folder, f"step{step}"))
    except (CheckpointException, OSError) as error:
        trouble = [in_a_sentence(error)]
    dist.broadcast_object_list(trouble)
    if dist.get_rank() == 0:
        for old in [temporary] if trouble[0] else complete_ones(folder)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    if trouble[0]:
        what = f"step {step} could not be saved in {folder} ({trouble[0]}); those before it are kept"
        raise RuntimeError(f"{what}. Make room, or name another folder, and start again")


def load(path: Path, state: dict[str, Tensor]) -> int:
    """Fill the tensors of `state` from a checkpoint, and return its step. ValueError where they do not fit."""
    try:
        dcp.load(state, checkpoint_id=path)
    except CheckpointException as error:
        what = f"{path} is damaged, or of another model ({in_a_sentence(error)})"
        raise ValueError(
            f"{what}: delete it, and the run goes on from the one before it, or name another folder"
        ) from None
    return step_of(path)


def in_a_sentence(error: BaseException) -> str:
    """Say what went wrong first, and on which rank."""
    for rank, (cause, _) in sorted(getattr(error, "failures", {}).items()):
        return f"rank {rank}: {in_a_sentence(cause)}"
    return f"{type(error).__name__}: {error}".splitlines()[0]


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, mesh: DeviceMesh) -> dict[str, Tensor]:
    """Return all tensors of the model and of AdamW, by name, as they are in memory: loading fills them.

    Experts stand as what all ranks hold together, so that a checkpoint fits any number of ranks.
    """
    experts, state = expert_parameters(model), dict(model.named_buffers(prefix="buffer"))
    for name, p in model.named_parameters():
        if not optimizer.state[p]:  # before the first step
            zeros = {key: torch.zeros_like(p, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p] = {"step": torch.tensor(0.0), **zeros}
        for key, value in {"weight": p.detach(), **optimizer.state[p]}.items():
            is_part = name in experts and key != "step"
            state[f"{key}.{name}"] = DTensor.from_local(value, mesh, [Shard(0)], run_check=False) if is_part else value
    return state


def weights_of(state: dict[str, Tensor]) -> dict:
    """Return a checksum of all weights, the same on any number of ranks that hold the same ones, and their norm."""
    digest, square = hashlib.sha256(), 0.0
    for name, value in state.items():
        if name.startswith("weight."):
            whole = (value.full_tensor() if isinstance(value, DTensor) else value).cpu()
            digest.update(whole.numpy().tobytes())
            square += float(whole.double().square().sum())
    return {"weights": digest.hexdigest()[:16], "norm": square**0.5}
