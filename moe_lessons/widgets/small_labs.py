"""The smallest laboratories: a collapse, memorised facts, and a race by the clock."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moe_lessons.analysis.collapse import GRADIENTS, LEARNS, watched_run
from moe_lessons.analysis.counting import flops_per_token
from moe_lessons.nn import evaluating, torch_threads
from moe_lessons.plots.panels.compared import held_out, wall
from moe_lessons.tasks import Facts
from moe_lessons.tasks.facts import NUMBER_DIGITS
from moe_lessons.training import PRESETS, Run, facts_runs, race_runs, step_together
from moe_lessons.training.settings import FACTS_LR
from moe_lessons.widgets.controls import TIPS
from moe_lessons.widgets.laboratory import FEW_PACE, Lab
from moe_lessons.widgets.spec import Spec

READ_EVERY, NUM_READ = 25, 192  # steps of the largest model between two readings of a race, and sequences of one
FEW = 0.05  # of the entries: too few to compare with
WALLS = tuple(partial(wall, place=place) for place in range(3))
BESIDE = "facts known", "loss", "cost"

COLLAPSE_LAB = Spec(
    title="A collapse",
    structural=("learns", "gradient", "seed"),
    stops={"learns": tuple(LEARNS), "gradient": GRADIENTS},
    first_x=25,
)
FACTS_LAB = Spec(
    title="Memorised facts",
    structural=("num_experts", "top_k", "num_entries", "seed"),
    live=("lr",),
    display=("x_axis",),
    stops={"num_experts": (2, 4, 8, 16, 32), "lr": (0.0003, 0.001, 0.002, 0.003, 0.005, 0.01, 0.03)},
    same=("num_entries",),
    first_x=100,
    has_chips=False,
)
RACE_LAB = Spec(title="A race by the clock", structural=("seed",), display=("x_axis",), has_chips=False)


class CollapseLab(Lab):
    """Train `training.PRESETS["collapse"]`, live: by itself 40 steps a second, so that one sees the first ones. Restart
    starts the same run again.

    learns, gradient: of `analysis.collapse.LEARNS` and `GRADIENTS`. play, max_steps: see `LiveRun`. device: see
        `Playground`.

    >>> CollapseLab("router only", gradient="own tokens", seed=3)
    CollapseLab('router only', gradient='own tokens', seed=3)
    """

    pace = FEW_PACE

    def __init__(
        self, learns: str = "all", *, gradient: str = "both terms", seed: int = 0, play: int = 0, max_steps: int = 300,
        device: str = "cpu",
    ):  # fmt: skip
        values = {"learns": learns, "gradient": gradient, "seed": seed, "device": device}
        super().__init__(COLLAPSE_LAB, values, ("film", "load", "loss"), play=play, max_steps=max_steps)

    def make_runs(self, values: Mapping[str, Any]) -> dict[str, Run]:
        chosen = (values[name] for name in ("seed", "learns", "gradient", "device"))
        return {"MoE": watched_run(PRESETS["collapse"], *chosen)}

    def lines(self) -> dict[str, Any]:
        return super().lines() | self.lines_of_load()


class FactsLab(Lab):
    """Train a mixture and its two dense baselines on a phone book (`tasks.Facts`), live. A square of the memorisation
    grid is an entry, in full colour while the model has memorised it. play, max_steps: see `LiveRun`. device: see
    `Playground`.

    >>> FactsLab(8, num_entries=500, seed=3)
    FactsLab(8, num_entries=500, seed=3)
    """

    def __init__(
        self, num_experts: int = 16, top_k: int = 2, num_entries: int = 400, *, seed: int = 0, lr: float = FACTS_LR,
        play: int = 0, max_steps: int = 300, device: str = "cpu",
    ):  # fmt: skip
        values = {"num_experts": num_experts, "top_k": top_k, "num_entries": num_entries, "seed": seed, "lr": lr}
        values["device"] = device
        super().__init__(FACTS_LAB, values, (*WALLS, *BESIDE), play=play, max_steps=max_steps)

    def make_runs(self, values: Mapping[str, Any]) -> dict[str, Run]:
        """See `Lab`. `readings` has after which step each model knew which entries, (N,) by name, and `answers` what
        each answers now, (N, digits)."""
        self.readings: list[tuple[int, dict[str, Tensor]]] = []
        return facts_runs(*(values[name] for name in FACTS_LAB.structural), values["device"])

    def train_one(self) -> None:
        """See `LiveRun`. To read all entries, each N/80 steps, is about a tenth of what the training computes."""
        super().train_one()
        if self.step % steps_between(self.main_run.task.num_entries) == 0:
            self._read()

    def went_back(self) -> None:
        super().went_back()
        self.readings = [reading for reading in self.readings if reading[0] <= self.step]

    def refresh(self) -> None:
        self.functions = [*WALLS[: len(self.runs)], *self.functions[-len(BESIDE) :]]  # both baselines may be one
        if not self.readings or (not self.loop.playing and self.readings[-1][0] != self.step):  # a pause
            self._read()

    @torch_threads(1)
    def _read(self) -> None:
        task = self.main_run.task
        self.answers = {name: answers(run.model, task) for name, run in self.runs.items()}
        digits = task.tokens[:, -NUMBER_DIGITS:]
        self.readings.append((self.step, {name: (said == digits).all(dim=1) for name, said in self.answers.items()}))

    def words(self) -> str:
        step, known = self.readings[-1]
        counts = {name: int(each.sum()) for name, each in known.items()}
        flops = {name: flops_per_token(run.model) for name, run in self.runs.items()}
        (mixture, own), (first, other), *_ = counts.items()
        said = [
            TIPS["facts"]["other"].format(name=name, count=f"{count:,}", times=f"{flops[name] / flops[mixture]:.2g}")
            for name, count in counts.items()
            if name != mixture
        ]
        entries = self.main_run.task.num_entries
        facts = {"mixture": f"{own:,}", "entries": f"{entries:,}", "others": "; ".join(said)}
        found = TIPS["facts"]["known"].format(step=step, **facts)
        if other < FEW * entries:
            return found
        times = f"{own / other:.2g} times as many as" if own > 1.1 * other else "about as many as"
        times = times if own > 0.9 * other else "fewer than"
        return f"{found} {TIPS['facts']['compared'].format(times=times, name=first)}"

    def sentence(self) -> str:
        return self.words()


@torch.no_grad()
def answers(model: nn.Module, task: Facts) -> Tensor:
    """Give what a model answers for each entry, (N, digits): each digit after the right ones, as `Facts.known` does."""
    device = next(model.parameters()).device
    with evaluating(model):
        said = [model(x.to(device))[0].argmax(dim=-1).cpu() for x in task.x.split(256)]
    return torch.cat(said)[:, -NUMBER_DIGITS:]


def steps_between(num_entries: int) -> int:
    """Say after how many steps all entries are read again."""
    return max(num_entries // 80, 5)


class RaceLab(Lab):
    """Train a mixture and its two dense baselines on source code for the same time, live, in turns. Each has its own
    clock, which counts the processor's seconds in its steps alone. play, max_steps: steps of the largest model, see
    `LiveRun`. device: see `Playground`.

    >>> RaceLab(3)
    RaceLab(3)
    """

    def __init__(self, seed: int = 0, *, play: int = 0, max_steps: int = 300, device: str = "cpu"):
        values = {"seed": seed, "device": device, "x_axis": "seconds"}
        panels = held_out, partial(held_out, x_axis="FLOPs")
        super().__init__(RACE_LAB, values, panels, play=play, max_steps=max_steps, columns=2)

    def make_runs(self, values: Mapping[str, Any]) -> dict[str, Run]:
        """See `Lab`. `clocks` has the seconds of each model, `readings` its steps, seconds and held-out losses."""
        runs = race_runs(values["seed"], values["device"])
        self.clocks = dict.fromkeys(runs, 0.0)
        self.readings: dict[str, list[tuple[int, float, float]]] = {name: [] for name in runs}
        return runs

    def train_one(self) -> None:
        """Train the largest model by one step, and each other one until it has taken as long."""
        *others, largest = self.runs
        self._train(largest)
        for name in others:
            while self.clocks[name] < self.clocks[largest]:
                self._train(name)
        if self.step % READ_EVERY == 0:
            self._read()

    def _train(self, name: str) -> None:
        clock = time.thread_time if self.state.values["device"] == "cpu" else time.perf_counter
        start = clock()
        step_together([self.runs[name]])
        self.clocks[name] += clock() - start

    def _read(self) -> None:
        for name, run in self.runs.items():
            self.readings[name].append((len(run.records), self.clocks[name], run.evaluate(NUM_READ)["loss"]))

    def words(self) -> str:
        return f"Each model has trained for as long as {list(self.runs)[-1]} needs for {self.step:,} steps."
