"""Stored sweeps: what is stored, what an interrupt leaves, a file of other settings, and other machines."""

import json
import re
import sys
from dataclasses import replace
from unittest.mock import Mock

import pytest

from data import make_collapse_map, make_plane_sweeps
from data import make_sweeps as sweep
from moe_lessons.analysis import count_parameters, flops_per_token, load_results, results
from moe_lessons.support import data as datafiles
from moe_lessons.training import PRESETS, Run, SeedBand, TrainingDiverged, train

TEXT = sweep.Study({"domains": ["english", "code"]}, sweep.REAL_SIZES | {"max_positions": 64})
SHORT = {"steps": 4, "warmup_steps": 1, "decay_steps": 4, "measurements": 2, "batch_size": 2, "held_out": 6}
TINY = sweep.Sweep(TEXT, {"dense, 1×": (0.01,), "MoE": (0.01, 0.02)}, range(1), **SHORT)
TABLE = [("dense, 1×", 0.01, 0), ("MoE", 0.01, 0), ("MoE", 0.02, 0)]


@pytest.fixture
def path(monkeypatch, tmp_path):
    """Where the sweep `source` is stored and read, which is now a tiny one."""
    monkeypatch.setitem(sweep.SWEEPS, "source", TINY)
    monkeypatch.setattr(datafiles, "FOLDER", tmp_path)
    (tmp_path / "results").mkdir()
    return tmp_path / "results" / "source.jsonl"


def run_sweep(path, *more: str) -> None:
    sweep.main(["source", "--output", str(path.parent), *more])


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, *rows: dict) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def losses(path) -> list[tuple]:
    return [(*sweep.run_of(run), run["loss"]) for run in rows(path)[1:]]


def test_what_is_stored_is_what_the_loop_gives_and_is_read_as_a_table(path):
    run_sweep(path)
    header, *stored = rows(path)
    assert header == TINY.header("source") and [sweep.run_of(run) for run in stored] == TABLE
    row, model = stored[2], TEXT.make_model("MoE", 0)
    run = Run(model, TEXT.text, lr=0.02, seed=0, batch_size=2, warmup_steps=1, decay_steps=4, max_grad_norm=1.0)
    run.knobs.router_aux_loss_coef = 0.01
    found = {step: run.evaluate(6)["loss"] for step in range(1, 5) if run.step()}
    assert row["step"] == [2, 4] and row["loss"] == pytest.approx([found[2], found[4]], abs=1e-5)
    assert row["flops_per_step"] == 2 * 64 * flops_per_token(model, training=True) and not row["diverged"]
    frame = load_results("source")
    assert frame.step.tolist() == [2, 4] * 3 and frame.loss.tolist() == [x for run in stored for x in run["loss"]]
    write(path, header, *(row | {"seed": seed} for seed in (3, 1, 2)))
    assert load_results("source").seed.tolist() == [1, 1, 2, 2, 3, 3]  # paired by their order, as in effective_width
    write(path, header)
    with pytest.raises(ValueError, match="must hold at least one run"):
        load_results("source")


def test_a_run_that_diverges_is_stored_as_far_as_it_came_with_its_spikes(monkeypatch):
    step, given = Run.step, [1.4, 1.6, 1.0, 1.7]

    def diverges(run):
        if len(run.records) == sweep.BEFORE + len(given):
            raise TrainingDiverged("the loss is nan")
        loss = 1.0 if (late := len(run.records) - sweep.BEFORE) < 0 else given[late]
        run.records.append(replace(step(run), loss=loss))
        return run.records.pop(-2)

    monkeypatch.setattr(Run, "step", diverges)
    row = sweep.train_model(TINY.of(30, measurements=15), "dense, 1×", 0.01, 0)
    assert row["diverged"] and row["step"] == list(range(2, 25, 2)) and row["spikes"] == 2


@pytest.mark.parametrize("of", ["source", "source_dead", "size_64"])
def test_the_models_are_what_their_names_say(of):
    study = sweep.SWEEPS[of].study
    active, moe = (count_parameters(study.make_model(name)) for name in ("dense, 1×", "MoE"))
    L, D, F, K = (study.sizes[key] for key in ("num_layers", "d_model", "d_ff", "top_k"))
    assert active.total == moe.active - L * D * study.num_experts  # no router
    wide = count_parameters(study.make_model("dense, 4×"))
    assert wide.total == wide.active == active.total + L * 3 * D * 3 * K * F


def test_what_is_stored_belongs_to_the_sweeps_of_the_code():
    stored = {path.stem: rows(path) for path in (datafiles.FOLDER / "results").glob("*.jsonl")}
    assert stored.keys() == {*sweep.SWEEPS, *make_plane_sweeps.SWEEPS, "collapse"}
    for name, one in sweep.SWEEPS.items():
        header, *runs = stored[name]
        assert header == one.header(name) and sorted(map(sweep.run_of, runs)) == sorted(one.table()), name
    assert stored["collapse"][0] == make_collapse_map.header()
    for name, one in make_plane_sweeps.SWEEPS.items():
        assert (
            stored[name][0] == one.header(name)
            and [(row["method"], row["strength"]) for row in stored[name][1:]] == one.tried
        )


def test_after_an_interrupt_the_same_command_goes_on_and_lines_come_in_the_order_of_the_table(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "train_model", Mock(side_effect=[sweep.train_model(TINY, *TABLE[0]), KeyboardInterrupt]))
        with pytest.raises(SystemExit, match="Interrupted: the runs that are finished are kept"):
            run_sweep(path)
    first = rows(path)
    assert len(first) == 2
    run_sweep(path)
    whole, before = losses(path), path.read_bytes()
    assert rows(path)[:2] == first and [run[:3] for run in whole] == TABLE
    run_sweep(path)
    assert path.read_bytes() == before  # nothing is left to do
    header, _, *others = before.splitlines(keepends=True)
    for broken in (before[:-40], before[:13], b"".join([header, *others[::-1]])):  # cut off, or without the first run
        path.write_bytes(broken)
        run_sweep(path)
        assert losses(path) == whole


@pytest.mark.slow
def test_two_processes_and_a_dask_cluster_of_two_workers_give_the_numbers_of_one(path):
    distributed = pytest.importorskip("distributed", reason="needs the extra sweep")
    run_sweep(path)
    alone = losses(path)
    path.unlink()
    run_sweep(path, "--jobs", "2")
    assert losses(path) == alone
    path.unlink()
    one_process = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**one_process) as cluster, pytest.raises(SystemExit):
        run_sweep(path, "--dask", cluster.scheduler_address)
    workers = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**workers) as cluster, distributed.Client(cluster) as client:
        run_sweep(path, "--dask", cluster.scheduler_address)
        assert list(client.run(lambda: "data.make_sweeps" in sys.modules).values()) == [True, True]  # both trained
    assert losses(path) == alone


@pytest.mark.parametrize(
    "arguments, text, said",
    [
        (["rats"], "", "NAME must be one of .*got 'rats'"),
        (["source", "--jobs", "0"], "", "jobs must be a whole number.*got 0"),
        (["source"], json.dumps(TINY.of(2).header("source")) + "\n", "'steps': 2.*: move it away"),
        (["source"], "not JSON\n", "must have a JSON object on each line, got on line 1"),
    ],
)
def test_what_cannot_be_is_refused_and_the_file_is_left_alone(arguments, text, said, path, capsys):
    path.write_text(text)
    with pytest.raises(SystemExit):
        sweep.main([*arguments, "--output", str(path.parent)])
    assert re.search(said, capsys.readouterr().err) and path.read_text() == text


def test_a_plane_sweep_is_what_a_band_gives_and_is_read_as_a_table(path, monkeypatch):
    tried = [("no balancing", None), ("top-2", 2), ("bias update", 0.1)]
    one = make_plane_sweeps.PlaneSweep(PRESETS["collapse"], tried, 2, (1, 3), collapsed=2)
    monkeypatch.setitem(make_plane_sweeps.SWEEPS, "coefficients", one)
    make_plane_sweeps.main(["coefficients", "--output", str(path.parent)])
    frame = results.load_plane_sweep("coefficients")
    assert frame.step.tolist() == [1, 1, 3, 3] * 3 and frame.seed.tolist() == [0, 1] * 6
    band = SeedBand(PRESETS["collapse"], range(2))
    train(band, 2)
    band = band.branch(replace(PRESETS["collapse"], top_k=2))
    train(band, 3)
    read, own = band.evaluate(2048), frame[(frame.strength == 2) & (frame.step == 3)]
    assert own.accuracy.to_numpy() == pytest.approx(read["accuracies"], abs=1e-4)
    assert own.max_over_mean.to_numpy() == pytest.approx(8 * read["loads"].max(axis=1), abs=1e-3)
    assert own.dead.tolist() == (2 * read["loads"] < 0.01).sum(axis=1).tolist()
