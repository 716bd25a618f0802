"""``python -m moe_lessons sweep NAME``: many runs of small language models, too long for a lesson.

A sweep is a table (which model, at which learning rate, from which seed) and the settings that all its runs share.
Each finished run is one line in ``data/results/NAME.jsonl``, on the disk before the next one begins: after an
interrupt, the same command goes on with what is missing. `analysis.results.load_results` reads the file.
"""

import argparse
import functools
import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import TextIO

import torch
from tqdm import tqdm

from moe_lessons.analysis import count_parameters, flops_per_token
from moe_lessons.analysis.results import read_runs
from moe_lessons.analysis.timing import cpu_name
from moe_lessons.datafiles import data_path
from moe_lessons.errors import check_choice, check_positive_int
from moe_lessons.nn import LanguageModel, TransformerConfig, dense_twin, seeded
from moe_lessons.tasks import TextTask
from moe_lessons.training import Run, TrainingDiverged

DENSE_ACTIVE, DENSE_TOTAL = "dense, same active", "dense, same total"
MOE = {f"MoE, E={num_experts}": num_experts for num_experts in (2, 4, 8, 16, 32)}
TWINS = {DENSE_ACTIVE: "active", DENSE_TOTAL: "total"}  # of the mixture with 8 experts
MODELS = (DENSE_ACTIVE, *MOE, DENSE_TOTAL)
DOMAINS = ["english", "code", "json", "greek"]  # not those in which chance decides much: arithmetic and brackets
SIZES = {"d_model": 64, "num_layers": 2, "d_ff": 32, "top_k": 2, "max_positions": 64}  # F is that of one expert
DESCRIPTION = """Train many small language models, one after the other, and keep what they showed in data/results.
Each finished run is kept at once: interrupt when you like, the same command goes on."""
SPIKE, BEFORE = 1.5, 20  # a spike: a loss above this many times the mean of so many steps before


@dataclass(frozen=True)
class Settings:
    """What all runs of a sweep share, beside `SIZES`. The learning rate and its schedule: see `Run`."""

    steps: int
    warmup_steps: int
    decay_steps: int | None
    measurements: int  # of the held-out loss, evenly spread over the steps, the last one at the end
    batch_size: int = 32
    held_out: int = 384  # sequences
    router_aux_loss_coef: float = 0.01
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class Sweep:
    """about: one line. rates: for each model (of `MODELS`), its learning rates. seeds: of every model and rate."""

    about: str
    settings: Settings
    rates: Mapping[str, Sequence[float]]
    seeds: range

    def table(self, num_seeds: int | None = None) -> list[dict]:
        """The runs, from the first `num_seeds` seeds. All models with one seed, then all with the next: a time in which
        the machine is busy does not meet one model alone."""
        seeds = self.seeds if num_seeds is None else range(self.seeds.start, self.seeds.start + num_seeds)
        pairs = [(model, lr) for model, rates in self.rates.items() for lr in rates]
        return [{"model": model, "lr": lr, "seed": seed} for seed in seeds for model, lr in pairs]


LONG = Settings(steps=500, warmup_steps=50, decay_steps=500, measurements=20)
# For each model the rate with the least loss in the sweep 'rates'; a test compares. 0.005 is also the lowest there.
BEST_RATE = dict.fromkeys(MODELS, 0.01) | {"MoE, E=16": 0.005, "MoE, E=32": 0.005}

SWEEPS = {
    "rates": Sweep(
        "which learning rate is the best for each model, from one seed",
        LONG,
        dict.fromkeys(MODELS, (0.005, 0.01, 0.02)),
        range(1),
    ),
    "capacity": Sweep(
        "each model at its best rate, from other seeds: the loss on the way",
        LONG,
        {model: (BEST_RATE[model],) for model in MODELS},
        range(1, 4),
    ),
    "seconds": Sweep(
        "the twin of equal active size, trained as many seconds as the mixture with 8 experts needs for 500 steps",
        replace(LONG, steps=620, decay_steps=620),
        {DENSE_ACTIVE: (BEST_RATE[DENSE_ACTIVE],)},
        range(1, 4),
    ),
    "flops": Sweep(
        "the twin of equal total size, trained with as many FLOPs as the mixture with 8 experts needs for 500 steps",
        replace(LONG, steps=240, decay_steps=240),
        {DENSE_TOTAL: (BEST_RATE[DENSE_TOTAL],)},
        range(1, 4),
    ),
    "tolerance": Sweep(
        "the loss after a short training at low and high rates that stay",
        Settings(steps=150, warmup_steps=10, decay_steps=None, measurements=1),
        dict.fromkeys((DENSE_ACTIVE, "MoE, E=8", DENSE_TOTAL), (0.005, 0.01, 0.02, 0.03, 0.05)),
        range(3),
    ),
}


def make_model(name: str, seed: int = 0) -> LanguageModel:
    """A model of `MODELS`. A twin is that of the mixture with 8 experts.

    >>> make_model("dense, same active").layers[0].ffn
    FeedForward(d_model=64, d_ff=64, activation='swiglu')
    """
    check_choice("model", name, MODELS)
    with seeded(seed):
        model = LanguageModel(TransformerConfig(**SIZES, num_experts=MOE.get(name, 8)))
    return dense_twin(model, TWINS[name], seed) if name in TWINS else model


@functools.cache
def make_task() -> TextTask:
    """The text, in sequences as long as the models take."""
    return TextTask(DOMAINS, context=SIZES["max_positions"])


def make_run(model: str, lr: float, seed: int, settings: Settings = LONG) -> Run:
    """A run of the sweep, not yet trained."""
    schedule = {"warmup_steps": settings.warmup_steps, "decay_steps": settings.decay_steps}
    rest = {"batch_size": settings.batch_size, "max_grad_norm": settings.max_grad_norm}
    run = Run(make_model(model, seed), make_task(), lr=lr, seed=seed, **schedule, **rest)
    run.knobs.router_aux_loss_coef = settings.router_aux_loss_coef  # without a mixture it multiplies 0
    return run


def train(
    model: str, lr: float, seed: int, settings: Settings, after_step: Callable[[], object] = lambda: None
) -> dict:
    """Train one run of a sweep, and return what is stored of it: plain numbers, lists and strings.

    ms_per_step is the median CPU time. With one thread that is what a step takes on a machine that does nothing else;
    time spent waiting for others does not count.
    """
    run = make_run(model, lr, seed, settings)
    every, times, curve = settings.steps // settings.measurements, [], []
    diverged = False
    for step in range(1, settings.steps + 1):
        start = time.process_time()
        try:
            run.step()
        except TrainingDiverged:
            diverged = True
            break
        times.append(1000 * (time.process_time() - start))
        if step % every == 0:
            curve.append((step, round(run.evaluate(settings.held_out)["loss"], 5)))
        after_step()
    count = count_parameters(run.model)
    tokens = settings.batch_size * run.task.context
    return {
        "model": model,
        "lr": lr,
        "seed": seed,
        "step": [step for step, _ in curve],
        "loss": [loss for _, loss in curve],
        "spikes": count_spikes([record.loss for record in run.records]),
        "diverged": diverged,
        "ms_per_step": round(median(times), 2) if times else None,
        "flops_per_step": tokens * flops_per_token(run.model, training=True),
        "parameters": count.total,
        "active": count.active,
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "threads": run.threads,
    }


def count_spikes(losses: Sequence[float]) -> int:
    """How often the loss jumps above `SPIKE` times the mean of the `BEFORE` steps before.

    >>> count_spikes([1.0] * 20 + [1.4, 1.6, 1.0])
    1
    """
    return sum(losses[i] > SPIKE * sum(losses[i - BEFORE : i]) / BEFORE for i in range(BEFORE, len(losses)))


def sweep(name: str, path: Path, seeds: int | None = None, fresh: bool = False) -> int:
    """Train what is missing of a sweep in the results file `path`. Returns how many runs it trained.

    seeds: how many, where not as many as the sweep has. fresh: put a file that is there aside and begin anew.
    Raises ValueError for a file of other settings, which it leaves alone, and when another program changes the file
    meanwhile.
    """
    chosen = SWEEPS[name]
    table = chosen.table(seeds if seeds is None else check_positive_int("seeds", seeds))
    if fresh and path.exists():
        put_aside(path)
    done = begin(path, make_header(name))
    todo = [run for run in table if key(run) not in done]
    print(f"{name}: {len(table)} runs, {len(table) - len(todo)} of them in {path} already")
    if not todo:
        return 0
    with (  # the file first: what cannot be written is better known before the first run than after it
        path.open("a", encoding="utf-8") as file,
        tqdm(total=chosen.settings.steps * len(todo), desc=name, unit=" steps", disable=None) as bar,  # on a terminal
    ):
        for run in todo:
            row = train(**run, settings=chosen.settings, after_step=bar.update)
            if path.stat().st_size != file.tell():
                raise ValueError(f"another program has changed {path}: is the same sweep running twice?")
            write_line(file, row)
            loss = "diverged" if row["diverged"] else f"held-out loss {row['loss'][-1]:.3f}"
            tqdm.write(f"{row['model']}, lr {row['lr']:g}, seed {row['seed']}: {loss}")
    return len(todo)


def make_header(name: str) -> dict:
    """What stands in the first line of a results file: two files with the same belong to the same sweep."""
    return {"sweep": name, "domains": DOMAINS, "sizes": SIZES, **asdict(SWEEPS[name].settings)}


def put_aside(path: Path) -> None:
    """Rename a results file to the first of NAME.old1.jsonl, NAME.old2.jsonl, … that is free: none is ever lost."""
    names = (path.with_suffix(f".old{number}.jsonl") for number in itertools.count(1))
    path.rename(next(name for name in names if not name.exists()))


def begin(path: Path, header: dict) -> set[tuple]:
    """Make the file with its header, or check the one that is there; return the runs that it has."""
    settings, runs, num_whole = read_runs(path) if path.exists() else ({}, [], 0)
    differ = [name for name in header if settings and settings.get(name) != header[name]]
    if differ:
        pairs = ", ".join(f"{name} {settings.get(name)} (not {header[name]})" for name in differ)
        ways = "choose another folder with --output, or put it aside and begin anew with --fresh"
        raise ValueError(f"{path} must hold runs of the sweep's settings, got {pairs}: {ways}")
    if path.exists() and path.stat().st_size > num_whole:
        print(f"{path}: the last line was cut off by an interrupt; that run is trained again")
        os.truncate(path, num_whole)
    if not settings:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            write_line(file, header)
    return {key(run) for run in runs}


def key(run: dict) -> tuple:
    """What tells the runs of a sweep apart."""
    return run["model"], run["lr"], run["seed"]


def write_line(file: TextIO, row: dict) -> None:
    """Write one line, and see it on the disk."""
    file.write(json.dumps(row) + "\n")
    file.flush()
    os.fsync(file.fileno())


def main(argv: Sequence[str] = ()) -> int:
    names = "; ".join(f"{name}: {chosen.about}" for name, chosen in SWEEPS.items())
    parser = argparse.ArgumentParser(prog="python -m moe_lessons sweep", description=DESCRIPTION)
    parser.add_argument("name", nargs="?", choices=SWEEPS, help=names)
    parser.add_argument("--list", action="store_true", help="say which sweeps there are, and how much of each is done")
    parser.add_argument("--seeds", type=int, metavar="N", help="take so many seeds; more can follow later")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: data/results of the course")
    parser.add_argument("--fresh", action="store_true", help="begin anew; a file that is there becomes NAME.old1.jsonl")
    options = parser.parse_args(argv)
    folder = options.output or data_path("README.md").parent / "results"
    if options.name is None and not options.list:
        parser.error(f"name one of {', '.join(SWEEPS)}, or ask with --list what they are")
    try:
        if options.list:
            for name in SWEEPS:
                print(f"{name:10} {progress(name, folder / f'{name}.jsonl')}: {SWEEPS[name].about}")
        else:
            sweep(options.name, folder / f"{options.name}.jsonl", options.seeds, options.fresh)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error} (another place: --output FOLDER)")
    except KeyboardInterrupt:
        print(f"\nInterrupted. {progress(options.name, folder / f'{options.name}.jsonl')}; the same command goes on.")
        return 130
    return 0


def progress(name: str, path: Path) -> str:
    """How many runs of a sweep are in a file, in words."""
    settings, runs, _ = read_runs(path) if path.exists() else ({}, [], 0)
    if settings and settings != make_header(name):
        return f"{path} is of other settings"
    done = {key(run) for run in runs}
    table = SWEEPS[name].table()
    return f"{sum(key(run) in done for run in table)} of {len(table)} runs are stored"
