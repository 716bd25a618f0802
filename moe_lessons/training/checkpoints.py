"""Checkpoints: a run written to disk, from which it goes on to the same numbers as if it had never stopped."""

import hashlib
import json
import math
from dataclasses import fields
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from moe_lessons.support.files import write_whole
from moe_lessons.training.knobs import KNOBS
from moe_lessons.training.record import Record

FORMAT = "moe_lessons checkpoint 5"
VALUES = "values"  # the tensor of bytes that has all else as JSON


def save_checkpoint(run, path: str | Path) -> None:
    """Write all that a `Run` needs to go on, as safetensors. Raises OSError; then what was at `path` is still there."""
    state = run.state_dict()
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state["tensors"].items()}
    values = json.dumps({name: part for name, part in state.items() if name != "tensors"}).encode()
    tensors[VALUES] = torch.frombuffer(bytearray(values), dtype=torch.uint8)
    write_whole(Path(path), save(tensors, {"format": FORMAT, "sha256": checksum(tensors)}))


def load_checkpoint(run, path: str | Path):
    """Put a `Run`, made as the saved one was, where that one stood, and return it: its next step is the same, on the
    same machine. ValueError where the file is damaged, or of a run with another configuration: nothing has changed."""
    state = read_checkpoint(Path(path))
    try:
        run.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"{path} is no checkpoint of this run: {error}") from None
    return run


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote. Nothing in a file can run code. ValueError for any other or a damaged one."""
    if path.exists() and not path.is_file():  # a device may be endless
        raise ValueError(f"{path} must be a {FORMAT}, got no regular file")
    try:
        with safe_open(path, "pt") as file:
            about, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
        if about["format"] == FORMAT and about["sha256"] == checksum(tensors):
            return {**json.loads(tensors.pop(VALUES).numpy().tobytes()), "tensors": tensors}
    except OSError:
        raise
    except Exception:  # of many classes, as a damaged or crafted file has it
        pass
    raise ValueError(f"{path} must be a {FORMAT}, got another file or a damaged one")


def checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0")
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


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
    data = hashlib.sha256(y.cpu().numpy().tobytes()).hexdigest()[:16]
    return words | {"checksum of the task's data": data}


def check_state(run, state: Any) -> None:
    """Raise ValueError, which names what differs, where a run cannot go on from a state."""
    own = run.state_dict()
    if not isinstance(state, dict) or not all(isinstance(state.get(name), type(own[name])) for name in own):
        raise ValueError(f"state must have {', '.join(own)}")
    here, there = own["configuration"], state["configuration"]
    for name in here | there:
        if here.get(name) != there.get(name):
            wanted, got = (shorten(str(words.get(name)), 500) for words in (here, there))
            raise ValueError(f"state must be of a run with {shorten(name, 80)} {wanted}, got {got}")
    tensors, likes = state["tensors"], {n: t for n, t in own["tensors"].items() if not n.startswith("optimizer.")}
    for name, weight in run.model.named_parameters():
        averages = {"step": torch.tensor(0.0), "exp_avg": weight, "exp_avg_sq": weight}
        averages = {f"optimizer.{name}.{key}": like for key, like in averages.items()}
        likes |= averages if averages.keys() & tensors.keys() else {}
    for name in likes | tensors:
        wanted, got = (in_short(where.get(name)) for where in (likes, tensors))
        if wanted != got:
            raise ValueError(f"state must have {shorten(name, 80)} {wanted}, got {got}")
    for name, tensor in tensors.items():
        if name.startswith("random."):
            try:
                torch.Generator().set_state(tensor)
            except RuntimeError:
                raise ValueError(f"{name} must be the state of a random generator, got another") from None
    for number, record in enumerate(state["records"], start=1):
        check_record(record, number)
    if state["knobs"].keys() != KNOBS.keys():
        raise ValueError(f"knobs must be {', '.join(KNOBS)}, got {shorten(', '.join(state['knobs']), 200)}")
    for name, value in state["knobs"].items():
        run.knobs.check(name, value)


def in_short(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"of shape {tuple(tensor.shape)} {tensor.dtype}"


def check_record(record: Any, number: int) -> None:
    """Raise ValueError where this is not the record of step `number`, in plain values."""
    kinds = {field.name: field.type for field in fields(Record)}
    plain = {name: kind for name, kind in kinds.items() if kind in (int, float)}
    is_record = isinstance(record, dict) and record.keys() == kinds.keys() and record["step"] == number
    numbers = [record[name] for name in plain] if is_record else []
    if is_record:
        losses, loads = record["auxiliary"], record["load"]
        is_record = isinstance(losses, dict) and isinstance(loads, list) and all(type(load) is list for load in loads)
        numbers += [*losses.values(), *(share for load in loads for share in load)] if is_record else []
    if not is_record or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise ValueError(f"the record of step {number} must have finite numbers for {', '.join(kinds)}")
