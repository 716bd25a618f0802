"""Which state a run can go on from: one of a run with the same configuration."""

import hashlib
from typing import Any

import torch

from moe_lessons.support.errors import first_line
from moe_lessons.training.knobs import KNOBS
from moe_lessons.training.record import Record


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
    return words | {"checksum of the task's data": hashlib.sha256(y.cpu().numpy().tobytes()).hexdigest()[:16]}


def check_state(run, state: dict[str, Any]) -> tuple[list[Record], dict[str, float | None]]:
    """Return the records and the knobs of a state. ValueError, which names what differs, where a run cannot go on."""
    try:
        here, there = map(with_shapes, (run.state_dict(), state))
        for name in here | there:
            if here.get(name) != there.get(name):
                raise ValueError(f"state must be of a run with {name} {here.get(name)}, got {there.get(name)}")
        for i in range(len(run.generators)):
            torch.Generator().set_state(state["tensors"][f"random.{i}"])
        knobs = {name: run.knobs.check(name, state["knobs"][name]) for name in KNOBS}
        return [Record(**record) for record in state["records"]], knobs
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"state must be one that a run gives, got another: {first_line(error)}") from None


def with_shapes(state: dict[str, Any]) -> dict[str, str]:
    """Add to the configuration of a state the shapes and types of its tensors."""
    return state["configuration"] | {name: f"{tuple(t.shape)} {t.dtype}" for name, t in state["tensors"].items()}
