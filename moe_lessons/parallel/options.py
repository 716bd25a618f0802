"""What to train on several ranks; refused before any training where it cannot be, or where the ranks disagree."""

import dataclasses
import inspect
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import moe_lessons
from moe_lessons.nn import TransformerConfig
from moe_lessons.parallel import restart
from moe_lessons.support.errors import check_choice, check_count, check_number, check_positive_int, check_seed

FAULTS = ("kill", "raise", "hang", "stop")
SIZES = ("num_layers", "d_model", "d_ff", "num_experts", "top_k", "router", "capacity_factor")


@dataclass(frozen=True)
class Settings:
    """What to train, and how.

    batch: sequences in a step, of all ranks together. capacity: see `shard_experts`. balance: whether the auxiliary
        loss, weighted by `balance_weight`, is over the tokens of all ranks ('global') or of each ('local').
    dense: 'ddp' or 'fsdp', for all but the experts. clip: the largest norm of the gradient, over all ranks.
    checkpoint: a folder, written to every `every` steps. What is there already is gone on from.
    fault: what happens to the rank `rank` in step `at`, for a try. After a restart it does not happen again.
    timeout: seconds that a rank waits for another.
    """

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
    capacity: str = "local"
    balance: str = "global"
    balance_weight: float = 0.01
    dense: str = "ddp"
    lr: float = 3e-3
    clip: float = 1.0
    dtype: str = "float32"
    seed: int = 0
    checkpoint: str | None = None
    every: int = 10
    fault: str | None = None
    at: int = 0
    rank: int = 1
    backend: str = "gloo"
    timeout: float = 10.0

    def check(self, ranks: int) -> None:
        """Raise ValueError for what does not go together on so many ranks."""
        for name in ("steps", "batch", "context", "every"):
            check_positive_int(name, getattr(self, name))
        for name in ("lr", "clip", "timeout"):
            check_number(name, getattr(self, name), above=True)
        check_number("balance_weight", self.balance_weight)
        check_seed(self.seed)
        check_choice("dense", self.dense, ("ddp", "fsdp"))
        if self.dense == "fsdp" and "ignored_params" not in inspect.signature(fully_shard).parameters:
            raise ValueError("dense must be 'ddp' with torch before 2.7, whose FSDP2 cannot leave out the experts")
        check_choice("balance", self.balance, ("global", "local"))
        check_choice("capacity", self.capacity, ("global", "local"))
        check_choice("dtype", self.dtype, ("float32", "float64"))
        if self.fault is not None:
            check_choice("fault", self.fault, FAULTS)
            check_choice("rank", str(self.rank), map(str, range(ranks)))
            check_count("at", self.at)
        for name in ("num_experts", "batch"):
            if getattr(self, name) % ranks:
                raise ValueError(f"{name} ({getattr(self, name)}) must be a multiple of the number of ranks ({ranks})")
        self.model_config()

    def model_config(self) -> TransformerConfig:
        return TransformerConfig(max_positions=self.context, **{name: getattr(self, name) for name in SIZES})

    def what_makes_the_model(self) -> dict[str, str]:
        return {name: str(getattr(self, name)) for name in (*SIZES, "dtype")}


def agree(settings: Settings) -> Path | None:
    """The checkpoint to go on from, or ValueError on all ranks alike where one of them finds something wrong."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "moe_lessons": moe_lessons.__version__}
    mine, trouble, last = versions | dataclasses.asdict(settings), "", None
    try:
        settings.check(dist.get_world_size())
        if settings.checkpoint:
            last = restart.last_one(settings.checkpoint, settings.what_makes_the_model())
    except ValueError as error:
        trouble = str(error)
    except OSError as error:
        trouble = f"checkpoint must be a folder that can be written to, got {settings.checkpoint} ({error.strerror})"
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (mine, trouble, last and last.name))
    (first, _, seen), *_ = everyone
    for rank, (its_own, _, _) in enumerate(everyone):
        if differing := [name for name, value in first.items() if its_own[name] != value]:
            which = [f"{name} is {first[name]} on rank 0, {its_own[name]} on rank {rank}" for name in differing]
            raise ValueError(f"all ranks must have the same settings and versions: {'; '.join(which)}")
    for rank, (_, trouble, its_last) in enumerate(everyone):
        if trouble:
            raise ValueError(trouble)
        if its_last != seen:
            what = f"the last one is {seen} on rank 0, {its_last} on rank {rank}"
            raise ValueError(f"all ranks must see the same checkpoints in {settings.checkpoint}: {what}")
    return last
