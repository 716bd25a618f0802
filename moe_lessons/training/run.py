"""A run: one model, one task, one optimizer, one step at a time."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from moe_lessons.nn import Routing, is_moe
from moe_lessons.nn.seeding import evaluating, torch_threads
from moe_lessons.support.errors import check_count, check_number, check_positive_int, check_seed
from moe_lessons.support.interrupts import held_back
from moe_lessons.training.knobs import KNOBS, Knobs
from moe_lessons.training.record import Record, gathered, is_dead, load_share, scored_mean, table, token_losses
from moe_lessons.training.state import check_state, configuration

HELD_OUT, NOISE = 1_000_003, 2_000_003  # parts of their seeds: neither has the random numbers of the data


class TrainingDiverged(RuntimeError):
    """The loss or a gradient is no longer finite."""


@dataclass(frozen=True)
class Snapshot:
    """All that the steps of a run change: `Run.restore` goes back to it. Knobs are not among it."""

    weights: list[Tensor]  # parameters and buffers
    averages: list[dict[str, Tensor]]  # AdamW's, for each parameter; none before its first update
    random: list[Tensor]  # the states of the generators that the data come from
    num_records: int


@dataclass(frozen=True)
class Computed:
    """A step before its update. shown: what it shows, on the run's device. norm: of all its gradients."""

    routings: list[Routing]
    norm: Tensor
    shown: dict[str, Tensor]
    seconds: float


class Run:
    """The training of `model` on `task` with AdamW (arXiv:1711.05101) without decay, one `step()` at a time.

    model: maps a batch x to (logits, routings), one `Routing` for each of its MoE layers. Its device is the run's.
    task: has `batch(num, generator) -> (x, y)`, y the correct classes, or -100 where nothing is scored. One that keeps
        a part of its data to measure on has `held_out(num_per_domain) -> (x, y, domain)` and `domains` too.
    seed: of the data and of the noise. The same seed gives the same numbers on the same machine: a run computes with
        one thread and (on a CPU or with CUDA) random numbers of its own, whatever goes on around it.
    warmup_steps, decay_steps: see `lr_scale`. max_grad_norm: a gradient of a larger norm is scaled down to it.

    `knobs` may change between steps; `records` and `history` hold every step so far. `after_backward` and `after_step`
    are lists of functions (run, routings), called when a step has its gradients, and when its update is done.

    A step that raises has not happened, unless it is an interrupt that comes while `step` returns. Where the loss or a
    gradient is not finite, `step()` raises `TrainingDiverged`, and the step before it, whose update was too large, is
    taken back as well: with a lower rate training can go on.

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
        self.warmup_steps = check_count("warmup_steps", warmup_steps)
        if decay_steps is not None and check_positive_int("decay_steps", decay_steps) <= warmup_steps:
            raise ValueError(f"decay_steps must be above warmup_steps ({warmup_steps}), got {decay_steps}")
        if max_grad_norm is not None:
            check_number("max_grad_norm", max_grad_norm, above=True)
        self.decay_steps, self.max_grad_norm = decay_steps, max_grad_norm
        self.model, self.task = model, task
        self.device = next(model.parameters()).device
        self._parameters = list(model.parameters())
        # fused: twice as fast as foreach at every size of the lessons
        self.optimizer = torch.optim.AdamW(self._parameters, lr=lr, weight_decay=0.0, fused=True)
        self.records: list[Record] = []
        mixtures = [module for module in model.modules() if is_moe(module)]
        self.num_experts = [moe.num_experts for moe in mixtures]  # E of each MoE layer
        self.routers = [getattr(moe, "router", None) for moe in mixtures]
        self.after_backward: list[Callable[[Run, list[Routing]], None]] = []
        self.after_step: list[Callable[[Run, list[Routing]], None]] = [update_routers]
        self.generators = self.make_generators()
        self.before = self.snapshot()  # where the last step began
        self._spare: Snapshot | None = None  # memory for the next one: large models would wait for it

    def step(self) -> Record:
        """Train on one fresh batch and return what it showed. An interrupt before the update raises at once; one
        during it waits until the step is done, which is then undone. One that comes while this returns, when all is
        done, raises too, and the step stays, with its record."""
        step_together([self])
        return self.records[-1]

    def snapshot(self, spare: Snapshot | None = None) -> Snapshot:
        """Copy what a step changes, into the memory of a snapshot that is no longer needed where one is given."""
        weights = [weight.detach() for weight in self._weights()]
        averages = [self.optimizer.state.get(p, {}) for p in self._parameters]
        if spare is None or [len(average) for average in spare.averages] != [len(average) for average in averages]:
            weights = [weight.clone() for weight in weights]
            averages = [{name: value.clone() for name, value in average.items()} for average in averages]
        else:
            for kept, weight in zip(spare.weights, weights, strict=True):
                kept.copy_(weight)
            for kept, average in zip(spare.averages, averages, strict=True):
                for name, value in average.items():
                    kept[name].copy_(value)
            weights, averages = spare.weights, spare.averages
        return Snapshot(weights, averages, [g.get_state() for g in self.generators], len(self.records))

    @held_back()
    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Go back to where a snapshot of this run was made: the records after it are gone, the knobs stay."""
        for weight, kept in zip(self._weights(), snapshot.weights, strict=True):
            weight.copy_(kept)
        self.optimizer.zero_grad()
        self.optimizer.state.clear()
        for p, averages in zip(self._parameters, snapshot.averages, strict=True):
            if averages:
                self.optimizer.state[p] = {name: value.clone() for name, value in averages.items()}
        for generator, state in zip(self.generators, snapshot.random, strict=True):
            generator.set_state(state)
        del self.records[snapshot.num_records :]

    def take_back(self) -> None:
        """Undo the last step, once."""
        self.restore(self.before)

    def compute(self) -> Computed:
        """Compute all of a step but the update: no weight changes, and a GPU is not waited for."""
        start = time.perf_counter()
        if not self.model.training:
            self.model.train()
        x, y = self.draw(self.batch_size, self.generators)
        try:
            logits, routings = self._forward(x)
        except Exception as error:  # the model itself may refuse what is not finite
            if all(weight.isfinite().all() for weight in self._parameters):
                raise
            self._diverge(str(error))
        losses, correct = token_losses(logits, y)
        total, auxiliary = scored_mean(losses, y), {}
        for name, knob in KNOBS.items():
            if knob.auxiliary_loss:
                zero = torch.zeros((), device=self.device)
                auxiliary[name] = value = sum(map(knob.auxiliary_loss, routings), start=zero)
                if (weight := getattr(self.knobs, name)) > 0:  # what weighs nothing costs no backward
                    total = total + weight * value
        self.optimizer.zero_grad()
        total.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        shown = self.measures(losses.detach(), correct, y, routings) | auxiliary | {"total": total, "norm": norm}
        return Computed(routings, norm, shown, time.perf_counter() - start)

    def check_finite(self, numbers: dict[str, np.ndarray]) -> None:
        """Raise `TrainingDiverged` where the loss or a gradient of the step that was computed is not finite."""
        if not math.isfinite(numbers["total"]):
            self._diverge(f"the loss is {numbers['total']}")
        if not math.isfinite(numbers["norm"]):
            self._diverge("a gradient is not finite")

    def update(self, computed: Computed, numbers: dict[str, np.ndarray], waited: float) -> None:
        """Change the weights after a step was computed, and record it. waited: seconds for its numbers."""
        start = time.perf_counter()
        with self._own_random_numbers():
            for hook in self.after_backward:
                hook(self, computed.routings)
            if self.max_grad_norm is not None:
                nn.utils.clip_grads_with_norm_(self._parameters, self.max_grad_norm, computed.norm)
            for group in self.optimizer.param_groups:
                group["lr"] = self._lr()
            self.optimizer.step()
            for hook in self.after_step:
                hook(self, computed.routings)
        seconds = computed.seconds + waited + time.perf_counter() - start
        self.records.append(self.make_record(numbers, computed.routings, 1000 * seconds))

    def _diverge(self, why: str) -> None:
        raise TrainingDiverged(
            f"training stopped after step {len(self.records)}: {why}"
            f"; the last step is taken back, lower the learning rate (now {self.knobs.lr:g}) to go on"
        )

    def measures(self, losses: Tensor, correct: Tensor, y: Tensor, routings: list[Routing]) -> dict[str, Tensor]:
        """Measure what a record says of a batch, on the device of the run. A subclass may measure something else."""
        dead = [is_dead(routing.demand_per_expert, routing.num_tokens).sum() for routing in routings]
        return {
            "loss": scored_mean(losses, y),
            "accuracy": scored_mean(correct, y),
            "dead": sum(dead, start=torch.zeros((), device=self.device)),
            **{f"load {i}": load_share(routing) for i, routing in enumerate(routings)},
        }

    def make_record(self, numbers: dict[str, np.ndarray], routings: list[Routing], ms_per_step: float) -> Record:
        """Make the record of the step that was just computed, of what was measured. A subclass may say more."""
        wanted = sum(routing.dropped + len(routing.expert_idx) for routing in routings)
        return Record(
            step=len(self.records) + 1,
            loss=float(numbers["loss"]),
            accuracy=float(numbers["accuracy"]),
            auxiliary={
                knob.auxiliary_loss.__name__: float(numbers[name])
                for name, knob in KNOBS.items()
                if knob.auxiliary_loss
            },
            load=[numbers[f"load {i}"].tolist() for i in range(len(routings))],
            dead_experts=int(numbers["dead"]),
            dropped_share=sum(routing.dropped for routing in routings) / max(wanted, 1),
            lr=self._lr(),
            ms_per_step=ms_per_step,
        )

    def _lr(self) -> float:
        return self.knobs.lr * lr_scale(len(self.records) + 1, self.warmup_steps, self.decay_steps)

    def evaluate(self, num: int = 1024) -> dict[str, float]:
        """Measure loss and accuracy on `held_out` examples, in eval mode: no noise."""
        x, y = self.held_out(num)
        losses, correct, _ = self.measure(x, y)
        (numbers,) = gathered({"loss": scored_mean(losses, y), "accuracy": scored_mean(correct, y)})
        return {name: float(value) for name, value in numbers.items()}

    def measure(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, list[Routing]]:
        """Give the `token_losses` of x and y, and the routings, in eval mode."""
        with held_back() as signals, self._own_random_numbers(), torch.no_grad(), evaluating(self.model):
            with signals.let_through():
                logits, routings = self._forward(x)
                return *token_losses(logits, y), routings

    def held_out(self, num: int) -> tuple[Tensor, Tensor]:
        """Give x and y of `num` examples, always the same, that training has not seen (of `Facts` there are no others):
        as many of each domain of the task's held-out part (rounded up), else drawn from a seed of their own."""
        check_positive_int("num", num)
        if not hasattr(self.task, "held_out"):
            return self.draw(num, self.make_generators(HELD_OUT))
        x, y, *_ = self.task.held_out(math.ceil(num / len(self.task.domains)))
        return x.to(self.device), y.to(self.device)

    @property
    def history(self) -> pd.DataFrame:
        """The records as a table, see `record.table`."""
        return table(self.records)

    def state_dict(self) -> dict[str, Any]:
        """Give all that it needs to go on: tensors and plain values, and the configuration that they are of. The
        tensors are those of the run, and change with it; `torch.save` writes them to a file as they are."""
        if type(self) is not Run:  # a subclass may keep more
            raise ValueError(f"run must be a Run itself to give its state, got a {type(self).__name__}")
        tensors = {f"model.{name}": weight for name, weight in self.model.named_parameters()}
        tensors |= {f"model.{name}": buffer for name, buffer in self.model.named_buffers()}
        for name, p in self.model.named_parameters():
            start = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            averages = self.optimizer.state.get(p) or start
            tensors |= {f"optimizer.{name}.{key}": value for key, value in averages.items()}
        tensors |= {f"random.{i}": generator.get_state() for i, generator in enumerate(self.generators)}
        return {
            "configuration": configuration(self),
            "tensors": {name: tensor.detach() for name, tensor in tensors.items()},
            "knobs": {name: knob.check(getattr(self.knobs, name)) for name, knob in KNOBS.items()},
            "records": [vars(record) for record in self.records],
        }

    @held_back()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where a run of the same configuration stood: the next step is the same. ValueError with the name of
        what differs in the configuration, or is not as it must be; this run is then as it was."""
        (self.records, knobs), tensors = check_state(self, state), state["tensors"]
        averages = [
            {key: tensors[f"optimizer.{name}.{key}"].to(p.device) for key in ("step", "exp_avg", "exp_avg_sq")}
            for name, p in self.model.named_parameters()
        ]
        names = [*dict(self.model.named_parameters()), *dict(self.model.named_buffers())]
        weights = [tensors[f"model.{name}"] for name in names]
        random = [tensors[f"random.{i}"] for i in range(len(self.generators))]
        self.restore(Snapshot(weights, averages, random, len(self.records)))
        for name, value in knobs.items():
            if getattr(self.knobs, name) != value:  # layers that were made with different values keep them
                setattr(self.knobs, name, value)
        self.before = self.snapshot()

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Have one thread inside, and the noise of this step, which follows from its number."""
        cuda = [self.device.index or 0] if self.device.type == "cuda" else []
        with torch.random.fork_rng(cuda), torch_threads(1):
            for generator in (torch.default_generator, *(torch.cuda.default_generators[i] for i in cuda)):
                generator.manual_seed(NOISE * (self.seed + 1) + len(self.records))
            yield

    def _weights(self) -> list[Tensor]:
        return [*self._parameters, *self.model.buffers()]

    def _forward(self, x: Tensor) -> tuple[Tensor, list[Routing]]:
        logits, routings = check_output(self.model(x))
        return logits.to(torch.promote_types(logits.dtype, torch.float32)), routings

    def make_generators(self, more: int = 0) -> list[torch.Generator]:
        """Make what the data are drawn with: a generator for each seed, which `more` is added to."""
        return [torch.Generator().manual_seed(self.seed + more)]

    def draw(self, num: int, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Draw a batch of `num` examples, and bring it to the device of the run."""
        x, y = self.task.batch(num, *generators)
        return x.to(self.device), y.to(self.device)


def update_routers(run: Run, routings: list[Routing]) -> None:
    """Move what knobs move by an update after each step, such as the bias of a sigmoid router."""
    for name, knob in KNOBS.items():
        value = getattr(run.knobs, name)
        if knob.update and value > 0:
            for router, routing in zip(run.routers, routings, strict=True):
                if knob.needs(router):
                    knob.update(router, routing, value)


def step_together(runs: Iterable[Run], between: Callable[[], None] = lambda: None) -> None:
    """Train each of several runs by one step, or none: where one fails, or an interrupt comes, all are as they were, or
    all one step further if it comes while this returns. Where one diverges, the last step of each is taken back as
    well: the others may be about to. `between` is called between two of them. A GPU is waited for once for all."""
    runs = list(runs)
    with held_back() as signals:
        snapshots = [run.snapshot(run._spare) for run in runs]
        try:
            computed = []
            for run in runs:
                if computed:
                    with signals.let_through():
                        between()
                with run._own_random_numbers(), torch.enable_grad(), signals.let_through():  # whose ends are held back
                    computed.append(run.compute())
            start = time.perf_counter()
            all_numbers = gathered(*(each.shown for each in computed))
            waited = (time.perf_counter() - start) / len(runs)
            for run, numbers in zip(runs, all_numbers, strict=True):
                run.check_finite(numbers)
            for run, each, numbers in zip(runs, computed, all_numbers, strict=True):
                run.update(each, numbers, waited)
            with signals.let_through():
                pass  # those that wait
        except TrainingDiverged:
            for run in runs:
                run.take_back()
            raise
        except BaseException:
            for run, snapshot in zip(runs, snapshots, strict=True):
                run.restore(snapshot)
            raise
        for run, snapshot in zip(runs, snapshots, strict=True):
            run.before, run._spare = snapshot, run.before


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
