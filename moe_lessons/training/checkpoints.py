"""Checkpoints: a run written to disk, from which it goes on to the same numbers as if it had never stopped."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from textwrap import shorten
from typing import Any, get_args, get_origin

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from moe_lessons.support.errors import first_line, shown
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
    (but for those of knobs), which weights learn, and the first data of the task."""
    words = {"run.knobs": ", ".join(KNOBS)}
    for name, part in {"task": run.task, "run": run, **dict(run.model.named_modules(prefix="model"))}.items():
        words[name] = type(part).__name__
        for key, value in vars(part).items():
            is_fixed = key not in ("training", *KNOBS) and not key.startswith("_")
            if is_fixed and isinstance(value, int | float | str | None):
                words[f"{name}.{key}"] = repr(value)
    for name, weight in run.model.named_parameters():
        words[f"model.{name}.requires_grad"] = repr(weight.requires_grad)
    _, y = run.task.batch(64, torch.Generator().manual_seed(0))
    data = hashlib.sha256(y.cpu().numpy().tobytes()).hexdigest()[:16]
    return words | {"checksum of the task's data": data}


def check_state(run, state: dict[str, Any]) -> tuple[list[Record], dict[str, float | None]]:
    """Return the records and the knobs of a state. ValueError, which names what differs, where a run cannot go on."""
    try:
        here, there = map(with_shapes, (run.state_dict(), state))
        for name in here | there:
            if here.get(name) != there.get(name):
                wanted, got = (shorten(str(words.get(name)), 500) for words in (here, there))
                raise ValueError(f"state must be of a run with {shorten(name, 80)} {wanted}, got {got}")
        for i in range(len(run.generators)):
            torch.Generator().set_state(state["tensors"][f"random.{i}"])
        knobs = {name: run.knobs.check(name, state["knobs"][name]) for name in KNOBS}
        return [check_record(f"records[{i}]", Record(**record)) for i, record in enumerate(state["records"])], knobs
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"state must be one that a run gives, got another: {first_line(error)}") from None


def check_record(name: str, record: Record) -> Record:
    """Return a record, or raise ValueError with the field that has a value of another type than the class says."""
    for field in fields(Record):
        if not is_of(field.type, value := getattr(record, field.name)):
            kind = field.type if get_args(field.type) else field.type.__name__
            raise ValueError(f"{name}.{field.name} must be {kind}, got {shown(value)}")
    return record


def is_of(kind: Any, value: Any) -> bool:
    """Tell whether a value of JSON has a type such as float or dict[str, float], with all that is in it."""
    if type(value) is not (get_origin(kind) or kind):
        return False
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(is_of(get_args(kind)[-1], part) for part in parts)


def with_shapes(state: dict[str, Any]) -> dict[str, str]:
    """Add to the configuration of a state the shapes and types of its tensors."""
    return state["configuration"] | {name: f"{tuple(t.shape)} {t.dtype}" for name, t in state["tensors"].items()}
