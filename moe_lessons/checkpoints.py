"""Checkpoints: a run written to disk, from which it goes on to the same numbers as if it had never stopped."""

import copy
import hashlib
import inspect
import io
import os
import zipfile
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch

from moe_lessons.knobs import TRAINING
from moe_lessons.training import Knobs, Record, Run

FORMAT, VERSION = "moe_lessons checkpoint", 1
SETTINGS = "batch_size seed threads weight_decay warmup_steps decay_steps max_grad_norm precision".split()  # of a Run
OF_MODULES = tuple(n for n, knob in TRAINING.items() if knob.attribute)  # they may differ from layer to layer

WRONG_PARTS = "one with parts that are missing or wrong"


def save_checkpoint(run: Run, path: str | Path) -> None:
    """Write all that `run` needs to go on: weights, optimizer, knobs, records, random states; and what it is a run of.

    First a file beside `path` is written, then it takes its place. Whatever goes wrong (OSError: a full disk, a folder
    that is missing or must not be written to), what was at `path` before is still there, whole.

    >>> from tempfile import TemporaryDirectory
    >>> from moe_lessons.nn import MoE
    >>> from moe_lessons.tasks import PlaneClassifier, PlaneTask
    >>> def new_run():
    ...     return Run(PlaneClassifier(MoE(16, 8, num_experts=4), num_classes=8), PlaneTask("blobs"))
    >>> run = new_run()
    >>> with TemporaryDirectory() as folder:
    ...     save_checkpoint(run, f"{folder}/run.pt")
    ...     same = load_checkpoint(new_run(), f"{folder}/run.pt")
    >>> run.step().loss == same.step().loss
    True
    """
    check_run(run)
    saved = {"format": FORMAT, "version": VERSION, "configuration": describe(run), "state": state_of(run)}
    if not Path(path).name:
        raise ValueError(f"path must name a file, got {str(Path(path))!r}")
    path, memory = Path(path).resolve(), io.BytesIO()  # of a link, the file that it leads to
    torch.save(saved, memory)  # not into the file: for a full disk torch has no OSError
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # in the same folder: a move within one disk
    try:
        with open(temporary, "wb") as file:
            file.write(memory.getbuffer())
            file.flush()
            os.fsync(file.fileno())  # on the disk before it takes the place of the last one
        os.replace(temporary, path)
    except OSError as error:  # OSError(number, ...) is of the class that the number has
        raise OSError(error.errno, f"{error.strerror}, no checkpoint was written", str(path)) from error
    finally:
        with suppress(OSError):  # it is gone where all went well
            temporary.unlink()


def load_checkpoint(run: Run, path: str | Path) -> Run:
    """Put `run`, made as the saved one was, where that one stood, and return it: its next step is the same.

    Raises ValueError where the file is no checkpoint, is not whole, or is of a run with another configuration, and
    OSError where it cannot be read; the run is then as it was. A file cannot make this run code.
    """
    check_run(run)
    saved = read(Path(path))
    here, there = describe(run), saved["configuration"]
    for name in here | there:
        if here.get(name) != there.get(name):
            wanted, got = here.get(name), there.get(name)
            raise ValueError(f"{path} must be a checkpoint of a run with {name} {wanted!r}, got {got!r}")
    before = copy.deepcopy(state_of(run))
    try:
        set_state(run, saved["state"])
    except BaseException as error:  # all or nothing, also where you interrupt
        set_state(run, before)
        if isinstance(error, Exception):
            raise not_one(path, WRONG_PARTS) from error
        raise
    return run


def check_run(run: Run) -> None:
    """Raise ValueError for a kind of run that keeps more than a `Run` does."""
    if type(run) is not Run:
        raise ValueError(f"run must be a Run and no other kind of one, got {type(run).__name__}")


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint holds. ValueError for a file that is none, or not whole."""
    content = path.read_bytes()  # a zip, with its table of contents at the end and a checksum of each part
    is_whole, saved = False, None
    with suppress(Exception):  # of many classes, none of them ours
        is_whole = zipfile.ZipFile(io.BytesIO(content)).testzip() is None  # torch does not look at the checksums
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True) if is_whole else None
    if not content:
        raise not_one(path, "an empty file")
    if content.startswith(b"PK") and not is_whole:
        raise not_one(path, "a truncated or damaged one")
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise not_one(path, "another file")
    if saved.get("version") != VERSION:
        raise not_one(path, f"one of version {saved.get('version')} where {VERSION} is read")
    if not isinstance(saved.get("configuration"), dict) or "state" not in saved:
        raise not_one(path, WRONG_PARTS)
    return saved


def not_one(path: Path, got: str) -> ValueError:
    return ValueError(f"{path} must be a checkpoint of moe_lessons, got {got}")


def describe(run: Run) -> dict[str, Any]:
    """What must be the same in two runs for one to go on where the other stopped: names and plain values."""
    told: dict[str, Any] = {}
    for name, module in run.model.named_modules(prefix="model"):
        told |= arguments(module, name)
    for name, weight in (*run.model.named_parameters(), *run.model.named_buffers()):
        told[f"model.{name}"] = f"{tuple(weight.shape)} {weight.dtype} {'learned' if weight.requires_grad else 'fixed'}"
    told |= arguments(run.task, "task")
    _, y = run.task.batch(64, torch.Generator().manual_seed(0))
    told["checksum of the task's data"] = hashlib.sha256(y.cpu().numpy().tobytes()).hexdigest()[:16]
    return told | {name: getattr(run, name) for name in SETTINGS} | {"device": run.device.type}


def arguments(thing: Any, name: str) -> dict[str, Any]:
    """The class of a thing, and what it was made with, as far as it keeps that in plain attributes. Knobs are left out.

    >>> arguments(torch.nn.Dropout(0.5), "dropout")
    {'dropout': 'Dropout', 'dropout.p': 0.5, 'dropout.inplace': False}
    """
    taken = {a for cls in type(thing).__mro__ for a in inspect.signature(cls.__init__).parameters} - set(Knobs.names)
    told = {name: type(thing).__name__}
    for argument, value in getattr(thing, "__dict__", {}).items():
        if argument in taken and is_plain(value):
            told[f"{name}.{argument}"] = value
        elif argument in taken and is_dataclass(value):  # a configuration
            told |= arguments(value, f"{name}.{argument}")
    return told


def is_plain(value: Any) -> bool:
    """Whether a value can be written without any code."""
    if type(value) in (tuple, list):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def state_of(run: Run) -> dict[str, Any]:
    """All that changes while a run trains, in tensors and plain values."""
    knobs = {name: getattr(run.knobs, name) for name in Knobs.names if name not in OF_MODULES}
    return {
        "weights": [weight.detach() for weight in run._weights],
        "last_good": run._last_good,
        "optimizer": run.optimizer.state_dict()["state"],
        "knobs": plain_knobs(knobs),
        "knobs_of_modules": [plain_knobs(own_knobs(module)) for module in run.model.modules()],
        "records": [tuple(record) for record in run.records],
        "data": run._data.get_state(),
        "random_states": run._random_states,
    }


def own_knobs(module: Any) -> dict[str, float | None]:
    """The knobs that a module keeps itself."""
    return {name: getattr(module, name) for name in OF_MODULES if hasattr(module, name)}


def plain_knobs(knobs: dict[str, float | None]) -> dict[str, float | None]:
    """The same values, none of them a number of numpy: a checkpoint has no code for those."""
    return {name: None if value is None else float(value) for name, value in knobs.items()}


def set_state(run: Run, state: dict[str, Any]) -> None:
    """The reverse of `state_of`."""
    with torch.no_grad():
        for name, weights in (("weights", run._weights), ("last_good", run._last_good)):
            for weight, value in zip(weights, state[name], strict=True):
                weight.copy_(value)
    groups = run.optimizer.state_dict()["param_groups"]
    run.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
    for name, value in state["knobs"].items():
        setattr(run.knobs, name, value)
    for module, values in zip(run.model.modules(), state["knobs_of_modules"], strict=True):
        for name in own_knobs(module):
            setattr(module, name, values[name])
    run.records = [Record(*record) for record in state["records"]]
    run._data.set_state(state["data"])
    for generator, value in zip(run._generators, state["random_states"], strict=True):
        torch.Generator(generator.device).set_state(value)  # what cannot be set is refused here, not in the next step
    run._random_states = state["random_states"]
