"""Long sweeps: what is stored, what an interrupt leaves, and what happens to a file of other settings."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from moe_lessons import __main__ as cli
from moe_lessons.analysis import count_parameters, effective_width, flops_per_token, load_results, results
from moe_lessons.analysis import sweeps as sweep
from moe_lessons.analysis.collapse_map import load_collapse_map
from moe_lessons.nn import SAME_ACTIVE, SAME_TOTAL
from moe_lessons.support import data as datafiles
from moe_lessons.training import Run, TrainingDiverged

TASK = sweep.TEXT.text
RATES = {SAME_ACTIVE: (0.01,), "MoE, E=4": (0.01, 0.02)}
SHORT = {"steps": 4, "warmup_steps": 1, "decay_steps": 4, "measurements": 2, "batch_size": 2, "held_out": 6}
TINY = sweep.Sweep(RATES, range(1), **SHORT)
TABLE = [(SAME_ACTIVE, 0.01, 0), ("MoE, E=4", 0.01, 0), ("MoE, E=4", 0.02, 0)]


@pytest.fixture
def command(monkeypatch, tmp_path):
    monkeypatch.setitem(sweep.SWEEPS, "rates", TINY)
    return lambda: cli.main(["sweep", "rates", "--output", str(tmp_path / "results")])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "rates.jsonl"


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows_of(name: str) -> list[dict]:
    return rows(datafiles.data_path(f"results/{name}.jsonl"))


def numbers(path) -> list[tuple]:
    return [(run.get("model"), run.get("lr"), run.get("seed"), run.get("loss")) for run in rows(path)]


def keys(runs) -> list[tuple]:
    return [(run["model"], run["lr"], run["seed"]) for run in runs]


def test_every_run_is_stored_with_settings_and_versions_and_is_read_as_a_table(command, path, monkeypatch):
    assert command() == 0
    header, *runs = rows(path)
    assert header["sweep"] == "rates" and header["steps"] == 4 and header["sizes"] == sweep.TEXT.sizes
    assert keys(runs) == TABLE
    for run in runs:
        assert run["step"] == [2, 4] and not run["diverged"] and run["ms_per_step"] > 0
        assert run["torch"] == torch.__version__ and run["threads"] == 1 and run["cpu"] and run["date"]
    monkeypatch.setattr(datafiles, "FOLDER", path.parent.parent)
    frame = load_results("rates")
    assert frame.attrs["steps"] == 4 and frame.step.tolist() == [2, 4] * 3 and pd.api.types.is_float_dtype(frame.loss)
    first, last = frame.iloc[0], frame.iloc[1]
    assert last.flops == 2 * first.flops == 4 * runs[0]["flops_per_step"] and last.seconds == 2 * first.seconds > 0
    with pytest.raises(FileNotFoundError, match="results/rates.jsonl"):
        load_results("rats")
    path.write_text(path.read_text().partition("\n")[0] + "\n")  # the header of a sweep that has just begun
    with pytest.raises(ValueError, match="must hold at least one run"):
        load_results("rates")


def test_how_all_lengths_ended_and_what_the_best_dense_model_takes(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(datafiles, "FOLDER", tmp_path)
    known = {(SAME_ACTIVE, 64): (10, 40), ("dense, F=128", 128): (40, 60), ("MoE, E=4", 66): (50, 80)}  # of 200
    for i, steps in enumerate((100, 200)):
        header = {"sweep": f"book_{steps}", "num_entries": 200, "steps": steps}
        runs = [
            {"model": model, "seed": seed, "step": [steps // 2, steps], "loss": [2, 1], "known": [0, ends[i] + seed],
             "flops_per_step": flops, "ms_per_step": 1.0}
            for (model, flops), ends in known.items() for seed in (2, 1)
        ]  # fmt: skip
        lines = "".join(f"{json.dumps(row)}\n" for row in (header, *runs))
        (tmp_path / f"results/book_{steps}.jsonl").write_text(lines)
    ends = results.load_ends("book")
    assert len(ends) == 12 and ends.known.max() == 41 and ends.width.isna().sum() == 4
    families = results.dense_families(ends, "flops")
    assert families == {
        100: {6400: [5.5, 6.0], 12_800: [20.5, 21.0]},
        200: {12_800: [20.5, 21.0], 25_600: [30.5, 31.0]},
    }
    times = results.times_the_cost(ends, "MoE, E=4", 100)  # it knows 25.5 and 26 %: more than all after 100 steps, and
    assert times.width == pytest.approx(12_800 * 2**0.5 / 6600)  # half-way between those after 200
    assert times.low == pytest.approx(times.high)
    ends.loc[ends.model == "MoE, E=4", "known"] = 5.75  # after 100 steps as much as the narrowest, and after 200 less
    assert results.times_the_cost(ends, "MoE, E=4", 200).width == pytest.approx(6400 / 13_200)
    ends = results.load_ends("book")
    assert results.times_as_wide(ends, "MoE, E=4", 200).width == math.inf
    with pytest.raises(ValueError, match="name must be that of a stored sweep of several lengths.*got 'boo'"):
        results.load_ends("boo")


def test_what_is_stored_is_what_the_loop_gives():
    row, model = sweep.train(TINY, "MoE, E=4", 0.02, 3), sweep.TEXT.make_model("MoE, E=4", 3)
    run = Run(model, TASK, lr=0.02, seed=3, batch_size=2, warmup_steps=1, decay_steps=4, max_grad_norm=1.0)
    run.knobs.router_aux_loss_coef = 0.01
    losses = []
    for _ in range(4):
        run.step()
        losses.append(run.evaluate(6)["loss"])
    assert row["loss"] == pytest.approx([losses[1], losses[3]], abs=1e-5)
    count = count_parameters(model)
    assert (row["parameters"], row["active"]) == (count.total, count.active)
    assert row["flops_per_step"] == 2 * 64 * flops_per_token(model, training=True)


def test_a_run_that_diverges_is_stored_as_far_as_it_came_with_its_spikes(monkeypatch):
    step, losses = Run.step, [1.4, 1.6, 1.0, 1.7]

    def diverges(run):
        if len(run.records) == sweep.BEFORE + len(losses):
            raise TrainingDiverged("the loss is nan")
        loss = 1.0 if (late := len(run.records) - sweep.BEFORE) < 0 else losses[late]
        run.records.append(replace(step(run), loss=loss))
        return run.records.pop(-2)

    monkeypatch.setattr(Run, "step", diverges)
    row = sweep.train(replace(TINY, steps=30, decay_steps=30, measurements=15), SAME_ACTIVE, 0.01, 0)
    assert row["diverged"] and row["step"] == list(range(2, 25, 2)) and row["spikes"] == 2


MODELS = [(of, name) for of in ("capacity", "book_2000_500", "book_8000_3000") for name in sweep.SWEEPS[of].rates]


@pytest.mark.parametrize("of, name", MODELS)
def test_the_models_are_what_their_names_say(of, name):
    setting = sweep.SWEEPS[of].setting
    count, number = count_parameters(setting.make_model(name)), int(name.partition("=")[2] or 0)
    active = count_parameters(setting.make_model(SAME_ACTIVE)).total
    L, D, F, K = (setting.sizes[key] for key in ("num_layers", "d_model", "d_ff", "top_k"))
    wide = replace(setting, times=3).make_model(name).config
    assert wide.d_model == 3 * D and wide.d_ff == 3 * setting.make_model(name).config.d_ff
    if name == SAME_TOTAL:
        moe = count_parameters(setting.make_model(f"MoE, E={setting.baselines_of}")).total
        assert count.total == moe - L * D * setting.baselines_of
    elif name.startswith("dense, F"):
        assert count.total == count.active == active + L * 3 * D * (number - K * F)
    else:
        assert count.active == active + L * D * number


@pytest.mark.parametrize("name", sweep.SWEEPS)
def test_what_is_stored_belongs_to_the_sweeps_of_the_code(name):
    header, *runs = rows_of(name)
    assert header == json.loads(json.dumps(sweep.SWEEPS[name].header(name)))
    assert sorted(keys(runs)) == sorted(sweep.SWEEPS[name].table())


def test_a_stored_cell_of_the_collapse_is_trained_again():
    """300 steps of a setting in which experts die, and of one that divides the weights of two."""
    stored = {run_of: row["dead"] for run_of, row in ((sweep.run_of(row), row) for row in rows_of("collapse")[1:])}
    short = replace(sweep.SWEEPS["collapse"], measured=(20, 300))
    for cell in (("soft spread, K = 1, p", 0.01, 0), ("random, K = 2, p / sum", 0.03, 0)):
        again = sweep.train(short, *cell)["dead"]
        assert np.array(again).mean(axis=1) == pytest.approx(np.mean(stored[cell][:2], axis=1), abs=0.3), cell
    cells = load_collapse_map()
    assert len(cells) == 3 * 48 and cells.dead[1] == pytest.approx(np.mean(stored["spread, K = 1, p", 0.001, 0][1]))


RATES_OF = {
    tried: {model: rates[0] for model, rates in sweep.SWEEPS[name].rates.items() if model in sweep.SWEEPS[tried].rates}
    for tried, name in (("rates", "capacity"), ("facts_rates", "book_2000_500"), ("book_rates", "book_8000_6000"),
                        *((f"{n}_rates", n) for n in ("modern_facts", "modern_text")))
}  # fmt: skip


@pytest.mark.parametrize("name, rates", RATES_OF.items())
def test_each_model_has_its_best_rate(name, rates):
    tried = load_results(name)
    quality = tried.known if "known" in tried else -tried.loss
    final = quality.groupby([tried.model, tried.lr]).last().unstack().loc[sorted(rates)]
    assert final.idxmax(axis=1).to_dict() == rates
    for model, rate in rates.items():
        tried = final.loc[model].dropna().index
        at_the_edge = name == "modern_text_rates" and model == "sigmoid and bias"  # see data/README.md
        assert tried.min() < rate < tried.max() or at_the_edge


@pytest.mark.parametrize("name", ["all three", "no auxiliary loss", sweep.SOFT])
def test_a_change_is_trained_as_its_name_says(name, monkeypatch):
    runs, step = [], Run.step
    monkeypatch.setattr(Run, "step", lambda run: (runs.append(run), step(run))[1])
    chosen = sweep.SWEEPS["modern_facts_at_once" if name == sweep.SOFT else "modern_facts"]
    row = sweep.train(replace(chosen, **SHORT), name, 0.01, 1)
    knobs = runs[0].knobs
    assert knobs.router_aux_loss_coef == 0 and knobs.expert_bias_rate == (0.01 if name == "all three" else 0)
    assert row["flops_per_step"] is None if name == sweep.SOFT else row["max_over_mean"] > 1


def test_after_an_interrupt_the_same_command_goes_on(command, path, monkeypatch, capsys):
    first_row = sweep.train(TINY, *TABLE[0])
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "train", Mock(side_effect=[first_row, KeyboardInterrupt]))
        assert command() == 130 and "Interrupted" in capsys.readouterr().out
    first = rows(path)
    assert keys(first[1:]) == TABLE[:1]
    assert command() == 0
    whole, before = rows(path), path.read_bytes()
    assert whole[:2] == first and keys(whole[1:]) == TABLE
    assert command() == 0 and path.read_bytes() == before  # nothing is left to do
    for end in (-1, -40, 13):  # cut off on the disk, in the last run or in the settings
        path.write_bytes(before[:end])
        assert command() == 0
        assert [row.get("loss") for row in rows(path)] == [row.get("loss") for row in whole]


def test_two_processes_give_the_numbers_of_one(command, path):
    assert command() == 0
    alone = numbers(path)
    path.unlink()
    assert cli.main(["sweep", "rates", "--output", str(path.parent), "--jobs", "2"]) == 0
    assert numbers(path) == alone


SHORT_SWEEP = """
import signal, sys
from dataclasses import replace
from moe_lessons import __main__
from moe_lessons.analysis.sweeps import SWEEPS
SWEEPS["rates"] = replace(SWEEPS["rates"], steps=20, held_out=8, decay_steps=20, warmup_steps=5)
signal.signal(signal.SIGTERM, signal.default_int_handler)
sys.exit(__main__.main(["sweep", "rates", "--jobs", "2", "--output", {folder!r}]))
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_their_parent_however_it_ends(how, tmp_path):
    """Two at work: as soon as the first run is stored, the parent gets the signal, and Ctrl-C all of them at once."""
    code = SHORT_SWEEP.format(folder=str(tmp_path))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as parent:
        assert "runs to be trained" in parent.stdout.readline() and "loss" in parent.stdout.readline()
        children = psutil.Process(parent.pid).children(recursive=True)
        (os.killpg if how == signal.SIGINT else os.kill)(parent.pid, how)
        said = parent.communicate(timeout=60)[1]
    assert len(children) >= 2 and not psutil.wait_procs(children, timeout=20)[1]
    assert parent.returncode == (-9 if how == signal.SIGKILL else 130) and "Traceback" not in said
    assert len((tmp_path / "rates.jsonl").read_text().splitlines()) >= 2


def test_lines_in_any_order_are_read_and_stored_in_that_of_the_table(command, path, monkeypatch):
    assert command() == 0
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join([whole[0], *whole[:1:-1]]))  # backwards, and the first run is missing
    assert command() == 0
    assert path.read_text().splitlines(keepends=True)[2:] == whole[2:] and keys(rows(path)[1:]) == TABLE
    path.write_text("".join([whole[0], *(json.dumps(json.loads(whole[1]) | {"seed": s}) + "\n" for s in (3, 1, 2))]))
    monkeypatch.setattr(datafiles, "FOLDER", path.parent.parent)
    assert load_results("rates").seed.tolist() == [1, 1, 2, 2, 3, 3]  # paired by their order, as in effective_width


def test_a_dask_cluster_gives_the_same_numbers(command, path):
    distributed = pytest.importorskip("distributed", reason="needs the extra cluster")
    assert command() == 0
    alone = numbers(path)
    path.unlink()
    here = {"n_workers": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**here, threads_per_worker=2) as cluster:
        with pytest.raises(ValueError, match="each dask worker must have 1 thread"):
            next(sweep.results_of(TINY, TABLE, dask=cluster.scheduler_address))
    with distributed.LocalCluster(**here, threads_per_worker=1) as cluster:
        assert cli.main(["sweep", "rates", "--output", str(path.parent), "--dask", cluster.scheduler_address]) == 0
    assert numbers(path) == alone


def test_a_file_of_other_settings_or_of_something_else_is_left_alone(command, path, capsys):
    path.parent.mkdir()
    other = json.dumps(replace(TINY, steps=2).header("rates")) + "\n"
    for text, error in (
        (other, "must hold runs with {'steps': 4}, got {'steps': 2}"),
        ("not JSON\n", "must have a JSON object on each line, got on line 1"),
    ):
        path.write_text(text)
        with pytest.raises(SystemExit):
            command()
        assert error in capsys.readouterr().err and path.read_text() == text


WIDTHS = (64, 128, 256, 512)


def curve(shift: float = 0.0) -> dict[int, list[float]]:
    """Quality 0, 1, 2, 3 of the four widths, from two seeds."""
    return {width: [i - shift, i + shift] for i, width in enumerate(WIDTHS)}


@pytest.mark.parametrize("quality, width", [(0, 64), (1, 128), (0.5, 64 * 2**0.5), (2.25, 256 * 2**0.25), (3, 512)])
def test_on_a_line_over_the_logarithm_it_is_exact(quality, width):
    found = effective_width(curve(), [quality, quality])
    assert (found.width, found.low, found.high) == pytest.approx((width,) * 3)
    assert found.family == (64, 512)


def test_the_interval_is_of_seeds_the_least_width_counts_and_nothing_is_extrapolated():
    found = effective_width(curve(0.25), [1.5 - 0.1, 1.5 + 0.1])
    assert found.width == pytest.approx(64 * 2**1.5)
    assert (found.low, found.high) == pytest.approx((64 * 2**1.35, 64 * 2**1.65))
    family = {64: [0.0], 128: [2.0], 256: [1.0], 512: [3.0]}
    assert effective_width(family, [2.0]).width == 128
    assert effective_width(family, [1.0]).width == pytest.approx(64 * 2**0.5)
    assert effective_width(family, [2.5]).width == pytest.approx(256 * 2**0.5)
    above, below = effective_width(curve(), [4.0] * 2), effective_width(curve(), [-1.0] * 2)
    assert above.width == math.inf and str(above) == "above 512"
    assert below.width == 0 and str(below) == "below 64"
    partly = effective_width(curve(0.5), [2.75] * 2)
    assert partly.high == math.inf and str(partly).endswith("to above 512)")
    assert str(above.times(128)) == "above 4" and above.times(128).width == math.inf
