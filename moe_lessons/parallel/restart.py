"""Checkpoints by `torch.distributed.checkpoint`: each rank writes its part, and any number of ranks reads them."""

import hashlib
import json
import shutil
from contextlib import suppress
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
SETTINGS = "settings.json"  # what makes the model


def complete_ones(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder that were written to their end, oldest first."""
    found = [path.parent for path in Path(folder).glob("step*/.metadata")]  # it is written last
    return sorted((path for path in found if path.name[4:].isdecimal()), key=lambda path: int(path.name[4:]))


def last_one(folder: str | Path, model: dict[str, str]) -> Path | None:
    """The checkpoint to go on from, if any. ValueError: it is damaged, or of another model. OSError: no such folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    if not (found := complete_ones(folder)):
        return None
    last = found[-1]
    try:
        dcp.FileSystemReader(last).read_metadata()
        saved = dict(json.loads((last / SETTINGS).read_text()))
    except Exception as error:  # there is little that unpickling does not raise
        raise damaged(last, error) from None
    there = {name: saved.get(name) for name in model}
    differing = [f"{name} is {there[name]} there, {mine} here" for name, mine in model.items() if there[name] != mine]
    if differing:
        raise ValueError(f"{last} is a checkpoint of another model ({'; '.join(differing)}): name another folder")
    return last


def save(folder: str | Path, step: int, state: dict[str, Tensor], model: dict[str, str]) -> None:
    """Write all ranks' parts of `state`. Every rank calls it.

    They get their name when all are on the disk, and then those before the last two go: whatever goes wrong (a full
    disk, a rank that dies), a whole one is there. RuntimeError, on all ranks, where it cannot be written.
    """
    path, temporary, trouble = Path(folder, f"step{step}"), Path(folder, f".step{step}"), None
    try:
        dcp.save(state | {"step": torch.tensor(step)}, checkpoint_id=temporary)
        if dist.get_rank() == 0:
            (temporary / SETTINGS).write_text(json.dumps(model))
            temporary.rename(path)
    except (CheckpointException, OSError) as error:
        trouble = in_a_sentence(error)
        with suppress(OSError):
            trouble += f"; {shutil.disk_usage(folder).free / 1e6:.1f} MB are free there"
    told = [trouble]
    dist.broadcast_object_list(told, src=0)
    if dist.get_rank() == 0:
        for old in [temporary] if told[0] else complete_ones(folder)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    if told[0]:
        kept = ", ".join(f"{name.name}" for name in complete_ones(folder)) or "none before it"
        what = f"step {step} could not be saved in {folder} ({told[0]}); kept: {kept}"
        raise RuntimeError(f"{what}. Make room, or name another folder, and start again")


def load_state(path: Path, state: dict[str, Tensor]) -> int:
    """Fill the tensors of `state` from a checkpoint, and return its step. ValueError where it is damaged."""
    state = state | {"step": torch.tensor(0)}
    try:
        dcp.load(state, checkpoint_id=path)
    except CheckpointException as error:
        raise damaged(path, error) from None
    return int(state["step"])


def damaged(path: Path, error: BaseException) -> ValueError:
    why = in_a_sentence(error)
    return ValueError(f"{path} is damaged ({why}): delete it, and the run goes on from the one before it")


def in_a_sentence(error: BaseException) -> str:
    """What went wrong first, and on which rank."""
    for rank, (cause, _) in sorted(getattr(error, "failures", {}).items()):
        return f"rank {rank}: {in_a_sentence(cause)}"
    return f"{type(error).__name__}: {error}".splitlines()[0]


# --- what a run goes on from -----------------------------------------------------------------------------------


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, mesh: DeviceMesh) -> dict[str, Tensor]:
    """All tensors of the model and of AdamW, by name, as they are in memory: loading fills them.

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
    """A checksum of all weights, the same on any number of ranks that hold the same ones, and their norm."""
    digest, square = hashlib.sha256(), 0.0
    for name, value in state.items():
        if name.startswith("weight."):
            whole = (value.full_tensor() if isinstance(value, DTensor) else value).cpu()
            digest.update(whole.numpy().tobytes())
            square += float(whole.double().square().sum())
    return {"weights": digest.hexdigest()[:16], "norm": square**0.5}
