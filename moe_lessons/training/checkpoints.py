"""Checkpoints: a run written to disk, from which it goes on to the same numbers as if it had never stopped."""

import hashlib
import io
import zipfile
from contextlib import suppress
from pathlib import Path

import torch

from moe_lessons.support.files import write_whole
from moe_lessons.training.knobs import TRAINING

FORMAT = "moe_lessons checkpoint 3"


def save_checkpoint(run, path: str | Path) -> None:
    """Write all that a `Run` needs to go on. What was at `path` is replaced, or on an OSError still there, whole."""
    memory = io.BytesIO()
    torch.save({"format": FORMAT, **run.state_dict()}, memory)  # in a file, torch would hide that the disk is full
    write_whole(Path(path), memory.getbuffer())


def load_checkpoint(run, path: str | Path):
    """Put a `Run`, made as the saved one was, where that one stood, and return it: its next step is the same. A file
    cannot run code. ValueError where it is no whole checkpoint, or of a run with another configuration."""
    content, is_whole, saved = Path(path).read_bytes(), False, None
    with suppress(Exception):  # of many classes
        is_whole = zipfile.ZipFile(io.BytesIO(content)).testzip() is None  # torch does not look at the checksums
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True) if is_whole else None
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        got = "a damaged one" if content.startswith(b"PK") and not is_whole else "another file"
        raise ValueError(f"{path} must be a {FORMAT}, got {got}")
    try:
        run.load_state_dict(saved)
    except ValueError as error:
        raise ValueError(f"{path} is a checkpoint of another run: {error}") from None
    return run


def configuration(run) -> dict[str, str]:
    """Say in words what must be the same in two runs for one to go on where the other stopped: classes, plain values
    (but for those of knobs), shapes and types of the weights, and the first data of the task."""
    words = {"run.knobs": ", ".join(TRAINING)}
    for name, part in {"task": run.task, "run": run, **dict(run.model.named_modules(prefix="model"))}.items():
        words[name] = type(part).__name__
        for key, value in vars(part).items():
            is_fixed = key not in ("training", *TRAINING) and not key.startswith("_")
            if is_fixed and isinstance(value, int | float | str | None):
                words[f"{name}.{key}"] = repr(value)
    for name, weight in (*run.model.named_parameters(), *run.model.named_buffers()):
        learned = "learned" if weight.requires_grad else "fixed"
        words[f"model.{name}"] = f"{tuple(weight.shape)} {weight.dtype} {learned}"
    _, y = run.task.batch(64, torch.Generator().manual_seed(0))
    checksum = hashlib.sha256(y.cpu().numpy().tobytes()).hexdigest()[:16]
    return words | {"checksum of the task's data": checksum, "run.device": run.device.type}
