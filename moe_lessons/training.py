"""A run: one model, one task, one optimizer, one step at a time."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_lessons.errors import (
    NonFiniteError,
    check_choice,
    check_count,
    check_device,
    check_number,
    check_positive_int,
    check_seed,
)
from moe_lessons.knobs import TRAINING
from moe_lessons.nn import Routing, dense_twin, evaluating, is_moe, torch_threads
from moe_lessons.tasks import PlaneSetting, plane_model

PRECISIONS = ("float32", "bfloat16", "auto")
DEAD_SHARE = 0.01  # an expert is called dead when fewer than 1 % of the tokens want it


class TrainingDiverged(RuntimeError):
    """The loss or a gradient is no longer finite."""


class Record(NamedTuple):
    """What one step showed. The loss is that of the task alone; the auxiliary losses stand beside it, unweighted."""

    step: int
    loss: float  # cross entropy, nats
    accuracy: float  # 0 to 1, on the batch of this step, before the update
    load_balancing_loss: float  # summed over the MoE layers
    router_z_loss: float  # likewise
    load: list[list[float]]  # for each MoE layer, the share of the assignments that each expert was wanted for
    dead_experts: int  # over all MoE layers
    dropped_share: float  # of all assignments, 0 to 1
    lr: float  # the learning rate of this step's update
    ms_per_step: float  # all of `step()`: data, forward, backward, update, and its book-keeping


class Knobs:
    """What may change between any two steps: an attribute for each knob of `knobs.TRAINING`, where they are described.

    A bad value raises ValueError and changes nothing, a name that is no knob AttributeError.
    """

    names = tuple(TRAINING)
    __slots__ = ("_holders", "_learns_noise", "_values")

    def __init__(self, model: nn.Module, lr: float):
        modules = list(model.modules())
        holders = {name: [m for m in modules if knob.needs(m)] for name, knob in TRAINING.items() if knob.needs}
        object.__setattr__(self, "_holders", holders)
        object.__setattr__(self, "_learns_noise", any(getattr(m, "noise", None) == "learned" for m in modules))
        object.__setattr__(self, "_values", {name: knob.off for name, knob in TRAINING.items() if not knob.attribute})
        self.lr = lr

    def has(self, name: str) -> bool:
        """Whether a knob can be set to more than off: whether the model has what it acts on."""
        return bool(self._holders.get(name, True))

    @property
    def is_noisy(self) -> bool:
        """Whether training now routes otherwise than evaluation: Gaussian or learned noise, or jitter."""
        return self._learns_noise or any(getattr(self, name) for name, knob in TRAINING.items() if knob.disturbs)

    def __getattr__(self, name: str) -> float | None:
        if name not in TRAINING:
            raise AttributeError(f"there is no knob {name!r}, only {', '.join(TRAINING)}")
        if not TRAINING[name].attribute:
            return self._values[name]
        return getattr(self._holders[name][0], name) if self._holders[name] else TRAINING[name].off

    def __setattr__(self, name: str, value: float | None) -> None:
        if name not in TRAINING:
            raise AttributeError(f"there is no knob {name!r}, only {', '.join(TRAINING)}")
        knob, before = TRAINING[name], value
        value = knob.check(value)
        if value != knob.off and not self.has(name):
            off = "None" if knob.off is None else f"{knob.off:g}"
            raise ValueError(f"{name} must be {off} where {knob.where}, got {before!r}")
        if not knob.attribute:
            self._values[name] = value
        for module in self._holders[name] if knob.attribute else ():
            setattr(module, name, value)

    def take(self, setting: Any) -> None:
        """Turn every knob to what a setting says, or none where one of them cannot be."""
        before = {name: getattr(self, name) for name in self.names}
        try:
            for name in self.names:
                setattr(self, name, getattr(setting, name))
        except ValueError:
            for name, value in before.items():
                setattr(self, name, value)
            raise

    def __repr__(self) -> str:
        return f"Knobs({', '.join(f'{name}={getattr(self, name)}' for name in self.names)})"


class Run:
    """Trains `model` on `task` with AdamW (arXiv:1711.05101), one `step()` at a time.

    model: maps a batch x to (logits, routings), with one `Routing` for each of its MoE layers.
    task: has `batch(num, generator) -> (x, y)`, y the right classes. One that keeps a part of its data to measure on
        has `held_out(num_per_domain) -> (x, y, ...)` and `domains` too, as a `TextTask`.
    weight_decay: of the matrices; norms and biases have none. With 0, AdamW is Adam (arXiv:1412.6980).
    warmup_steps, decay_steps: the learning rate grows evenly over the first warmup_steps; with decay_steps it then
        falls along half a cosine (arXiv:1608.03983), to a tenth at step decay_steps, and stays there.
    max_grad_norm: a gradient whose norm over all weights is above this is scaled down to it.
    precision: 'bfloat16' computes the products in bfloat16; weights, routers and loss stay in float32. 'auto' takes
        it on a GPU that has it. On a CPU 'auto' is float32: at the sizes of a lesson that is faster even where the
        processor has instructions for bfloat16, since the conversions cost more than the products save.
    seed: of the data and of any noise in the model. The same seed gives the same numbers on the same machine: a
        run computes with `threads` threads whatever the global setting, and has random states of its own on the
        CPU and on CUDA (on other devices, noise comes from the global one).

    `knobs` may change between steps; `records` and `history` hold every step so far. Where the loss or a gradient
    is no longer finite, `step()` raises `TrainingDiverged`; the weights are then those of the last step whose loss
    was finite, all records stay, and training can go on with another setting of the knobs.

    >>> from moe_lessons.nn import MoE
    >>> from moe_lessons.tasks import PlaneClassifier, PlaneTask
    >>> run = Run(PlaneClassifier(MoE(16, 8, num_experts=4), num_classes=8), PlaneTask("blobs"), lr=0.02)
    >>> run.step().step, run.step().step
    (1, 2)
    """

    def __init__(
        self,
        model: nn.Module,
        task,
        *,
        lr: float = 0.01,
        batch_size: int = 256,
        seed: int = 0,
        device=None,
        threads: int = 1,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        decay_steps: int | None = None,
        max_grad_norm: float | None = None,
        precision: str = "float32",
    ):
        if not callable(getattr(task, "batch", None)):
            raise ValueError(f"task must have batch(num, generator) -> (x, y), got {type(task).__name__} without it")
        if not isinstance(model, nn.Module) or not list(model.parameters()):
            raise ValueError(f"model must be a module with parameters, got {type(model).__name__}")
        longest = getattr(getattr(model, "config", None), "max_positions", math.inf)
        if getattr(task, "context", 0) > longest:
            raise ValueError(f"context must be at most the model's max_positions ({longest}), got {task.context}")
        self.knobs, self.seed = Knobs(model, lr), check_seed(seed)
        self.weight_decay = check_number("weight_decay", weight_decay)
        self.warmup_steps = check_count("warmup_steps", warmup_steps)
        self.decay_steps = None if decay_steps is None else check_positive_int("decay_steps", decay_steps)
        if decay_steps is not None and decay_steps <= self.warmup_steps:
            raise ValueError(f"decay_steps must be above warmup_steps ({self.warmup_steps}), got {decay_steps}")
        unlimited = max_grad_norm is None
        self.max_grad_norm = None if unlimited else check_number("max_grad_norm", max_grad_norm, above=True)
        self.batch_size = check_positive_int("batch_size", batch_size)
        self.threads = check_positive_int("threads", threads)
        self.device = check_device(device or next(model.parameters()).device)
        self.model, self.task = model.to(self.device), task
        self.precision = choose_precision(precision, self.device)
        self.optimizer = make_optimizer(model, lr, self.weight_decay)
        self.records: list[Record] = []
        mixtures = [module for module in model.modules() if is_moe(module)]
        self.num_experts = [moe.num_experts for moe in mixtures]  # E of each MoE layer
        self._routers = [getattr(moe, "router", None) for moe in mixtures]
        self._data = self._generator()
        self._generators = [torch.default_generator]
        if self.device.type == "cuda":
            self._generators.append(torch.cuda.default_generators[self.device.index or 0])
        own = [torch.Generator(g.device).manual_seed(self.seed + 2_000_003) for g in self._generators]
        self._random_states = [generator.get_state() for generator in own]
        self._weights = [*model.parameters(), *model.buffers()]
        self._last_good = [weight.detach().clone() for weight in self._weights]

    def step(self) -> Record:
        """Train on one fresh batch and return what it showed. A step that fails draws its batch again next time."""
        before = self._position()
        try:
            record = self._train()
        except BaseException:
            self._return_to(before)
            raise
        self._before = before
        self.records.append(record)
        return record

    def take_back(self) -> None:
        """Undo the last step, once: its record, its batch and its update. The optimizer forgets its averages."""
        self.records.pop()
        self._return_to(self._before)
        self.go_back()

    def _position(self) -> tuple:
        """Where the run stands in its random numbers: of the data, and of the noise."""
        return [generator.get_state() for generator in self._streams], list(self._random_states)

    def _return_to(self, position: tuple) -> None:
        for generator, state in zip(self._streams, position[0], strict=True):
            generator.set_state(state)
        self._random_states = list(position[1])

    @property
    def _streams(self) -> list[torch.Generator]:
        return self._data if isinstance(self._data, list) else [self._data]

    def _train(self) -> Record:
        start = time.perf_counter()
        with self._own_state():
            x, y = self._batch(self.batch_size, self._data)
            self.model.train()
            try:
                logits, routings = self._forward(x)
            except NonFiniteError as error:
                self._diverged(str(error))
            for name, knob in TRAINING.items():
                if knob.update and getattr(self.knobs, name) > 0 and len(routings) != len(self._routers):
                    wanted = f"one Routing for each MoE layer ({len(self._routers)}) where {name} is above 0"
                    raise ValueError(f"model must return {wanted}, got {len(routings)}")
            losses, right = of_each_token(logits, y)
            total = loss = losses.mean()
            parts = {
                name: sum((knob.loss(r) for r in routings), start=loss.new_zeros(()))
                for name, knob in TRAINING.items() if knob.loss
            }  # fmt: skip
            for name, part in parts.items():
                coef = getattr(self.knobs, name)
                total = total + coef * part if coef > 0 else total  # what weighs nothing costs no backward
            if not torch.isfinite(total):
                self._diverged(f"the loss is {total.item()}")
            self.optimizer.zero_grad()
            total.backward()
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            if not torch.isfinite(norm):
                self._diverged("a gradient is not finite")
            numbers = {
                "step": len(self.records) + 1,
                "loss": loss.item(),  # on a GPU this waits for the step
                "accuracy": right.float().mean().item(),
                "load_balancing_loss": parts["router_aux_loss_coef"].item(),
                "router_z_loss": parts["router_z_loss_coef"].item(),
                "lr": self.knobs.lr * lr_scale(len(self.records) + 1, self.warmup_steps, self.decay_steps),
            }
            record = self._record(numbers, losses.detach(), right, routings)
            self._update(norm, record.lr, routings)  # last of all: an interrupt before it has changed no weight
        return record._replace(ms_per_step=1000 * (time.perf_counter() - start))

    def _update(self, norm: Tensor, lr: float, routings: list[Routing]) -> None:
        """Move the weights by their gradients, whose norm is `norm`, and the expert biases by the routings."""
        if self.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._remember()
        self.optimizer.step()
        for name, knob in TRAINING.items():
            if knob.update and getattr(self.knobs, name) > 0:
                for router, routing in zip(self._routers, routings, strict=True):
                    if knob.needs(router):
                        knob.update(router, routing, getattr(self.knobs, name))

    def evaluate(self, num: int = 1024) -> dict[str, float]:
        """Loss and accuracy on `num` examples that training has not seen, in eval mode: no noise.

        They are drawn afresh; from a task that has a held-out part, they are of that part, as many of each domain
        (rounded up).
        """
        losses, right, _ = self._on_held_out(num)
        return {"loss": losses.mean().item(), "accuracy": right.float().mean().item()}

    def evaluate_by_domain(self, num_per_domain: int = 32) -> pd.DataFrame:
        """Loss (nats) and accuracy on each domain of a task that has some: `num_per_domain` held-out sequences each."""
        if not hasattr(self.task, "held_out"):
            raise ValueError(f"task must have domains and a held-out part, got {type(self.task).__name__}")
        check_positive_int("num_per_domain", num_per_domain)
        losses, right, _ = self._on_held_out(num_per_domain * len(self.task.domains))  # (N, T)
        columns = {"loss": losses.mean(dim=1), "accuracy": right.float().mean(dim=1)}
        frame = pd.DataFrame({name: values.tolist() for name, values in columns.items()})
        domain = [self.task.domains[i] for i in self.task.held_out(num_per_domain)[2].tolist()]
        return frame.groupby(pd.Series(domain, name="domain"), sort=False).mean()

    @torch.no_grad()
    def _on_held_out(self, num: int) -> tuple[Tensor, Tensor, list[Routing]]:
        """`num` examples that training has not seen: the losses, what is named right, and the routings."""
        check_positive_int("num", num)
        with self._own_state(go_on=False), evaluating(self.model):
            x, y = self._held_out(num)
            logits, routings = self._forward(x)
            return *of_each_token(logits, y), routings

    def _forward(self, x: Tensor) -> tuple[Tensor, list[Routing]]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits, routings = check_output(self.model(x))
        return logits.to(torch.promote_types(logits.dtype, torch.float32)), routings

    def _generator(self, purpose: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + purpose)

    def _batch(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, y = self.task.batch(num, generator)
        return x.to(self.device), y.to(self.device)

    def _held_out(self, num: int) -> tuple[Tensor, Tensor]:
        if not hasattr(self.task, "held_out"):
            return self._batch(num, self._generator(1_000_003))
        x, y, *_ = self.task.held_out(math.ceil(num / len(self.task.domains)))
        return x.to(self.device), y.to(self.device)

    @property
    def history(self) -> pd.DataFrame:
        """One row for each step: the fields of `Record`, with a column for the load of each expert.

        They are 'load E0', 'load E1', … for one MoE layer, and 'load L0 E0', … for several.
        """
        rows = []
        for record in self.records:
            row = {name: getattr(record, name) for name in Record._fields}
            layers = row.pop("load")
            for i, load in enumerate(layers):
                layer = f"L{i} " if len(layers) > 1 else ""
                row |= {f"load {layer}E{e}": share for e, share in enumerate(load)}
            rows.append(row)
        return pd.DataFrame(rows, columns=None if rows else [f for f in Record._fields if f != "load"])

    def _record(self, numbers: dict, losses: Tensor, right: Tensor, routings: list[Routing]) -> Record:
        """A record of these numbers, and of what else a step shows."""
        wanted = sum(r.dropped + len(r.expert_idx) for r in routings)
        return Record(
            **numbers,
            load=[load_share(routing).tolist() for routing in routings],
            dead_experts=sum(dead_experts(r) for r in routings),
            dropped_share=sum(r.dropped for r in routings) / max(wanted, 1),
            ms_per_step=0.0,
        )

    def _remember(self) -> None:
        with torch.no_grad():
            for kept, weight in zip(self._last_good, self._weights, strict=True):
                kept.copy_(weight)

    def go_back(self) -> None:
        """Take back the last update: the weights that the last step began with; the optimizer forgets its averages."""
        with torch.no_grad():
            for kept, weight in zip(self._last_good, self._weights, strict=True):
                weight.copy_(kept)
        self.optimizer.state.clear()

    def _diverged(self, why: str) -> None:
        self.go_back()
        raise TrainingDiverged(
            f"training stopped after step {len(self.records)}: {why}; the weights of the last good step are kept, "
            f"lower the learning rate (now {self.knobs.lr:g}) to go on"
        )

    @contextmanager
    def _own_state(self, go_on: bool = True) -> Iterator[None]:
        """This run's threads and random states inside; everybody else's outside. `go_on`: keep the states' progress."""
        outside = [generator.get_state() for generator in self._generators]
        for generator, state in zip(self._generators, self._random_states, strict=True):
            generator.set_state(state)
        try:
            with torch_threads(self.threads):
                yield
        finally:
            if go_on:
                self._random_states = [generator.get_state() for generator in self._generators]
            for generator, state in zip(self._generators, outside, strict=True):
                generator.set_state(state)


def lr_scale(step: int, warmup_steps: int = 0, decay_steps: int | None = None) -> float:
    """What the learning rate of a step (from 1) is multiplied by: see `Run`.

    >>> [round(lr_scale(step, warmup_steps=2, decay_steps=6), 3) for step in range(1, 8)]
    [0.5, 1.0, 0.868, 0.55, 0.232, 0.1, 0.1]
    """
    if step < warmup_steps:
        return step / warmup_steps
    if decay_steps is None:
        return 1.0
    progress = min((step - warmup_steps) / (decay_steps - warmup_steps), 1.0)
    return 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2  # arXiv:1608.03983, eq. 5, from 1 to 0.1


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW for all parameters of a model; only matrices decay."""
    decays = {True: [], False: []}
    for name, weight in model.named_parameters():
        decays[weight.ndim > 1 and not name.endswith("bias")].append(weight)  # experts stack their biases
    groups = [{"params": decays[True], "weight_decay": weight_decay}, {"params": decays[False], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=True)  # twice as fast as foreach at every size of the lessons


def choose_precision(precision: str, device: torch.device) -> str:
    """'float32' or 'bfloat16': what a name of `PRECISIONS` means on this device."""
    if check_choice("precision", precision, PRECISIONS) != "auto":
        return precision
    is_good = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if is_good else "float32"


def check_output(out) -> tuple[Tensor, list[Routing]]:
    """Return what a model gave if it is logits and a list of routings, else raise ValueError."""
    if isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], list) and isinstance(out[0], Tensor):
        return out
    raise ValueError(f"model must return (logits, [Routing, ...]), got {type(out).__name__}")


def of_each_token(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The cross entropy (nats) of each token, and whether its class is named right: both of the shape of y."""
    losses = F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none")
    return losses.view(y.shape), logits.argmax(dim=-1) == y


def dead_experts(routing: Routing, share: float = DEAD_SHARE) -> int:
    """How many experts fewer than `share` of the tokens want (dropped assignments count as wanted)."""
    return int((routing.demand_per_expert < share * routing.num_tokens).sum())


def load_share(routing: Routing) -> Tensor:
    """(E,) the share of all assignments that each expert was wanted for; they sum to 1."""
    demand = routing.demand_per_expert
    return demand / demand.sum().clamp(min=1)


def plane_runs(setting: PlaneSetting, seed: int = 0, block=None, device=None) -> dict[str, Run]:
    """A mixture of experts and its two dense twins on the same points in the plane, ready to train in step.

    The embedding and the head start equal in all three; the batches are the same. `block`: see `tasks.plane_model`.
    """
    model, task = plane_model(setting, seed, block)
    models = {"MoE": model, "dense, same active": dense_twin(model, "active", seed)}
    models["dense, same total"] = dense_twin(model, "total", seed)
    runs = {name: Run(m, task, lr=setting.lr, seed=seed, device=device) for name, m in models.items()}
    runs["MoE"].knobs.take(setting)
    return runs
