"""``python -m moe_lessons sweep NAME``: many runs of small language models, too long for a lesson.

Each finished run is one line of ``data/results/NAME.jsonl``, written before the next one begins: interrupt it when you
like, the same command goes on with what is missing. `analysis.load_results` reads the file.
"""

import argparse
import json
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from tqdm import tqdm

from moe_lessons.analysis import count_parameters, flops_per_token
from moe_lessons.analysis.results import read_runs
from moe_lessons.analysis.timing import cpu_name
from moe_lessons.datafiles import FOLDER
from moe_lessons.nn import SAME_ACTIVE, SAME_TOTAL, LanguageModel, TransformerConfig, dense_twin, seeded
from moe_lessons.tasks import TextTask
from moe_lessons.training import Run, TrainingDiverged

EXPERTS = {f"MoE, E={num_experts}": num_experts for num_experts in (2, 4, 8, 16, 32)}
TWINS = {SAME_ACTIVE: "active", SAME_TOTAL: "total"}  # of the mixture with 8 experts
MODELS = (SAME_ACTIVE, *EXPERTS, SAME_TOTAL)
DOMAINS = ["english", "code", "json", "greek"]  # not those in which chance decides much: arithmetic and brackets
SIZES = {"d_model": 64, "num_layers": 2, "d_ff": 32, "top_k": 2, "max_positions": 64}  # F is that of one expert
SPIKE, BEFORE = 1.5, 20  # a spike: a loss above this many times the mean of so many steps before


@dataclass(frozen=True)
class Sweep:
    """A table of runs, each model at each of its rates from each seed, and the settings that all of them share.

    rates: the learning rates of some of `MODELS`. measurements: of the held-out loss, evenly spread over the steps.
    held_out: sequences. The others: see `Run`.
    """

    rates: Mapping[str, Sequence[float]]
    seeds: range = range(1, 4)
    steps: int = 500
    warmup_steps: int = 50
    decay_steps: int | None = 500
    measurements: int = 20
    batch_size: int = 32
    held_out: int = 384
    router_aux_loss_coef: float = 0.01
    max_grad_norm: float = 1.0

    def table(self) -> list[tuple]:
        """The runs: model, lr, seed. All models from one seed, then from the next: so a busy hour slows all alike."""
        return [(model, lr, seed) for seed in self.seeds for model, rates in self.rates.items() for lr in rates]

    def header(self, name: str) -> dict:
        """The first line of its results file: what all runs have in common."""
        shared = {field: value for field, value in asdict(self).items() if field not in ("rates", "seeds")}
        return {"sweep": name, "domains": DOMAINS, "sizes": SIZES, **shared}


# For each model the rate with the least loss in the sweep 'rates'; a test compares. 0.005 is also the lowest there.
BEST_RATE = dict.fromkeys(MODELS, 0.01) | {"MoE, E=16": 0.005, "MoE, E=32": 0.005}

SWEEPS = {
    # which learning rate is the best for each model, from one seed
    "rates": Sweep(dict.fromkeys(MODELS, (0.005, 0.01, 0.02)), seeds=range(1)),
    # each model at its best rate, from other seeds: the loss on the way
    "capacity": Sweep({model: (rate,) for model, rate in BEST_RATE.items()}),
    # one twin as many seconds, the other as many FLOPs, as the mixture with 8 experts needs for 500 steps
    "seconds": Sweep({SAME_ACTIVE: (0.01,)}, steps=620, decay_steps=620),
    "flops": Sweep({SAME_TOTAL: (0.01,)}, steps=240, decay_steps=240),
    # a short training at low and high rates that stay
    "tolerance": Sweep(
        dict.fromkeys((SAME_ACTIVE, "MoE, E=8", SAME_TOTAL), (0.005, 0.01, 0.02, 0.03, 0.05)),
        seeds=range(3), steps=150, warmup_steps=10, decay_steps=None, measurements=1,
    ),
}  # fmt: skip


def make_model(name: str, seed: int = 0) -> LanguageModel:
    """A model of `MODELS`. A twin is that of the mixture with 8 experts.

    >>> make_model("dense, same active").layers[0].ffn
    FeedForward(d_model=64, d_ff=64, activation='swiglu')
    """
    with seeded(seed):
        model = LanguageModel(TransformerConfig(**SIZES, num_experts=EXPERTS.get(name, 8)))
    return dense_twin(model, TWINS[name], seed) if name in TWINS else model


def train(sweep: Sweep, task: TextTask, model: str, lr: float, seed: int) -> dict:
    """Train one run of a sweep, and return what is stored of it: see data/README.md."""
    options = {name: getattr(sweep, name) for name in ("batch_size", "warmup_steps", "decay_steps", "max_grad_norm")}
    run = Run(make_model(model, seed), task, lr=lr, seed=seed, **options)
    run.knobs.router_aux_loss_coef = sweep.router_aux_loss_coef  # without a mixture it multiplies 0
    times, curve = [], {"step": [], "loss": []}
    with suppress(TrainingDiverged):
        for step in range(1, sweep.steps + 1):
            start = time.process_time()
            run.step()
            times.append(1000 * (time.process_time() - start))  # CPU time: waiting for other programs does not count
            if step % (sweep.steps // sweep.measurements) == 0:
                curve["step"].append(step)
                curve["loss"].append(round(run.evaluate(sweep.held_out)["loss"], 5))
    count, flops = count_parameters(run.model), flops_per_token(run.model, training=True)
    seen = {
        "spikes": count_spikes(run.history.loss),
        "diverged": len(run.records) < sweep.steps,
        "ms_per_step": round(median(times), 2) if times else None,
        "flops_per_step": sweep.batch_size * task.context * flops,
    }
    sizes = {"parameters": count.total, "active": count.active}
    made_with = {"date": date.today().isoformat(), "python": platform.python_version(), "torch": torch.__version__}
    made_with |= {"cpu": cpu_name(), "threads": run.threads}
    return {"model": model, "lr": lr, "seed": seed, **curve, **seen, **sizes, **made_with}


def count_spikes(losses: pd.Series) -> int:
    """How often the loss jumps above `SPIKE` times the mean of the `BEFORE` steps before."""
    return int((losses > SPIKE * losses.rolling(BEFORE).mean().shift()).sum())


def train_missing(name: str, path: Path) -> None:
    """Train what a results file does not have yet of a sweep, and add it. ValueError for a file of other settings."""
    sweep, header = SWEEPS[name], SWEEPS[name].header(name)
    settings, rows, num_whole = read_runs(path) if path.exists() else ({}, [], 0)
    got = {setting: settings.get(setting) for setting in header if settings.get(setting) != header[setting]}
    if settings and got:
        wanted = {setting: header[setting] for setting in got}
        raise ValueError(f"{path} must hold runs with {wanted}, got {got}: move it away, or use --output FOLDER")
    done = {(row["model"], row["lr"], row["seed"]) for row in rows}
    task = TextTask(DOMAINS, context=SIZES["max_positions"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.truncate(num_whole)  # what follows was cut off by an interrupt
        if not settings:
            print(json.dumps(header), file=file, flush=True)
        for run in tqdm([run for run in sweep.table() if run not in done], name, disable=None):  # on a terminal
            row = train(sweep, task, *run)
            print(json.dumps(row), file=file, flush=True)
            tqdm.write(f"{run}: " + ("diverged" if row["diverged"] else f"held-out loss {row['loss'][-1]:.3f}"))
    print(f"{name}: all {len(sweep.table())} runs are in {path}")


def main(argv: Sequence[str] = ()) -> int:
    about = "Train many small language models, and keep what they showed. Interrupt it when you like: it goes on."
    parser = argparse.ArgumentParser("python -m moe_lessons sweep", description=about)
    parser.add_argument("name", choices=SWEEPS, help="what each is for: data/README.md")
    parser.add_argument("--output", type=Path, default=FOLDER / "results", help="default: data/results")
    options = parser.parse_args(argv)
    try:
        train_missing(options.name, options.output / f"{options.name}.jsonl")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\nInterrupted: the runs that are finished are kept, and the same command goes on.")
        return 130
    return 0
