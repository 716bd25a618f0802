"""Checkpoints: a run written to disk, from which it goes on to the same numbers as if it had never stopped."""

import hashlib
from pathlib import Path

import torch

from moe_lessons.support.files import write_whole
from moe_lessons.support.saved import read_saved, write_saved
from moe_lessons.training.knobs import KNOBS

FORMAT = "moe_lessons checkpoint 4"


def save_checkpoint(run, path: str | Path) -> None:
    """Write all that a `Run` needs to go on. What was at `path` is kept beside it, or on an OSError still there."""
    path, state = Path(path), run.state_dict()
    if path.is_file():
        write_whole(before(path), path.read_bytes())
    write_saved(path, FORMAT, state)


def load_checkpoint(run, path: str | Path):
    """Put a `Run`, made as the saved one was, where that one stood, and return it: its next step is the same. A file
    cannot run code. ValueError where it is damaged, crafted, or of a run with another configuration."""
    path = Path(path)
    try:
        state = read_saved(path, FORMAT)
        try:
            run.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{path} is no checkpoint of this run: {error}") from None
    except ValueError as error:
        way = f"; the one before it is there: load_checkpoint(run, {str(before(path))!r})"
        raise ValueError(f"{error}{way * before(path).is_file()}") from None
    return run


def before(path: Path) -> Path:
    """Name the file in which the checkpoint before the one at `path` is kept: run.before.pt for run.pt."""
    return path.with_name(f"{path.stem}.before{path.suffix}")


def configuration(run) -> dict[str, str]:
    """Say in words what must be the same in two runs for one to go on where the other stopped: classes, plain values
    (but for those of knobs), shapes and types of the weights, and the first data of the task."""
    words = {"run.knobs": ", ".join(KNOBS)}
    for name, part in {"task": run.task, "run": run, **dict(run.model.named_modules(prefix="model"))}.items():
        words[name] = type(part).__name__
        for key, value in vars(part).items():
            is_fixed = key not in ("training", *KNOBS) and not key.startswith("_")
            if is_fixed and isinstance(value, int | float | str | None):
                words[f"{name}.{key}"] = repr(value)
    for name, weight in (*run.model.named_parameters(), *run.model.named_buffers()):
        learned = "learned" if weight.requires_grad else "fixed"
        words[f"model.{name}"] = f"{tuple(weight.shape)} {weight.dtype} {learned}"
    _, y = run.task.batch(64, torch.Generator().manual_seed(0))
    checksum = hashlib.sha256(y.cpu().numpy().tobytes()).hexdigest()[:16]
    return words | {"checksum of the task's data": checksum, "run.device": run.device.type}
