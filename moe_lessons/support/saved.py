"""Tensors and plain values in a file: all or nothing, with checksums, and no code, since nothing is unpickled."""

import io
import json
import math
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_lessons.support.errors import in_words
from moe_lessons.support.files import write_whole

STATE = "state.json"  # one part of a zip archive, which has a checksum of each; the bytes of tensors are the others


def write_saved(path: Path, kind: str, state: dict) -> None:
    """Write what JSON knows, and tensors. Raises OSError; then what was at `path` is still there, whole."""
    tensors, memory = [], io.BytesIO()

    def put_aside(tensor: Tensor) -> dict:
        tensors.append(tensor.detach().cpu().contiguous().flatten())
        return {"part": str(len(tensors)), "dtype": str(tensor.dtype).split(".")[1], "shape": list(tensor.shape)}

    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr(STATE, json.dumps({"kind": kind, **state}, default=put_aside))
        for number, tensor in enumerate(tensors, start=1):
            archive.writestr(str(number), tensor.view(torch.uint8).numpy().tobytes())
    write_whole(path, memory.getbuffer())


def read_saved(path: Path, kind: str) -> dict:
    """Read it again. ValueError where it is of another kind, or a bit is not as it was written."""
    content, state = b"" if path.exists() and not path.is_file() else path.read_bytes(), None  # a device may be endless
    with suppress(Exception):  # of many classes
        archive = zipfile.ZipFile(io.BytesIO(content))
        if sum(part.file_size for part in archive.infolist()) <= len(content):  # what is packed small may be endless
            parts = {part.filename: bytearray(archive.read(part)) for part in archive.infolist()}
            state = json.loads(parts.pop(STATE, b"0"), object_hook=lambda made: _tensor(made, parts))
    if not isinstance(state, dict) or state.pop("kind", None) != kind:
        got = "a damaged one" if content.startswith(b"PK") and state is None else "another file"
        raise ValueError(f"{path} must be a {kind}, got {got}")
    return state


def _tensor(made: dict, parts: dict[str, bytearray]) -> Any:
    if "part" not in made:
        return made
    dtype, own = getattr(torch, made["dtype"]), parts.pop(made["part"])
    return torch.frombuffer(own or bytearray(16), dtype=dtype, count=-1 if own else 0).view(made["shape"]).clone()


def check_like(value: Any, example: Any, name: str = "state") -> None:
    """Raise ValueError where what was read is not built as an example is: the same types, keys, lengths and shapes, and
    finite where the example is. Whole numbers are counts, AdamW's steps and mean squares at least 0, tables of whole
    numbers those of the example. An empty list or dict stands for any."""
    is_like, parts = in_words(value) == in_words(example), ()
    if is_like and isinstance(example, Tensor):
        low = 0 if {"step", "exp_avg_sq"} & set(name.split(".")) else -math.inf
        is_like = bool(((value.isfinite() & (value >= low)) | ~example.isfinite().cpu()).all())
        if example.dtype in (torch.int32, torch.int64) and example.ndim:
            is_like = torch.equal(value, example.cpu())
    elif is_like and isinstance(example, dict):
        is_like, parts = not example or value.keys() == example.keys(), example.items()
    elif is_like and isinstance(example, list):
        is_like, parts = not example or len(value) == len(example), enumerate(example)
    elif is_like and isinstance(example, int | float):
        is_like = math.isfinite(value) if isinstance(example, float) else 0 <= value < 2**53
    if not is_like:
        got = "another" if in_words(value) == in_words(example) else in_words(value)
        raise ValueError(f"{name} must be as in this run ({in_words(example)}, finite), got {got}")
    for key, part in parts:
        check_like(value[key], part, f"{name}.{key}")
