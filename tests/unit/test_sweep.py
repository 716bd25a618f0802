"""Stored sweeps: what is stored, what an interrupt leaves, a file of other settings, and what lessons read of them."""

import json
import math
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch

from data import make_collapse_map, make_plane_sweeps
from data import make_sweeps as sweep
from moe_lessons.analysis import count_parameters, effective_width, flops_per_token, load_results, quality, results
from moe_lessons.analysis.studies import TEXT
from moe_lessons.nn import SAME_ACTIVE, SAME_TOTAL
from moe_lessons.support import data as datafiles
from moe_lessons.training import PRESETS, Run, SeedBand, TrainingDiverged, train

SHORT = {"steps": 4, "warmup_steps": 1, "decay_steps": 4, "measurements": 2, "batch_size": 2, "held_out": 6}
TINY = sweep.Sweep(TEXT, {SAME_ACTIVE: (0.01,), "MoE, E=4": (0.01, 0.02)}, range(1), **SHORT)
TABLE = [(SAME_ACTIVE, 0.01, 0), ("MoE, E=4", 0.01, 0), ("MoE, E=4", 0.02, 0)]


@pytest.fixture
def path(monkeypatch, tmp_path):
    monkeypatch.setitem(sweep.SWEEPS, "rates", TINY)
    return tmp_path / "results" / "rates.jsonl"


def run_sweep(path, *more: str) -> None:
    sweep.main(["rates", "--output", str(path.parent), *more])


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows_of(name: str) -> list[dict]:
    return rows(datafiles.data_path(f"results/{name}.jsonl"))


def losses(path) -> list[tuple]:
    return [(*sweep.run_of(run), run["loss"]) for run in rows(path)[1:]]


def keys(runs) -> list[tuple]:
    return [sweep.run_of(run) for run in runs]


def test_every_run_is_stored_with_settings_and_versions_and_is_read_as_a_table(path, monkeypatch):
    run_sweep(path)
    header, *runs = rows(path)
    assert header["sweep"] == "rates" and header["steps"] == 4 and header["sizes"] == TEXT.sizes
    assert keys(runs) == TABLE
    for run in runs:
        assert run["step"] == [2, 4] and not run["diverged"] and run["ms_per_step"] > 0
        assert run["torch"] == torch.__version__ and run["threads"] == 1 and run["cpu"] and run["date"]
    monkeypatch.setattr(datafiles, "FOLDER", path.parent.parent)
    frame = load_results("rates")
    assert set(frame.steps) == {4} and frame.step.tolist() == [2, 4] * 3 and pd.api.types.is_float_dtype(frame.loss)
    first, last = frame.iloc[0], frame.iloc[1]
    assert last.flops == 2 * first.flops == 4 * runs[0]["flops_per_step"] and last.seconds == 2 * first.seconds > 0
    shuffled = [rows(path)[0], *(runs[1] | {"seed": seed} for seed in (3, 1, 2))]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in shuffled))
    assert load_results("rates").seed.tolist() == [1, 1, 2, 2, 3, 3]  # paired by their order, as in effective_width
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
    assert results.last_of("book_100", "known")["dense, F=128"].tolist() == [41, 42]  # of seeds 1 and 2
    families = quality.dense_families(ends, "flops")
    assert families == {
        100: {6400: [5.5, 6.0], 12_800: [20.5, 21.0]},
        200: {12_800: [20.5, 21.0], 25_600: [30.5, 31.0]},
    }
    times = quality.times_the_cost(ends, "MoE, E=4", 100)  # it knows 25.5 and 26 %: more than all after 100 steps, and
    assert times.width == pytest.approx(12_800 * 2**0.5 / 6600)  # half-way between those after 200
    assert times.low == pytest.approx(times.high)
    ends.loc[ends.model == "MoE, E=4", "known"] = 5.75  # after 100 steps as much as the narrowest, and after 200 less
    assert quality.times_the_cost(ends, "MoE, E=4", 200).width == pytest.approx(6400 / 13_200)
    ends = results.load_ends("book")
    assert quality.times_as_wide(ends, "MoE, E=4", 200).width == math.inf
    with pytest.raises(ValueError, match="name must be that of a stored sweep of several lengths.*got 'boo'"):
        results.load_ends("boo")


def test_what_is_stored_is_what_the_loop_gives():
    row, model = sweep.train_model(TINY, "MoE, E=4", 0.02, 3), TEXT.make_model("MoE, E=4", 3)
    run = Run(model, TEXT.text, lr=0.02, seed=3, batch_size=2, warmup_steps=1, decay_steps=4, max_grad_norm=1.0)
    run.knobs.router_aux_loss_coef = 0.01
    found = []
    for _ in range(4):
        run.step()
        found.append(run.evaluate(6)["loss"])
    assert row["loss"] == pytest.approx([found[1], found[3]], abs=1e-5)
    count = count_parameters(model)
    assert (row["parameters"], row["active"]) == (count.total, count.active)
    assert row["flops_per_step"] == 2 * 64 * flops_per_token(model, training=True)


def test_a_run_that_diverges_is_stored_as_far_as_it_came_with_its_spikes(monkeypatch):
    step, given = Run.step, [1.4, 1.6, 1.0, 1.7]

    def diverges(run):
        if len(run.records) == sweep.BEFORE + len(given):
            raise TrainingDiverged("the loss is nan")
        loss = 1.0 if (late := len(run.records) - sweep.BEFORE) < 0 else given[late]
        run.records.append(replace(step(run), loss=loss))
        return run.records.pop(-2)

    monkeypatch.setattr(Run, "step", diverges)
    row = sweep.train_model(TINY.of(30, measurements=15), SAME_ACTIVE, 0.01, 0)
    assert row["diverged"] and row["step"] == list(range(2, 25, 2)) and row["spikes"] == 2


@pytest.mark.parametrize("of", ["capacity", "book_8000_3000"])
def test_the_models_are_what_their_names_say(of):
    study = sweep.SWEEPS[of].study
    active = count_parameters(study.make_model(SAME_ACTIVE)).total
    L, D, F, K = (study.sizes[key] for key in ("num_layers", "d_model", "d_ff", "top_k"))
    for name in sweep.SWEEPS[of].rates:
        count, number = count_parameters(study.make_model(name)), int(name.partition("=")[2] or 0)
        if name == SAME_TOTAL:
            moe = count_parameters(study.make_model(f"MoE, E={study.num_experts}")).total
            assert count.total == moe - L * D * study.num_experts
        elif name.startswith("dense, F"):
            assert count.total == count.active == active + L * 3 * D * (number - K * F)
        else:
            assert count.active == active + L * D * number


def test_the_width_of_equal_quality_over_the_steps_and_what_a_dense_model_pays(tmp_path, monkeypatch):
    """Losses on lines over the logarithms of width and step: what must be found is known exactly."""
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(datafiles, "FOLDER", tmp_path)
    steps = [100, 200, 400]

    def run(model, width, flops, better=0.0, seed=1):
        loss = [5 - 0.1 * np.log2(width) - 0.2 * np.log2(step) - better * np.log2(step / 50) for step in steps]
        costs = {"flops_per_step": flops, "ms_per_step": 1.0}
        return {"model": model, "seed": seed, "step": steps, "loss": [loss + 0.01 * seed for loss in loss], **costs}

    rows = [run(f"dense, F={width}", width, width, seed=seed) for width in (128, 256, 512, 1024) for seed in (1, 2)]
    rows += [run("MoE, E=16", 128, 128, better=0.0999, seed=seed) for seed in (1, 2)]  # doubles
    rows += [run("MoE, E=4", 128, 128), run("MoE, E=8", 64, 128), run("MoE, E=8", 64, 128, seed=2)]
    lines = "".join(f"{json.dumps(row)}\n" for row in ({"sweep": "prose", "steps": 400}, *rows))
    (tmp_path / "results/prose.jsonl").write_text(lines)
    found, near = quality.width_over_steps("prose", "MoE, E=16"), partial(pytest.approx, rel=0.01)
    assert found.step.tolist() == steps and found.width.tolist() == near([2, 4, 8])
    assert found.low.tolist() == near([2, 4, 8]) and found.high.tolist() == near([2, 4, 8])
    assert quality.quality_matched_width("prose", 16).width == near(8)
    assert str(quality.quality_matched_width("prose", 8)) == "below 1"
    results = load_results("prose")
    # after 200 steps it is .2 below the narrowest, for which that one takes twice the steps
    paid = quality.cost_to_reach(results, "MoE, E=16", 200)
    assert list(paid.index) == [128, 256, 512, 1024] and list(paid) == near([2, 2 * 2**0.5, 4, 4 * 2**0.5])
    assert list(quality.cost_to_reach(results, "MoE, E=16", 400)) == near([math.inf, math.inf, math.inf, 8])
    assert list(quality.cost_to_reach(results, "MoE, E=16", 200, "seconds")) == near([2, 2**0.5, 1, 0.5**0.5])
    with pytest.raises(ValueError, match="^num_experts must be one of"):
        quality.quality_matched_width("prose", 5)
    with pytest.raises(ValueError, match="^task must be one of"):
        quality.quality_matched_width("text", 16)


def test_what_is_stored_belongs_to_the_sweeps_of_the_code():
    stored = {path.stem for path in datafiles.data_path("results/collapse.jsonl").parent.glob("*.jsonl")}
    assert stored == {*sweep.SWEEPS, *make_plane_sweeps.SWEEPS, "collapse"}
    for name, one in sweep.SWEEPS.items():
        header, *runs = rows_of(name)
        assert header == one.header(name) and sorted(keys(runs)) == sorted(one.table()), name
    assert rows_of("collapse")[0] == make_collapse_map.header()
    for name, one in make_plane_sweeps.SWEEPS.items():
        header, *stored = rows_of(name)
        assert header == one.header(name) and len(stored) == len(one.changes)
        for row, change in zip(stored, one.changes):
            assert row | change == row and np.shape(row["accuracy"]) == (len(one.measured), one.num_seeds)


@pytest.mark.slow
def test_a_stored_cell_of_the_collapse_is_trained_again():
    """300 steps of a setting in which experts die, and of one that divides the weights of two."""
    stored = {(row["start"], row["weights"], row["lr"]): row["dead"] for row in rows_of("collapse")[1:]}
    for cell in (("soft spread", "K = 1, p", 0.01), ("random", "K = 2, p / sum", 0.03)):
        again = make_collapse_map.train_cell(*cell, measured=(20, 300))["dead"]
        assert np.array(again).mean(axis=1) == pytest.approx(np.mean(stored[cell][:2], axis=1), abs=0.3), cell
    cells = results.load_collapse_map()
    assert len(cells) == 3 * 48 and cells.dead[1] == pytest.approx(np.mean(stored["spread", "K = 1, p", 0.001][1]))


def test_a_plane_sweep_is_what_a_band_gives_and_is_read_as_a_table(tmp_path, monkeypatch, capsys):
    one = make_plane_sweeps.PlaneSweep(PRESETS["collapse"], [{"top_k": 1}, {"top_k": 2}], 2, (1, 3))
    monkeypatch.setitem(make_plane_sweeps.SWEEPS, "coefficients", one)
    (tmp_path / "results").mkdir()
    make_plane_sweeps.main(["coefficients", "--output", str(tmp_path / "results")])
    monkeypatch.setattr(datafiles, "FOLDER", tmp_path)
    frame = results.load_plane_sweep("coefficients")
    assert frame.top_k.tolist() == [1] * 4 + [2] * 4
    assert frame.step.tolist() == [1, 1, 3, 3] * 2 and frame.seed.tolist() == [0, 1] * 4
    band = SeedBand(replace(PRESETS["collapse"], top_k=2), range(2))
    for step in (1, 3):
        train(band, step - len(band.records))
        read, own = band.evaluate(2048), frame[(frame.top_k == 2) & (frame.step == step)]
        assert own.accuracy.to_numpy() == pytest.approx(read["accuracies"], abs=1e-4)
        assert own.max_over_mean.to_numpy() == pytest.approx(8 * read["loads"].max(axis=1), abs=1e-3)
        assert own.dead.tolist() == (2 * read["loads"] < 0.01).sum(axis=1).tolist()
    with pytest.raises(SystemExit):
        make_plane_sweeps.main(["coefficient"])
    assert "NAME must be one of coefficients, got coefficient" in capsys.readouterr().err


RATES_OF = {
    tried: {model: rates[0] for model, rates in sweep.SWEEPS[name].rates.items() if model in sweep.SWEEPS[tried].rates}
    for tried, name in (("rates", "capacity"), ("facts_rates", "book_2000_500"), ("book_rates", "book_8000_6000"),
                        ("modern_finer_rates", "modern_finer_500"))
}  # fmt: skip


@pytest.mark.parametrize("name, rates", RATES_OF.items())
def test_each_model_has_its_best_rate(name, rates):
    tried = load_results(name)
    quality = tried.known if "known" in tried else -tried.loss
    final = quality.groupby([tried.model, tried.lr]).last().unstack().loc[sorted(rates)]
    assert final.idxmax(axis=1).to_dict() == rates
    for model, rate in rates.items():
        tried = final.loc[model].dropna().index
        assert tried.min() < rate < tried.max()


def test_after_an_interrupt_the_same_command_goes_on_and_lines_come_in_the_order_of_the_table(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "train_model", Mock(side_effect=[sweep.train_model(TINY, *TABLE[0]), KeyboardInterrupt]))
        with pytest.raises(SystemExit, match="Interrupted: the runs that are finished are kept"):
            run_sweep(path)
    first = rows(path)
    assert keys(first[1:]) == TABLE[:1]
    run_sweep(path)
    whole, before = losses(path), path.read_bytes()
    assert rows(path)[:2] == first and keys(rows(path)[1:]) == TABLE
    run_sweep(path)
    assert path.read_bytes() == before  # nothing is left to do
    header, _, *others = before.splitlines(keepends=True)
    backwards = b"".join([header, *others[::-1]])  # and the first run is missing
    for broken in (before[:-1], before[:-40], before[:13], backwards):  # cut off in the last run, or in the settings
        path.write_bytes(broken)
        run_sweep(path)
        assert losses(path) == whole


@pytest.mark.slow
def test_two_processes_and_a_dask_cluster_give_the_numbers_of_one(path):
    distributed = pytest.importorskip("distributed", reason="needs the extra sweep")
    run_sweep(path)
    alone = losses(path)
    path.unlink()
    run_sweep(path, "--jobs", "2")
    assert losses(path) == alone
    path.unlink()
    here = {"n_workers": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**here, threads_per_worker=2) as cluster, pytest.raises(SystemExit):
        run_sweep(path, "--dask", cluster.scheduler_address)
    with distributed.LocalCluster(**here, threads_per_worker=1) as cluster:
        run_sweep(path, "--dask", cluster.scheduler_address)
    assert losses(path) == alone


def test_a_name_a_number_and_a_file_that_cannot_be_are_refused_and_the_file_is_left_alone(path, capsys):
    path.parent.mkdir()
    other = json.dumps(TINY.of(2).header("rates")) + "\n"
    for text, said in ((other, "move it away"), ("not JSON\n", "must have a JSON object on each line, got on line 1")):
        path.write_text(text)
        with pytest.raises(SystemExit):
            run_sweep(path)
        assert said in capsys.readouterr().err and path.read_text() == text
    for arguments, said in (
        (["rats"], "NAME must be one of"),
        (["rates", "--jobs", "0"], "jobs must be a whole number"),
    ):
        with pytest.raises(SystemExit):
            sweep.main([*arguments, "--output", str(path.parent)])
        assert said in capsys.readouterr().err


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
    above, below = effective_width(curve(), [4.0] * 2), effective_width(curve(), [-1.0] * 2)
    assert above.width == math.inf and str(above) == "above 512"
    assert below.width == 0 and str(below) == "below 64"
    partly = effective_width(curve(0.5), [2.75] * 2)
    assert partly.high == math.inf and str(partly).endswith("to above 512)")
    assert str(above.times(128)) == "above 4" and above.times(128).width == math.inf
