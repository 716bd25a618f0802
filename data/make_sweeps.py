"""``python data/make_sweeps.py NAME``: train the many small language models of data/results, for lessons to compare.

Each finished run is at once a line of ``data/results/NAME.jsonl``; what is missing is trained the next time. Its losses
do not depend on where it is trained (in this process, in several, on a dask cluster), its times do.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import date
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from statistics import median

import numpy as np
import torch
from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from moe_lessons.analysis import count_parameters, flops_per_token
from moe_lessons.analysis.results import POINTS, read_runs
from moe_lessons.analysis.timing import cpu_name
from moe_lessons.nn import (
    LanguageModel,
    TransformerConfig,
    dense_baseline,
    dense_name,
    is_moe,
)
from moe_lessons.nn.baselines import dense_width
from moe_lessons.nn.seeding import seeded, torch_threads
from moe_lessons.support.data import FOLDER
from moe_lessons.support.errors import check_choice, check_positive_int
from moe_lessons.support.files import write_rows
from moe_lessons.tasks import Facts, TextTask
from moe_lessons.training import Run, TrainingDiverged, settings
from moe_lessons.training.record import is_dead


@dataclass(frozen=True)
class Study:
    """A task, and the models that learn it."""

    task: dict  # the arguments of a `TextTask`, but for its context, or of `Facts`
    sizes: dict  # of a `TransformerConfig`; d_ff (F) is that of one expert
    num_experts: int = 8  # of the mixture that the dense baselines and the variants are of
    variants: Mapping[str, dict] = field(default_factory=dict)  # other mixtures, by what is not as in `sizes`
    baselines: Mapping[str, str] = field(default_factory=dict)  # dense models that start as `dense_baseline` has them

    @cached_property
    def text(self) -> TextTask:
        return TextTask(**self.task, context=self.sizes["max_positions"])

    def make_task(self, seed: int) -> TextTask | Facts:
        """Make what is learned: one text for all seeds, but for each seed its own facts."""
        return Facts(**self.task, seed=seed) if "num_entries" in self.task else self.text

    def make_model(self, name: str, seed: int = 0) -> LanguageModel:
        """Make a model by its name: 'MoE', 'MoE, E=8', 'dense, 4×' (see `dense_name`) or one of the variants."""
        own = {"num_experts": int(name.partition("=")[2] or self.num_experts)} | self.variants.get(name, {})
        if (width := dense_width(name)) > 0 and name not in self.baselines:
            own = {"d_ff": round(width * self.sizes["top_k"] * self.sizes["d_ff"]), "moe_layers": ()}
        with seeded(seed):
            model = LanguageModel(TransformerConfig(**self.sizes | own))
        match = self.baselines.get(name)
        return dense_baseline(model, match, seed) if match else model


TEXT = Study(
    {"domains": ["english", "code", "json", "greek"]},  # not those in which chance decides much
    {"d_model": 64, "num_layers": 2, "d_ff": 32, "top_k": 2, "max_positions": 64},
    baselines={dense_name(1): "flops", dense_name(4): "params"},
)
FACTS_SIZES = ("d_model", "num_layers", "num_heads", "num_kv_heads", "d_ff", "top_k", "max_positions", "vocab_size")
FACTS = Study(
    {"num_entries": 2000}, {n: getattr(settings.FACTS_CONFIG, n) for n in FACTS_SIZES}, num_experts=16,
    baselines={dense_name(1): "flops", dense_name(8): "params"},
)  # fmt: skip
LARGE_BOOK = replace(FACTS, task={"num_entries": 8000})  # more than the smallest model can hold
# Text that comes with Python, for the pair of models of the course: 16 experts, 2 of them for a token
REAL_SIZES = {"d_model": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4, "d_ff": 64, "top_k": 2}
CONTROLS = {"frozen router": {"router": "frozen"}, "hash routing": {"router": "hash"}, "no auxiliary loss": {}}
SOURCE, PROSE = (
    Study({"domains": [text]}, REAL_SIZES | {"max_positions": 64}, num_experts=16, variants=CONTROLS)
    for text in ("source", "prose")
)

# mixtures of 8 experts on real text, of equal active size, with and without a loss that balances
UNEVEN = {"top-1": {"top_k": 1, "d_ff": 128}, "top-2": {}}
UNEVEN |= {f"{name}, auxiliary loss": own for name, own in UNEVEN.items()}
COLLAPSE = replace(SOURCE, sizes=SOURCE.sizes | {"num_layers": 3}, num_experts=8, variants=UNEVEN)

NOT_SHARED = ("rates", "study", "seeds", "keeps_dead")  # fields of a `Sweep` that its header lacks
run_of = itemgetter("model", "lr", "seed")  # of a stored row
SPIKE, BEFORE = 1.5, 20  # a spike: a loss above this many times the mean of so many steps before
# knobs in the place of the auxiliary loss
BALANCED_BY = dict.fromkeys(["no auxiliary loss", *CONTROLS, "top-1", "top-2"], {})


@dataclass(frozen=True)
class Sweep:
    """A table of runs, each model at each of its rates from each seed, and what all of them share (see `Run`)."""

    study: Study
    rates: Mapping[str, Sequence[float]]  # learning rates of some models of the `study`
    seeds: Sequence[int] = (1, 2, 3)
    steps: int = 500
    warmup_steps: int = 50
    decay_steps: int | None = 500
    measurements: int = 20  # of the held-out loss, or of the facts that are known, evenly spread over the steps
    batch_size: int = 32
    held_out: int = 384  # sequences
    router_aux_loss_coef: float = 0.01  # but for the models in BALANCED_BY
    max_grad_norm: float = 1.0
    keeps_dead: bool = False  # whether it is kept which experts of each layer are dead, by the BEFORE last steps

    def table(self) -> list[tuple]:
        """List the runs (model, lr, seed), seed by seed: a busy hour slows all models alike."""
        return [(model, lr, seed) for seed in self.seeds for model, rates in self.rates.items() for lr in rates]

    def header(self, name: str) -> dict:
        """Make the first line of its results file: what all runs have in common."""
        shared = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in NOT_SHARED}
        return {"sweep": name, **self.study.task, "sizes": self.study.sizes, **shared}

    def of(self, steps: int, **own) -> "Sweep":
        """Make the same with so many steps, at whose end the rate ends."""
        return replace(self, steps=steps, decay_steps=steps, **own)


MIXTURES = [f"MoE, E={E}" for E in (4, 8, 16, 32)]
OF_TEXT = ["dense, 1×", "MoE, E=2", *MIXTURES, "dense, 1.5×", "dense, 2×", "dense, 4×"]
BEST = dict.fromkeys(OF_TEXT, (0.01,)) | dict.fromkeys(MIXTURES[2:], (0.005,))
FACT_RATES = (0.0015, 0.003, 0.006, 0.012)


def of_facts(study: Study, models: Sequence[str], *rates: float, **own) -> Sweep:
    common = {"warmup_steps": 20, "measurements": 10, "batch_size": 256}
    return Sweep(study, dict.fromkeys(models, rates), **common | own)


def of_book(study: Study, rate: float) -> Sweep:
    return of_facts(study, [*map(dense_name, (1, 2, 3, 4, 6, 8)), *MIXTURES], rate)


def of_real_text(study: Study, rates: Mapping[str, Sequence[float]], **own) -> Sweep:
    """Train at one rate to the end: what is measured on the way is what a run of so many steps reaches."""
    common = {"steps": 4000, "decay_steps": None, "measurements": 16, "batch_size": 16, "held_out": 300}
    return Sweep(study, rates, **common | own)


OF_REAL_TEXT = [*map(dense_name, (1, 2, 4, 8)), *MIXTURES, "frozen router", "hash routing"]
# the best of the three that "source_rates" and "prose_rates" tried, after 1,000 steps; no loss: as with it
PROSE_RATES = dict.fromkeys([*OF_REAL_TEXT, "no auxiliary loss"], (0.0015,)) | {"hash routing": (0.006,)}
PROSE_RATES |= dict.fromkeys(["dense, 1×", "dense, 2×", "dense, 4×", "MoE, E=4", "MoE, E=32"], (0.003,))
REAL_RATES = dict.fromkeys(OF_REAL_TEXT, (0.003,))
REAL_RATES |= dict.fromkeys(["dense, 4×", "dense, 8×", "MoE, E=16", "MoE, E=32", "no auxiliary loss"], (0.0015,))
# the second best of those that "source_rates" tried
OTHER_RATES = {
    name: ({0.0015: 0.003, 0.003: 0.0015}[REAL_RATES[name][0]],) for name in (*OF_REAL_TEXT[:4], "MoE, E=16")
}
# what each is for: data/README.md
SWEEPS = {
    "capacity": Sweep(TEXT, BEST),
    "tolerance": Sweep(
        TEXT, dict.fromkeys(["dense, 1×", "MoE, E=8", "dense, 4×"], (0.005, 0.01, 0.02, 0.03, 0.05)),
        seeds=(0, 1, 2), steps=150, warmup_steps=10, decay_steps=None, measurements=1,
    ),
    "book_2000_500": of_book(FACTS, 0.006),
    "book_rates": of_facts(
        LARGE_BOOK, ["dense, 1×", "dense, 3×", "dense, 8×", "MoE, E=4", "MoE, E=16"], *FACT_RATES, seeds=(0,)
    ).of(2000),
    "book_8000_1500": of_book(LARGE_BOOK, 0.003).of(1500),
    "book_8000_2000": of_book(LARGE_BOOK, 0.003).of(2000),
    "book_8000_3000": of_book(LARGE_BOOK, 0.003).of(3000),
    "book_8000_6000": of_book(LARGE_BOOK, 0.003).of(6000, measurements=40),
    "book_8000_24000": of_facts(LARGE_BOOK, ["dense, 1×"], 0.003).of(24000, measurements=40),
    "source_rates": of_real_text(
        SOURCE, dict.fromkeys(OF_REAL_TEXT, (0.0015, 0.003, 0.006)), seeds=(0,), steps=1000, measurements=4
    ),
    "prose_rates": of_real_text(
        PROSE, dict.fromkeys(OF_REAL_TEXT, (0.0015, 0.003, 0.006)), seeds=(0,), steps=1000, measurements=4
    ),
    "source": of_real_text(SOURCE, REAL_RATES),
    "prose": of_real_text(PROSE, PROSE_RATES),
    "source_other_rates": of_real_text(SOURCE, OTHER_RATES, seeds=(1,)),
    "source_dead": of_real_text(
        COLLAPSE, dict.fromkeys(UNEVEN, (0.003,)), steps=1000, measurements=40, keeps_dead=True
    ),
}  # fmt: skip


def train_model(sweep: Sweep, model: str, lr: float, seed: int) -> dict:
    """Train one run of a sweep, and return what is stored of it: see data/README.md."""
    with torch_threads(1):  # the same numbers wherever it is trained
        return _train(sweep, model, lr, seed)


def _train(sweep: Sweep, model: str, lr: float, seed: int) -> dict:
    task = sweep.study.make_task(seed)
    options = {name: getattr(sweep, name) for name in ("batch_size", "warmup_steps", "decay_steps", "max_grad_norm")}
    run = Run(sweep.study.make_model(model, seed), task, lr=lr, seed=seed, **options)
    for knob, value in BALANCED_BY.get(model, {"router_aux_loss_coef": sweep.router_aux_loss_coef}).items():
        setattr(run.knobs, knob, value)  # a loss without a mixture multiplies 0
    points = POINTS if isinstance(task, TextTask) else (*POINTS, "known")
    mixtures = [module for module in run.model.modules() if is_moe(module)]
    times, curve = [], {name: [] for name in points}
    measured = {round(part * sweep.steps / sweep.measurements) for part in range(1, sweep.measurements + 1)}
    with suppress(TrainingDiverged):
        for step in range(1, sweep.steps + 1):
            start = time.process_time()
            run.step()
            times.append(1000 * (time.process_time() - start))  # CPU time: waiting for other programs does not count
            if step in measured:
                curve["step"].append(step)
                curve["loss"].append(round(run.evaluate(sweep.held_out)["loss"], 5))
                if sweep.keeps_dead:
                    shares = np.mean([record.load for record in run.records[-BEFORE:]], axis=0)  # (layers, E)
                    dead = [np.flatnonzero(is_dead(moe.top_k * own)).tolist() for moe, own in zip(mixtures, shares)]
                    curve.setdefault("dead", []).append(dead)
                if "known" in curve:
                    curve["known"].append(int(task.known(run.model).sum()))
    count, losses = count_parameters(run.model), run.history.loss
    flops = sweep.batch_size * task.context * flops_per_token(run.model, training=True)
    last = [max(layer) * len(layer) for record in run.records[-BEFORE:] for layer in record.load]
    return {
        "model": model,
        "lr": lr,
        "seed": seed,
        **curve,
        "max_over_mean": round(sum(last) / len(last), 3) if last else None,
        "spikes": int((losses > SPIKE * losses.rolling(BEFORE).mean().shift()).sum()),
        "diverged": len(run.records) < sweep.steps,
        "ms_per_step": round(median(times), 2) if times else None,
        "flops_per_step": flops,
        "parameters": count.total,
        "active": count.active,
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "threads": 1,
    }


@contextmanager
def workers(address: str | None) -> Iterator[None]:
    """Within it joblib's jobs are those of a dask cluster, if an address is given."""
    if address is None:
        yield
        return
    from distributed import Client

    with Client(address, timeout=10) as client, parallel_config(backend="dask"):
        if max(client.nthreads().values(), default=1) > 1:  # torch's random numbers belong to the process
            raise ValueError("each dask worker must have 1 thread: dask worker --nthreads 1")
        yield


def train_missing(name: str, path: Path, jobs: int = 1, address: str | None = None) -> None:
    """Train what a results file lacks of a sweep, and add it; in the end the lines are in the order of its table."""
    sweep, header = SWEEPS[name], SWEEPS[name].header(name)
    check_positive_int("jobs", jobs)
    settings, rows, num_whole = read_runs(path) if path.exists() else ({}, [], 0)
    if settings and settings != header:
        raise ValueError(f"{path} must hold runs with {header}, got {settings}: move it away, or use --output FOLDER")
    done = {run_of(row): row for row in rows}
    missing = [run for run in sweep.table() if run not in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"{name}: {len(missing)} of {len(sweep.table())} runs to be trained", flush=True)
    with path.open("a", encoding="utf-8") as file, workers(address):
        file.truncate(num_whole)  # what follows was cut off by an interrupt
        if not settings:
            print(json.dumps(header), file=file, flush=True)
        work = (delayed(train_model)(sweep, *run) for run in missing)
        with closing(Parallel(jobs, return_as="generator_unordered")(work)) as results:
            for row in tqdm(results, name, len(missing), disable=None):  # on a terminal
                print(json.dumps(row), file=file, flush=True)
                done[run_of(row)] = row
                tqdm.write(f"{run_of(row)}: " + ("diverged" if row["diverged"] else f"loss {row['loss'][-1]:.3f}"))
    ordered = {run: done[run] for run in sweep.table()} | done
    write_rows(path, (header, *ordered.values()))
    print(f"{name}: all {len(sweep.table())} runs are in {path}")


def main(argv: Sequence[str] | None = None) -> None:
    about = __doc__.replace("``", "")
    names = f"names: {', '.join(SWEEPS)}"
    parser = argparse.ArgumentParser("python -m moe_lessons sweep", description=about, epilog=names)
    parser.add_argument("name", metavar="NAME", help="of a sweep, or 'modern' or 'book': all that begin so")
    parser.add_argument("--output", type=Path, default=FOLDER / "results", help="default: data/results")
    parser.add_argument("--jobs", type=int, default=1, help="processes of this machine that train (default: 1)")
    parser.add_argument("--dask", metavar="ADDRESS", help="train on a dask cluster: tcp://scheduler:8786")
    options = parser.parse_args(argv)
    is_one = options.name in SWEEPS
    names = [options.name] if is_one else [name for name in SWEEPS if name.startswith(f"{options.name}_")]
    try:
        check_choice("NAME", options.name, [*SWEEPS, "modern", "book"])
        for name in names:
            train_missing(name, options.output / f"{name}.jsonl", options.jobs, options.dask)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted: the runs that are finished are kept, and the same command goes on.")


if __name__ == "__main__":
    main()
