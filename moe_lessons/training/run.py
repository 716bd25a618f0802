"""A run: one model, one task, one optimizer, one step at a time."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from textwrap import shorten
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_lessons.nn import Routing, is_moe
from moe_lessons.nn.seeding import evaluating, torch_threads
from moe_lessons.support.errors import check_count, check_number, check_positive_int, check_seed, first_line
from moe_lessons.support.interrupts import held_back
from moe_lessons.support.saved import check_like
from moe_lessons.tasks.facts import NOT_SCORED
from moe_lessons.training.checkpoints import configuration
from moe_lessons.training.knobs import KNOBS, Knobs

DEAD_SHARE = 0.01  # an expert is called dead when fewer than 1 % of the tokens want it
HELD_OUT, NOISE = 1_000_003, 2_000_003  # parts of their seeds: neither has the random numbers of the data


class TrainingDiverged(RuntimeError):
    """The loss or a gradient is no longer finite."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """Says what one step showed."""

    step: int
    loss: float  # of the task alone: cross entropy, nats
    accuracy: float  # 0 to 1, on the batch of this step, before the update
    auxiliary: dict[str, float]  # each loss beside that of the task, by its name, summed over the MoE layers
    load: list[list[float]]  # for each MoE layer, the share of the assignments that each expert was wanted for
    dead_experts: int  # over all MoE layers
    dropped_share: float  # of all assignments, 0 to 1
    lr: float  # the learning rate of this step's update
    ms_per_step: float  # all of `step()`: data, forward, backward, update, and its book-keeping


class Run:
    """Trains `model` on `task` with AdamW (arXiv:1711.05101) without decay, one `step()` at a time.

    model: maps a batch x to (logits, routings), with one `Routing` for each of its MoE layers.
    task: has `batch(num, generator) -> (x, y)`, y the correct classes, or -100 where nothing is scored. One that keeps
        a part of its data to measure on has `held_out(num_per_domain) -> (x, y, domain)` and `domains` too.
    seed: of the data and of the noise. The same seed gives the same numbers on the same machine: a run computes with
        `threads` threads and (on a CPU or with CUDA) random numbers of its own, whatever goes on around it.
    warmup_steps, decay_steps: see `lr_scale`. max_grad_norm: a gradient of a larger norm is scaled down to it.

    `knobs` may change between steps; `records` and `history` hold every step so far. Where the loss or a gradient is
    not finite, `step()` raises `TrainingDiverged`: the weights are those of the last good step, and training can go on.

    >>> from moe_lessons.nn import MoE
    >>> from moe_lessons.tasks import PlaneClassifier, PlaneTask
    >>> run = Run(PlaneClassifier(MoE(16, 8, num_experts=4), num_classes=8), PlaneTask("blobs"), lr=0.02)
    >>> run.step().step, run.step().step
    (1, 2)
    """

    has_checkpoints = True  # `state_dict` has all that it needs to go on

    def __init__(
        self,
        model: nn.Module,
        task,
        *,
        lr: float = 0.01,
        batch_size: int = 256,
        seed: int = 0,
        threads: int = 1,
        warmup_steps: int = 0,
        decay_steps: int | None = None,
        max_grad_norm: float | None = None,
    ):
        if not callable(getattr(task, "batch", None)):
            raise ValueError(f"task must have batch(num, generator) -> (x, y), got {type(task).__name__} without it")
        if not isinstance(model, nn.Module) or not list(model.parameters()):
            raise ValueError(f"model must be a module with parameters, got {type(model).__name__}")
        self.knobs, self.seed = Knobs(model, lr), check_seed(seed)
        self.batch_size = check_positive_int("batch_size", batch_size, 2**20)
        self.threads = check_positive_int("threads", threads)
        self.warmup_steps = check_count("warmup_steps", warmup_steps)
        if decay_steps is not None and check_positive_int("decay_steps", decay_steps) <= warmup_steps:
            raise ValueError(f"decay_steps must be above warmup_steps ({warmup_steps}), got {decay_steps}")
        if max_grad_norm is not None:
            check_number("max_grad_norm", max_grad_norm, above=True)
        self.decay_steps, self.max_grad_norm = decay_steps, max_grad_norm
        self.model, self.task, self.device = model, task, next(model.parameters()).device
        self._parameters = list(model.parameters())
        # fused: twice as fast as foreach at every size of the lessons
        self.optimizer = torch.optim.AdamW(self._parameters, lr=lr, weight_decay=0.0, fused=True)
        self.records: list[Record] = []
        mixtures = [module for module in model.modules() if is_moe(module)]
        self.num_experts = [moe.num_experts for moe in mixtures]  # E of each MoE layer
        self._routers = [getattr(moe, "router", None) for moe in mixtures]
        self._data = self._generators()
        self._weights = [*self._parameters, *model.buffers()]
        self._last_good = [weight.detach().clone() for weight in self._weights]

    def step(self) -> Record:
        """Train on one fresh batch and return what it showed. A step that fails, or is interrupted before its update,
        draws its batch again next time; an interrupt of the update waits until the step is done."""
        start = time.perf_counter()
        with held_back() as signals, self._own_random_numbers(), torch.enable_grad():
            before = self._position()
            if not self.model.training:
                self.model.train()
            try:
                with signals.let_through():
                    record, norm, routings = self._compute()
                self._update(norm, record.lr, routings)
            except BaseException:
                self._return_to(before)
                raise
            self._before = before
            self.records.append(replace(record, ms_per_step=1000 * (time.perf_counter() - start)))
            return self.records[-1]

    @held_back()
    def take_back(self) -> None:
        """Undo the last step, once: its record, its batch and its update. The optimizer forgets its averages."""
        self.records.pop()
        self._return_to(self._before)
        self.go_back()

    @held_back()
    def go_back(self) -> None:
        """Take back the last update: the weights that the last step began with; the optimizer forgets its averages."""
        copy_into(self._weights, self._last_good)
        self.optimizer.state.clear()
        self.optimizer.zero_grad()

    def _compute(self) -> tuple[Record, Tensor, list[Routing]]:
        """Compute all of a step but the update: no weight changes."""
        x, y = self._batch(self.batch_size, self._data)
        try:
            logits, routings = self._forward(x)
        except Exception as error:  # the model itself may refuse what is not finite
            if self._first_not_finite(x) is None:
                raise
            self._diverge(str(error), x)
        losses, correct = token_losses(logits, y)
        total, auxiliary = losses.mean(), {}
        for name, knob in KNOBS.items():
            if knob.loss:
                value = sum(map(knob.loss, routings), start=torch.zeros((), device=self.device))
                auxiliary[knob.loss.__name__] = value.item()
                if (weight := getattr(self.knobs, name)) > 0:  # what weighs nothing costs no backward
                    total = total + weight * value
        if not math.isfinite(total.item()):  # on a GPU this waits for the step
            self._diverge(f"the loss is {total.item()}", x)
        self.optimizer.zero_grad()
        total.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        if not math.isfinite(norm.item()):
            self._diverge("a gradient is not finite", x)
        numbers = {
            "step": len(self.records) + 1,
            "loss": losses.mean().item(),
            "accuracy": correct.float().mean().item(),
            "auxiliary": auxiliary,
            "lr": self.knobs.lr * lr_scale(len(self.records) + 1, self.warmup_steps, self.decay_steps),
            "ms_per_step": 0.0,
        }
        return self._record(numbers, losses.detach(), correct, routings), norm, routings

    def _update(self, norm: Tensor, lr: float, routings: list[Routing]) -> None:
        if self.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self.max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        copy_into(self._last_good, self._weights)
        for name, knob in KNOBS.items():
            if knob.update and getattr(self.knobs, name) > 0:
                for router, routing in list(zip(self._routers, routings, strict=True)):  # a miscount: before any moves
                    if knob.needs(router):
                        knob.update(router, routing, getattr(self.knobs, name))
        self.optimizer.step()

    @held_back()  # its hooks go with it
    def _first_not_finite(self, x: Tensor) -> str | None:
        """Name the first that is not finite, or None: x, a weight, the output of a module, a gradient, as they come."""
        weights, found = list(self.model.named_parameters()), []

        def look(what: str, value: Any) -> None:
            values = vars(value).values() if is_dataclass(value) else value if isinstance(value, tuple) else [value]
            if not all(tensor.isfinite().all() for tensor in values if isinstance(tensor, Tensor)):
                found.append(what)

        for name, tensor in [("the input", x), *weights]:
            look(name, tensor)
        with ExitStack() as hooks, self._own_random_numbers(), suppress(Exception), torch.no_grad():
            for name, module in self.model.named_modules():
                what = f"the output of {name or 'the model'}"
                hook = module.register_forward_hook(lambda _, __, output, what=what: look(what, output))
                hooks.enter_context(hook)
            self._forward(x)  # with the same noise; where it raises, what was seen until then says enough
        for name, weight in reversed(weights):
            look(f"the gradient of {name}", weight.grad)
        return found[0] if found else None

    @held_back()
    def _diverge(self, why: str, x: Tensor) -> None:
        first = self._first_not_finite(x)
        self.go_back()
        raise TrainingDiverged(
            f"training stopped after step {len(self.records)}: {why}"
            + (f"; the first that is not finite is {first}" if first else "")
            + f"; the weights of the last good step are kept, lower the learning rate (now {self.knobs.lr:g}) to go on"
        )

    def _record(self, numbers: dict, losses: Tensor, correct: Tensor, routings: list[Routing]) -> Record:
        wanted = sum(r.dropped + len(r.expert_idx) for r in routings)
        return Record(
            **numbers,
            load=[load_share(routing).tolist() for routing in routings],
            dead_experts=sum(dead_experts(r) for r in routings),
            dropped_share=sum(r.dropped for r in routings) / max(wanted, 1),
        )

    def evaluate(self, num: int = 1024) -> dict[str, float]:
        """Measure loss and accuracy on `held_out` examples, in eval mode: no noise."""
        losses, correct, _ = self._measure(*self.held_out(num))
        return {"loss": losses.mean().item(), "accuracy": correct.float().mean().item()}

    def evaluate_by_domain(self, num_per_domain: int = 32) -> pd.DataFrame:
        """Measure loss (nats) and accuracy on `num_per_domain` held-out sequences of each domain of the task."""
        if not hasattr(self.task, "held_out"):
            raise ValueError(f"task must have domains and a held-out part, got {type(self.task).__name__}")
        x, y, domain = self.task.held_out(num_per_domain)
        losses, correct, _ = self._measure(x.to(self.device), y.to(self.device))  # (N, T)
        columns = {"loss": losses.mean(dim=1).tolist(), "accuracy": correct.float().mean(dim=1).tolist()}
        frame = pd.DataFrame({"domain": [self.task.domains[i] for i in domain.tolist()], **columns})
        return frame.groupby("domain", sort=False).mean()

    def held_out(self, num: int) -> tuple[Tensor, Tensor]:
        """Give x and y of `num` examples, always the same, that training has not seen (of `Facts` there are no others):
        as many of each domain of the task's held-out part (rounded up), else drawn from a seed of their own."""
        check_positive_int("num", num)
        if not hasattr(self.task, "held_out"):
            return self._batch(num, self._generators(HELD_OUT))
        x, y, *_ = self.task.held_out(math.ceil(num / len(self.task.domains)))
        return x.to(self.device), y.to(self.device)

    def _measure(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, list[Routing]]:
        with held_back() as signals, self._own_random_numbers(), torch.no_grad(), evaluating(self.model):
            with signals.let_through():
                logits, routings = self._forward(x)
                return *token_losses(logits, y), routings

    @property
    def history(self) -> pd.DataFrame:
        """Make a row for each step: the fields of `Record`, with a column for each auxiliary loss, by its name, and for
        the load of each expert: 'load E0', 'load E1', … for one MoE layer, and 'load L0 E0', … for several."""
        columns = [field.name for field in fields(Record)]
        frame = pd.DataFrame([vars(record) for record in self.records], columns=columns)
        parts = [pd.DataFrame(list(frame.pop("auxiliary")), index=frame.index)]
        layers = list(zip(*frame.pop("load")))  # for each layer, a list of the loads at each step
        for i, loads in enumerate(layers):
            layer = f"L{i} " if len(layers) > 1 else ""
            parts.append(pd.DataFrame(list(loads), columns=[f"load {layer}E{e}" for e in range(len(loads[0]))]))
        return pd.concat([frame, *parts], axis=1)

    def state_dict(self) -> dict[str, Any]:
        """Give all that it needs to go on, in tensors and plain values, and the configuration that they are of."""
        if not self.has_checkpoints:
            raise ValueError(f"run must be a Run that a checkpoint can hold, got {type(self).__name__}")
        return {
            "configuration": configuration(self),
            "weights": [weight.detach() for weight in self._weights],
            "last_good": self._last_good,
            "optimizer": {str(i): own for i, p in enumerate(self._parameters) if (own := self.optimizer.state.get(p))},
            "knobs": {name: knob.check(getattr(self.knobs, name)) for name, knob in KNOBS.items()},
            "records": [vars(record) for record in self.records],
            "position": self._position(),
        }

    @held_back()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where a run of the same configuration stood: the next step is the same. ValueError with the name of
        what differs in the configuration, or is not as it must be; this run is then as it was."""
        self._check_state(state)
        copy_into(self._weights, state["weights"])
        copy_into(self._last_good, state["last_good"])
        self.optimizer.state.clear()
        for i, averages in state["optimizer"].items():
            p = self._parameters[int(i)]
            self.optimizer.state[p] = {name: value.to(p.device, copy=True) for name, value in averages.items()}
        for name, value in state["knobs"].items():
            if getattr(self.knobs, name) != value:  # layers that were made with different values keep them
                setattr(self.knobs, name, value)
        self.records = [Record(**record | {"step": i}) for i, record in enumerate(state["records"], start=1)]
        self._return_to(state["position"])

    def _check_state(self, state: Any) -> None:
        own = self.state_dict()
        check_like(state, {name: type(part)() for name, part in own.items()})
        here, there = own["configuration"], state["configuration"]
        for name in here | there:
            if here.get(name) != there.get(name):
                wanted, got = (shorten(str(words.get(name)), 500) for words in (here, there))
                raise ValueError(f"state must be of a run with {shorten(name, 80)} {wanted}, got {got}")
        step = torch.tensor(0.0)
        averages = {str(i): {"step": step, "exp_avg": p, "exp_avg_sq": p} for i, p in enumerate(self._parameters)}
        losses = {knob.loss.__name__: 0.0 for knob in KNOBS.values() if knob.loss}
        record = {field.name: field.type() for field in fields(Record)} | {"auxiliary": losses}
        examples = {
            "optimizer": {i: averages[i] for i in averages if i in state["optimizer"]},
            "records": [record] * len(state["records"]),
            "knobs": {name: 0.0 if state["knobs"].get(name) is not None else None for name in KNOBS},
        }
        check_like(state, own | examples)
        loads = [record["load"] for record in state["records"]]
        for load in loads[:1]:
            check_like(load, [[]] * len(load), "state.load")
            check_like(loads, [[[0.0] * max(len(layer), 1) for layer in load]] * len(loads), "state.load")
        for name, value in state["knobs"].items():
            self.knobs.check(name, value)
        try:
            for position in state["position"]:
                torch.Generator().set_state(position)
        except RuntimeError as error:
            raise ValueError(f"state.position must be of a generator, got {first_line(error)}") from None

    def _position(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._data]

    def _return_to(self, position: list[Tensor]) -> None:
        for generator, state in zip(self._data, position, strict=True):
            generator.set_state(state)

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Have this run's threads inside, and the noise of this step, which follows from its number."""
        cuda = [self.device.index or 0] if self.device.type == "cuda" else []
        with torch.random.fork_rng(cuda), torch_threads(self.threads):
            for generator in (torch.default_generator, *(torch.cuda.default_generators[i] for i in cuda)):
                generator.manual_seed((NOISE * (self.seed + 1) + len(self.records)) % 2**63)
            yield

    def _forward(self, x: Tensor) -> tuple[Tensor, list[Routing]]:
        logits, routings = check_output(self.model(x))
        return logits.to(torch.promote_types(logits.dtype, torch.float32)), routings

    def _generators(self, more: int = 0) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(self.seed + more)]

    def _batch(self, num: int, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        x, y = self.task.batch(num, *generators)
        return x.to(self.device), y.to(self.device)


def lr_scale(step: int, warmup_steps: int = 0, decay_steps: int | None = None) -> float:
    """Give the factor of the learning rate at a step (from 1): it grows evenly over the first warmup_steps; with
    decay_steps it then falls along half a cosine (arXiv:1608.03983, eq. 5), to a tenth at decay_steps, and stays there.
    """
    if step < warmup_steps:
        return step / warmup_steps
    if decay_steps is None:
        return 1.0
    progress = min((step - warmup_steps) / (decay_steps - warmup_steps), 1.0)
    return 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2


def check_output(out: Any) -> tuple[Tensor, list[Routing]]:
    """Return what a model gave if it is logits and a list of routings, else raise ValueError."""
    if isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], list) and isinstance(out[0], Tensor):
        return out
    raise ValueError(f"model must return (logits, [Routing, ...]), got {type(out).__name__}")


def token_losses(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Give the cross entropy (nats) of each token, and whether it is classified correctly: both of the shape of y, or
    of its scored tokens alone, in one dimension."""
    scored = y != NOT_SCORED
    if not scored.all():
        logits, y = logits[scored], y[scored]  # (S, V), (S,)
    losses = F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none")
    return losses.view(y.shape), logits.argmax(dim=-1) == y


@torch.no_grad()
def copy_into(targets: list[Tensor], values: list[Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)


def is_dead(wanted: float | Tensor, num_tokens: int = 1) -> bool | Tensor:
    """Tell which experts (…, E) fewer than `DEAD_SHARE` of the tokens want. wanted: how many do, or which share."""
    return wanted < DEAD_SHARE * num_tokens * (1 - 1e-6)  # a share in float32 may miss the limit by its rounding


def dead_experts(routing: Routing) -> int:
    return int(is_dead(routing.demand_per_expert, routing.num_tokens).sum())


def load_share(routing: Routing) -> Tensor:
    """Give the share of all assignments that each expert was wanted for: (E,), summing to 1."""
    demand = routing.demand_per_expert
    return demand / demand.sum().clamp(min=1)
