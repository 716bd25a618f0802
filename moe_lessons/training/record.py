"""The record of a step, and how it is measured."""

from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from moe_lessons.nn import Routing
from moe_lessons.tasks.facts import NOT_SCORED

DEAD_SHARE = 0.01  # an expert is called dead when fewer than 1 % of the tokens want it


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of one step."""

    step: int
    loss: float  # of the task alone: cross entropy, nats
    accuracy: float  # 0 to 1, on the batch of this step, before the update
    auxiliary: dict[str, float]  # each loss beside that of the task, by its name, summed over the MoE layers
    load: list[list[float]]  # for each MoE layer, the share of the assignments that each expert was wanted for
    dead_experts: int  # over all MoE layers
    dropped_share: float  # of all assignments, 0 to 1
    lr: float  # the learning rate of this step's update
    ms_per_step: float  # data, forward, backward and update; of a GPU's time an even part, where runs step together


def table(records: list[Record]) -> pd.DataFrame:
    """Make a row for each record: its fields, with a column for each auxiliary loss, by its name, and for the load of
    each expert: 'load E0', 'load E1', … for one MoE layer, and 'load L0 E0', … for several."""
    columns = [field.name for field in fields(Record)]
    frame = pd.DataFrame([vars(record) for record in records], columns=columns)
    parts = [pd.DataFrame(list(frame.pop("auxiliary")), index=frame.index)]
    layers = list(zip(*frame.pop("load")))  # for each layer, a list of the loads at each step
    for i, loads in enumerate(layers):
        layer = f"L{i} " if len(layers) > 1 else ""
        parts.append(pd.DataFrame(list(loads), columns=[f"load {layer}E{e}" for e in range(len(loads[0]))]))
    return pd.concat([frame, *parts], axis=1)


def token_losses(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Give the cross entropy (nats) of each token, and whether it is classified correctly: both of the shape of y, and
    0 for those that are not scored."""
    losses = F.cross_entropy(logits.flatten(0, -2), y.flatten(), ignore_index=NOT_SCORED, reduction="none")
    return losses.view(y.shape), logits.argmax(dim=-1) == y


def scored_mean(values: Tensor, y: Tensor) -> Tensor:
    """Give the mean over the scored tokens of y of what is 0 for the others."""
    return values.sum() / (y != NOT_SCORED).sum()


def gathered(*parts: dict[str, Tensor]) -> list[dict[str, np.ndarray]]:
    """Bring dicts of small tensors to the CPU at once, so that a GPU is waited for a single time."""
    values = [value.detach() for part in parts for value in part.values()]
    kind = torch.float64 if any(value.dtype == torch.float64 for value in values) else torch.float32
    flat = torch.cat([value.reshape(-1).to(values[0].device, kind) for value in values]).cpu().numpy().astype(float)
    arrays = iter(np.split(flat, np.cumsum([value.numel() for value in values])[:-1]))
    return [{name: next(arrays).reshape(value.shape) for name, value in part.items()} for part in parts]


def is_dead(wanted: float | Tensor, num_tokens: int = 1) -> bool | Tensor:
    """Tell which experts (…, E) fewer than `DEAD_SHARE` of the tokens want. wanted: how many do, or which share."""
    return wanted < DEAD_SHARE * num_tokens * (1 - 1e-6)  # a share in float32 may miss the limit by its rounding


def dead_experts(routing: Routing) -> int:
    """Count the dead experts of a routing."""
    return int(is_dead(routing.demand_per_expert, routing.num_tokens).sum())


def load_share(routing: Routing) -> Tensor:
    """Give the share of all assignments that each expert was wanted for: (E,), summing to 1."""
    demand = routing.demand_per_expert
    return demand / demand.sum().clamp(min=1)
