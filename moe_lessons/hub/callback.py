"""The lens in a `transformers.Trainer`: `LensCallback`. It needs transformers (extra: hf) and accelerate."""

import traceback
import warnings
from collections import defaultdict

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from moe_lessons.analysis import load_statistics
from moe_lessons.hub.routing_lens import Lens
from moe_lessons.support.errors import check_number, check_positive_int
from moe_lessons.training.run import is_dead


class LensCallback(TrainerCallback):
    """Logs how the load lies on the experts of a model in training, and warns when an expert starves.

    every: steps between two lines of `trainer.log`: moe/<layer>/max_over_mean, entropy, dead and load_balancing_loss
        (see `analysis.balance_by_layer`), and moe/pooled_load_balancing_loss, as Hugging Face's own loss sees it. Each
        is of all tokens that this process has trained on since the last line.
    warn_below: in even loads (1 / E of all): an expert with less starves. A warning names it, once until it recovers.
    count_padding: see `Lens`, which is on the model during a training step only.

    `Trainer(model, args, train_dataset=data, callbacks=[LensCallback(every=10)])`"""

    def __init__(self, every: int = 10, warn_below: float = 0.1, count_padding: bool = False):
        self.every, self.warn_below = check_positive_int("every", every), check_number("warn_below", warn_below)
        self.count_padding = count_padding

    def on_train_begin(self, args, state, control, model=None, **_) -> None:
        self.lens, self.tallies = Lens(model, count_padding=self.count_padding), defaultdict(int)
        self.starving: set[tuple[str, int]] = set()
        # a callback is not told of its trainer, which is what calls it
        callers = (frame.f_locals.get("self") for frame, _ in traceback.walk_stack(None))
        self.trainer = next((caller for caller in callers if isinstance(caller, Trainer)), None)
        if self.trainer is None:
            raise ValueError("LensCallback must be called by a transformers.Trainer, got a call from elsewhere")
        vars(self.trainer).pop("training_step", None)  # left by a training that failed
        step = self.trainer.training_step

        def training_step(*args, **kwargs):
            with self.lens:
                loss = step(*args, **kwargs)
            for name, routing in (item for call in self.lens.calls for item in call.items()):
                probs = routing.router_probs.sum(dim=0)
                own = [routing.demand_per_expert.to(probs), probs, torch.full_like(probs, routing.num_tokens)]
                self.tallies[name] = self.tallies[name] + torch.stack(own)  # (3, E)
            return loss

        self.trainer.training_step = training_step

    def on_step_end(self, args, state, control, **_) -> None:
        tallies, logs, load = {name: own for name, own in self.tallies.items() if own[2].any()}, {}, {}
        if state.global_step % self.every or not tallies:
            return
        for name, (demand, probs, tokens) in tallies.items():
            statistics, dead = load_statistics(demand), is_dead(demand / tokens)
            values = {"max_over_mean": statistics.max_over_mean, "entropy": statistics.entropy, "dead": int(dead.sum())}
            values["load_balancing_loss"] = balancing_loss(demand, probs, tokens)
            logs |= {f"moe/{name}/{key}": value for key, value in values.items()}
            even_loads = (demand / demand.mean()).tolist()
            load |= {(name, expert): share for expert, share in enumerate(even_loads)}
        if len({own.shape for own in tallies.values()}) == 1:
            logs["moe/pooled_load_balancing_loss"] = balancing_loss(*sum(tallies.values()))
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


def balancing_loss(demand: Tensor, probs: Tensor, tokens: Tensor) -> float:
    """`load_balancing_loss` of all these tokens: E · Σ f P."""
    return (len(demand) * (demand / demand.sum() * probs / tokens).sum()).item()
