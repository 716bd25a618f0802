"""The lens in a `transformers.Trainer`: `LensCallback`. It needs transformers (extra: hf) and accelerate."""

import sys
import warnings
from collections import defaultdict
from dataclasses import dataclass

from torch import Tensor
from transformers import Trainer, TrainerCallback

from moe_lessons.analysis import load_statistics
from moe_lessons.hub.routing_lens import Lens
from moe_lessons.support.errors import check_number, check_positive_int
from moe_lessons.training.run import is_dead


@dataclass(frozen=True)
class Tally:
    """What is kept of a layer's routings: demand (E,), the sum of its router_probs (E,), and how many tokens it had."""

    demand: Tensor | float = 0.0
    probs: Tensor | float = 0.0
    tokens: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.demand + other.demand, self.probs + other.probs, self.tokens + other.tokens)

    def balancing_loss(self) -> float:
        """`load_balancing_loss` of all these tokens: E · Σ f P."""
        return (len(self.demand) * (self.demand * self.probs).sum() / (self.demand.sum() * self.tokens)).item()


class LensCallback(TrainerCallback):
    """Logs how the load lies on the experts of a model in training, and warns when an expert starves.

    every: after how many steps a line goes to `trainer.log`, and so to `state.log_history` and the trainer's loggers:
        moe/<layer>/max_over_mean, entropy, dead and load_balancing_loss (see `analysis.balance_by_layer`), and
        moe/pooled_load_balancing_loss, which Hugging Face's own loss sees. It is of all tokens since the last line.
    warn_below: in even loads (1 / E of all): an expert with less starves. A warning names it, once until it recovers.
    count_padding: see `Lens`. It counts what training steps compute, each micro-batch once; each process its own.

    The lens is on the model during a training step only: whatever ends the training leaves nothing behind.
    `Trainer(model, args, train_dataset=data, callbacks=[LensCallback(every=10)])`
    """

    def __init__(self, every: int = 10, warn_below: float = 0.1, count_padding: bool = False):
        self.every, self.warn_below = check_positive_int("every", every), check_number("warn_below", warn_below)
        self.count_padding = count_padding

    def on_train_begin(self, args, state, control, model=None, **_) -> None:
        self.lens, self.tallies = Lens(model, count_padding=self.count_padding), defaultdict(Tally)
        self.starving: set[tuple[str, int]] = set()
        self.trainer = calling_trainer()
        vars(self.trainer).pop("training_step", None)  # left by a training that failed
        step = self.trainer.training_step

        def training_step(*args, **kwargs):
            with self.lens:
                loss = step(*args, **kwargs)
            for name, r in ((name, routing) for call in self.lens.calls for name, routing in call.items()):
                self.tallies[name] += Tally(r.demand_per_expert, r.router_probs.sum(dim=0), r.num_tokens)
            return loss

        self.trainer.training_step = training_step

    def on_step_end(self, args, state, control, **_) -> None:
        tallies = {name: tally for name, tally in self.tallies.items() if tally.tokens}
        if state.global_step % self.every or not tallies:
            return
        logs, load = {}, {}
        for name, tally in tallies.items():
            statistics, dead = load_statistics(tally.demand), is_dead(tally.demand / tally.tokens)
            values = {"max_over_mean": statistics.max_over_mean, "entropy": statistics.entropy, "dead": int(dead.sum())}
            values["load_balancing_loss"] = tally.balancing_loss()
            logs |= {f"moe/{name}/{key}": value for key, value in values.items()}
            even_loads = (tally.demand / tally.demand.float().mean()).tolist()
            load |= {(name, expert): share for expert, share in enumerate(even_loads)}
        if len({len(tally.demand) for tally in tallies.values()}) == 1:
            logs["moe/pooled_load_balancing_loss"] = sum(tallies.values(), Tally()).balancing_loss()
        starving = {place for place, share in load.items() if share < self.warn_below}
        if new := sorted(starving - self.starving):
            names = ", ".join(f"E{expert} of {name} ({load[name, expert]:.2g})" for name, expert in new)
            since = f"of the even load in the {self.every} steps up to {state.global_step}"
            warnings.warn(f"experts starve, with less than {self.warn_below:g} {since}: {names}", stacklevel=2)
        self.starving = starving
        self.tallies.clear()
        should_log = control.should_log  # `log` says that it is done
        self.trainer.log(logs)
        control.should_log = should_log

    def on_train_end(self, args, state, control, **_) -> None:
        vars(self.trainer).pop("training_step", None)


def calling_trainer() -> Trainer:
    """The Trainer whose callback runs. Callbacks are not told of it, but it is what calls them."""
    frame = sys._getframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), Trainer):
        frame = frame.f_back
    if frame is None:
        raise ValueError("LensCallback must be called by a transformers.Trainer, got a call from elsewhere")
    return frame.f_locals["self"]
