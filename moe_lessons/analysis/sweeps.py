"""Long sweeps: many runs of small language models, for the lessons to compare (``python -m moe_lessons sweep NAME``).

Each finished run is at once a line of ``data/results/NAME.jsonl``; what is missing is trained the next time. Its losses
do not depend on where it is trained (in this process, in several, on a dask cluster: docs/engines.md), its times do.
"""

import json
import os
import platform
import signal
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import date
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from statistics import median

import numpy as np
import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from moe_lessons.analysis import count_parameters, flops_per_token
from moe_lessons.analysis.collapse_map import CollapseSweep
from moe_lessons.analysis.results import POINTS, read_runs
from moe_lessons.analysis.timing import cpu_name
from moe_lessons.nn import SAME_ACTIVE, SAME_TOTAL, LanguageModel, SoftMoE, TransformerConfig, dense_baseline
from moe_lessons.nn.families import modern
from moe_lessons.nn.seeding import seeded, torch_threads
from moe_lessons.nn.soft_moe import soft_moe_model
from moe_lessons.support.files import write_whole
from moe_lessons.support.orphans import end_with
from moe_lessons.tasks import Facts, FactsAtOnce, TextAtOnce, TextTask
from moe_lessons.training import Run, TrainingDiverged, settings

SOFT = "Soft MoE"
NOT_SHARED = ("rates", "setting", "seeds", "recorded")  # fields of a `Sweep` that are not the same for all its runs
run_of = itemgetter("model", "lr", "seed")  # of a stored row
SPIKE, BEFORE = 1.5, 20  # a spike: a loss above this many times the mean of so many steps before


@dataclass(frozen=True)
class Setting:
    """Says what is learned, and which models learn it."""

    task: dict  # the arguments of a `TextTask`, but for its context, or of `Facts`
    sizes: dict  # of a `TransformerConfig`; d_ff (F) is that of one expert
    baselines_of: int = 8  # experts of the mixture that the dense baselines are of
    variants: Mapping[str, dict] = field(default_factory=dict)  # other mixtures, by what is not as in `sizes`
    at_once: bool = False  # the end is hidden and named at once: see `tasks.TextAtOnce`
    times: int = 1  # as wide as the sizes and the names say: D, F and with them the experts

    @cached_property
    def text(self) -> TextTask:
        return (TextAtOnce if self.at_once else TextTask)(**self.task, context=self.sizes["max_positions"])

    def make_task(self, seed: int) -> TextTask | Facts:
        """Make what is learned: one text for all seeds, but for each seed its own facts."""
        facts = FactsAtOnce if self.at_once else Facts
        return facts(**self.task, seed=seed) if "num_entries" in self.task else self.text

    def make_model(self, name: str, seed: int = 0) -> LanguageModel:
        """Make a model by its name: a baseline, 'MoE, E=8', 'dense, F=96' or one of the variants."""
        kind, _, number = name.partition("=")
        widths = {size: self.times * self.sizes[size] for size in ("d_model", "d_ff")}
        own = {"num_experts": int(number or self.baselines_of)} | self.variants.get(name, {})
        own = {"d_ff": self.times * int(number), "moe_layers": ()} if kind == "dense, F" else own
        with seeded(seed):
            model = LanguageModel(TransformerConfig(**self.sizes | widths | own))
        if name == SOFT:
            return soft_moe_model(model, self.make_task(seed).context, seed)
        match = {SAME_ACTIVE: "flops", SAME_TOTAL: "params"}.get(name)
        return dense_baseline(model, match, seed) if match else model


TEXT = Setting(
    {"domains": ["english", "code", "json", "greek"]},  # not those in which chance decides much
    {"d_model": 64, "num_layers": 2, "d_ff": 32, "top_k": 2, "max_positions": 64},
)
FACTS_SIZES = ("d_model", "num_layers", "num_heads", "num_kv_heads", "d_ff", "top_k", "max_positions", "vocab_size")
FACTS = Setting({"num_entries": 2000}, {name: getattr(settings.FACTS, name) for name in FACTS_SIZES}, baselines_of=16)
AT_ONCE = {"variants": {"classical": {}, "expert choice": {"router": "expert choice"}, SOFT: {}}, "at_once": True}
MODERN_TEXT, MODERN_FACTS = (
    replace(own, variants=modern(own.baselines_of, own.sizes["d_ff"])) for own in (TEXT, FACTS)
)
SETTINGS = {"text": TEXT, "facts": FACTS, "modern_text": MODERN_TEXT, "modern_facts": MODERN_FACTS}
SETTINGS["book_8000"] = replace(FACTS, task={"num_entries": 8000})  # more than the smallest model can hold
SETTINGS["text_at_once"] = replace(TEXT, task=TEXT.task | {"num_hidden": 8}, **AT_ONCE)
SETTINGS["facts_at_once"] = replace(FACTS, **AT_ONCE)
STORED = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))  # what each is for: data/README.md


@dataclass(frozen=True)
class Sweep:
    """Is a table of runs, each model at each of its rates from each seed, and what all of them share (see `Run`)."""

    rates: Mapping[str, Sequence[float]]  # learning rates of some models of the `setting`
    seeds: Sequence[int] = (1, 2, 3)
    steps: int = 500
    warmup_steps: int = 50
    decay_steps: int | None = 500
    measurements: int = 20  # of the held-out loss, or of the facts that are known, evenly spread over the steps
    batch_size: int = 32
    held_out: int = 384  # sequences
    router_aux_loss_coef: float = 0.01  # but for the models in STORED["balanced_by"]
    max_grad_norm: float = 1.0
    setting: Setting = TEXT
    recorded: Sequence[str] = ()  # models of which it is kept which facts they know, of the first seed

    def table(self) -> list[tuple]:
        """List the runs (model, lr, seed), seed by seed: a busy hour slows all models alike."""
        return [(model, lr, seed) for seed in self.seeds for model, rates in self.rates.items() for lr in rates]

    def header(self, name: str) -> dict:
        """Make the first line of its results file: what all runs have in common."""
        shared = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in NOT_SHARED}
        return {"sweep": name, **self.setting.task, "sizes": self.setting.sizes, **shared}


def stored_sweeps() -> Iterator[tuple[str, Sweep]]:
    """Yield the sweeps with their names; one of several `lengths` is as many, and each ends its rate at its end."""
    for name, given in STORED["sweeps"].items():
        given = given | {"setting": SETTINGS[given["setting"]]}
        for steps, own in given.pop("lengths", {"": {}}).items():
            ends = {"steps": int(steps), "decay_steps": int(steps)} if steps else {}
            yield f"{name}_{steps}".rstrip("_"), Sweep(**given | ends | own)


SWEEPS: dict[str, Sweep | CollapseSweep] = dict(stored_sweeps()) | {"collapse": CollapseSweep()}
GROUPS = {
    group: [name for name in SWEEPS if name.startswith(f"{group}_")] for group in ("modern", "book")
}  # of several


@torch_threads(1)  # the same numbers wherever it is trained
def train(sweep: Sweep | CollapseSweep, model: str, lr: float, seed: int) -> dict:
    """Train one run of a sweep, and return what is stored of it: see data/README.md."""
    if isinstance(sweep, CollapseSweep):
        return sweep.train(model, lr, seed)
    task = sweep.setting.make_task(seed)
    options = {name: getattr(sweep, name) for name in ("batch_size", "warmup_steps", "decay_steps", "max_grad_norm")}
    run = Run(sweep.setting.make_model(model, seed), task, lr=lr, seed=seed, **options)
    for knob, value in STORED["balanced_by"].get(model, {"router_aux_loss_coef": sweep.router_aux_loss_coef}).items():
        setattr(run.knobs, knob, value)  # a loss without a mixture multiplies 0
    points = POINTS if isinstance(task, TextTask) else (*POINTS, "known")
    times, lamps, curve = [], [], {name: [] for name in points}
    measured = {round(part * sweep.steps / sweep.measurements) for part in range(1, sweep.measurements + 1)}
    with suppress(TrainingDiverged):
        for step in range(1, sweep.steps + 1):
            start = time.process_time()
            run.step()
            times.append(1000 * (time.process_time() - start))  # CPU time: waiting for other programs does not count
            if step in measured:
                curve["step"].append(step)
                curve["loss"].append(round(run.evaluate(sweep.held_out)["loss"], 5))
                if "known" in curve:
                    known = task.known(run.model)
                    curve["known"].append(int(known.sum()))
                    lamps.append(b64encode(np.packbits(known)).decode())
    count, losses = count_parameters(run.model), run.history.loss
    is_soft = any(isinstance(part, SoftMoE) for part in run.model.modules())  # it has no cost for one token
    flops = None if is_soft else sweep.batch_size * task.context * flops_per_token(run.model, training=True)
    last = [max(layer) * len(layer) for record in run.records[-BEFORE:] for layer in record.load]
    return {
        "model": model,
        "lr": lr,
        "seed": seed,
        **curve,
        **({"lamps": lamps} if model in sweep.recorded and seed == sweep.seeds[0] else {}),
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
        "threads": run.threads,
    }


def train_beside(parent: int, *run) -> dict:
    """`train` in a process that ends with the one that started it, whichever way that ends."""
    end_with(parent)
    return train(*run)


def results_of(sweep: Sweep, runs: Sequence[tuple], jobs: int = 1, dask: str | None = None) -> Iterator[dict]:
    """Train these runs, and yield what is stored of each as soon as it has finished: in so many `jobs` (processes), or
    by the workers of a dask scheduler, of one thread each: torch's random numbers belong to the process."""
    if dask is None:
        work = (delayed(train_beside)(os.getpid(), sweep, *run) for run in runs)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the processes inherit it: Ctrl-C is for this one
        try:
            results = Parallel(jobs, return_as="generator_unordered")(work)
        finally:
            signal.signal(signal.SIGINT, before)
        yield from results
        return
    from distributed import Client, as_completed

    with Client(dask, timeout=10) as client:
        if several := {worker: threads for worker, threads in client.nthreads().items() if threads > 1}:
            raise ValueError(f"each dask worker must have 1 thread (dask worker --nthreads 1), got {several}")
        futures = [client.submit(train, sweep, *run, pure=False) for run in runs]
        for _, row in as_completed(futures, with_results=True):
            yield row


def train_missing(name: str, path: Path, jobs: int = 1, dask: str | None = None) -> None:
    """Train what a results file lacks of a sweep, and add it; in the end the lines are in the order of its table."""
    sweep, header = SWEEPS[name], SWEEPS[name].header(name)
    settings, rows, num_whole = read_runs(path) if path.exists() else ({}, [], 0)
    if settings and (got := {key: settings.get(key) for key in header if settings.get(key) != header[key]}):
        wanted = {key: header[key] for key in got}
        raise ValueError(f"{path} must hold runs with {wanted}, got {got}: move it away, or use --output FOLDER")
    done = {run_of(row): row for row in rows}
    missing = [run for run in sweep.table() if run not in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"{name}: {len(missing)} of {len(sweep.table())} runs to be trained", flush=True)
    with path.open("a", encoding="utf-8") as file, closing(results_of(sweep, missing, jobs, dask)) as results:
        file.truncate(num_whole)  # what follows was cut off by an interrupt
        if not settings:
            print(json.dumps(header), file=file, flush=True)
        for row in tqdm(results, name, len(missing), disable=None):  # on a terminal
            print(json.dumps(row), file=file, flush=True)
            done[run_of(row)] = row
            tqdm.write(f"{run_of(row)}: " + ("diverged" if row["diverged"] else f"loss {row['loss'][-1]:.3f}"))
    ordered = {run: done[run] for run in sweep.table()} | done
    if list(ordered) != list(done):
        lines = (f"{json.dumps(row)}\n" for row in (settings or header, *ordered.values()))
        write_whole(path, "".join(lines).encode())
    print(f"{name}: all {len(sweep.table())} runs are in {path}")
