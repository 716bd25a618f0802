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
from moe_lessons.nn import LanguageModel, TransformerConfig, is_moe
from moe_lessons.nn.baselines import dense_name, dense_width
from moe_lessons.nn.seeding import seeded, torch_threads
from moe_lessons.support.data import FOLDER
from moe_lessons.support.errors import check_choice, check_positive_int
from moe_lessons.support.files import write_rows
from moe_lessons.tasks import TextTask
from moe_lessons.training import Run, TrainingDiverged
from moe_lessons.training.record import is_dead


@dataclass(frozen=True)
class Study:
    """A text, and the models that learn it."""

    task: dict  # the arguments of a `TextTask`, but for its context
    sizes: dict  # of a `TransformerConfig`; d_ff (F) is that of one expert
    num_experts: int = 8  # of the mixture that the dense models and the variants are of
    variants: Mapping[str, dict] = field(default_factory=dict)  # other mixtures, by what is not as in `sizes`

    @cached_property
    def text(self) -> TextTask:
        return TextTask(**self.task, context=self.sizes["max_positions"])

    def make_model(self, name: str, seed: int = 0) -> LanguageModel:
        """Make a model by its name: 'MoE', 'dense, 4×' (see `dense_name`) or one of the variants."""
        own = {"num_experts": self.num_experts} | self.variants.get(name, {})
        if (width := dense_width(name)) > 0:
            own = {"d_ff": round(width * self.sizes["top_k"] * self.sizes["d_ff"]), "moe_layers": ()}
        with seeded(seed):
            return LanguageModel(TransformerConfig(**self.sizes | own))


# Text that comes with Python, for the pair of models of the course: 16 experts, 2 of them for a token
REAL_SIZES = {"d_model": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4, "d_ff": 64, "top_k": 2}
CONTROLS = {"frozen router": {"router": "frozen"}, "hash routing": {"router": "hash"}, "no auxiliary loss": {}}
SOURCE = Study({"domains": ["source"]}, REAL_SIZES | {"max_positions": 64}, num_experts=16, variants=CONTROLS)

# the same at several sizes, with four times as much held out: widths of nearly one quality are to be told apart
SIZES = {
    D: Study(
        {"domains": ["source"], "held_out_bytes": 80_000},
        REAL_SIZES | {"d_model": D, "d_ff": D, "num_heads": D // 16, "num_kv_heads": D // 16, "max_positions": 64},
        num_experts=16,
    )
    for D in (64, 128, 256)
}

# mixtures of 8 experts on real text, of equal active size, with and without a loss that balances
UNEVEN = {"top-1": {"top_k": 1, "d_ff": 128}, "top-2": {}}
UNEVEN |= {f"{name}, auxiliary loss": own for name, own in UNEVEN.items()}
COLLAPSE = replace(SOURCE, sizes=SOURCE.sizes | {"num_layers": 3}, num_experts=8, variants=UNEVEN)

NOT_SHARED = ("rates", "study", "seeds", "keeps_dead")  # fields of a `Sweep` that its header lacks
run_of = itemgetter("model", "lr", "seed")  # of a stored row
SPIKE, BEFORE = 1.5, 20  # a spike: a loss above this many times the mean of so many steps before
UNBALANCED = {*CONTROLS, "top-1", "top-2"}  # models that train without the auxiliary loss


@dataclass(frozen=True)
class Sweep:
    """A table of runs, each model at each of its rates from each seed, and what all of them share (see `Run`)."""

    study: Study
    rates: Mapping[str, Sequence[float]]  # learning rates of some models of the `study`
    seeds: Sequence[int] = (1, 2, 3)
    steps: int = 4000
    warmup_steps: int = 50
    decay_steps: int | None = None  # at a steady rate a reading on the way is what a run of so many steps reaches
    measurements: int = 16  # of the held-out loss, evenly spread over the steps
    batch_size: int = 16
    held_out: int = 300  # sequences
    router_aux_loss_coef: float = 0.01  # but for the models in UNBALANCED
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


# the best of the three that "source_rates" tried, after 1,000 steps; no loss: as with it
SOURCE_RATES = dict.fromkeys(["dense, 1×", "frozen router", "hash routing"], (0.003,))
SOURCE_RATES |= dict.fromkeys(["dense, 8×", "MoE", "no auxiliary loss"], (0.0015,))
OF_SIZES = ["MoE", *(dense_name(width) for width in (1, 2, 4, 8))]  # the widest take too long where D is larger


def of_size(D: int, rates: Mapping[str, Sequence[float]], **own) -> Sweep:
    """Train the models of `SIZES[D]`; the rate falls to a tenth, since a steady one is noisier than widths differ."""
    return Sweep(SIZES[D], rates, measurements=4, held_out=1200, **own).of(1000)


# what each is for: data/README.md
SWEEPS = {
    "source_rates": Sweep(
        SOURCE, dict.fromkeys([*SOURCE_RATES][:-1], (0.0015, 0.003, 0.006)), seeds=(0,), steps=1000, measurements=4
    ),
    "source": Sweep(SOURCE, SOURCE_RATES),
    "source_dead": Sweep(COLLAPSE, dict.fromkeys(UNEVEN, (0.003,)), steps=1000, measurements=40, keeps_dead=True),
    "size_64_rates": of_size(
        64, dict.fromkeys(OF_SIZES, (0.0015, 0.003, 0.006)) | {"dense, 4×": (0.0015, 0.003, 0.006, 0.012)}, seeds=(0,)
    ),
    "size_128_rates": of_size(128, dict.fromkeys(OF_SIZES[:-1], (0.001, 0.002, 0.004)), seeds=(0,)),
    "size_256_rates": of_size(256, dict.fromkeys(OF_SIZES[:-2], (0.0005, 0.001, 0.002)), seeds=(0,)),
    "size_256": of_size(256, dict.fromkeys(OF_SIZES[:-2], (0.001,)), seeds=range(1, 7)),
    "size_128": of_size(128, dict.fromkeys(OF_SIZES[:-1], (0.002,)), seeds=range(1, 7)),
    "race": Sweep(SIZES[64], dict.fromkeys(OF_SIZES[:3], (0.003,)), seeds=range(1, 7), held_out=1200),
    "size_64": of_size(64, dict.fromkeys(OF_SIZES, (0.003,)) | {"dense, 4×": (0.006,)}, seeds=range(1, 7)),
}  # fmt: skip


def train_model(sweep: Sweep, model: str, lr: float, seed: int) -> dict:
    """Train one run of a sweep, and return what is stored of it: see data/README.md."""
    with torch_threads(1):  # the same numbers wherever it is trained
        return _train(sweep, model, lr, seed)


def _train(sweep: Sweep, model: str, lr: float, seed: int) -> dict:
    task = sweep.study.text
    options = {name: getattr(sweep, name) for name in ("batch_size", "warmup_steps", "decay_steps", "max_grad_norm")}
    run = Run(sweep.study.make_model(model, seed), task, lr=lr, seed=seed, **options)
    if model not in UNBALANCED:
        run.knobs.router_aux_loss_coef = sweep.router_aux_loss_coef  # without a mixture it multiplies 0
    mixtures = [module for module in run.model.modules() if is_moe(module)]
    times, curve = [], {name: [] for name in POINTS}
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
    parser.add_argument("name", metavar="NAME", help="of a sweep, or 'size': all that begin so")
    parser.add_argument("--output", type=Path, default=FOLDER / "results", help="default: data/results")
    parser.add_argument("--jobs", type=int, default=1, help="processes of this machine that train (default: 1)")
    parser.add_argument("--dask", metavar="ADDRESS", help="train on a dask cluster: tcp://scheduler:8786")
    options = parser.parse_args(argv)
    is_one = options.name in SWEEPS
    names = [options.name] if is_one else [name for name in SWEEPS if name.startswith(f"{options.name}_")]
    try:
        check_choice("NAME", options.name, [*SWEEPS, "size"])
        for name in names:
            train_missing(name, options.output / f"{name}.jsonl", options.jobs, options.dask)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted: the runs that are finished are kept, and the same command goes on.")


if __name__ == "__main__":
    main()
