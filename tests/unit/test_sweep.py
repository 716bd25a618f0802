"""Long sweeps: what is stored, what an interrupt leaves, and what happens to a file of other settings."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from moe_lessons import __main__ as cli
from moe_lessons import datafiles, sweep
from moe_lessons.analysis import count_parameters, flops_per_token
from moe_lessons.analysis.results import load_results, read_runs
from moe_lessons.training import Run, TrainingDiverged

TINY = sweep.Settings(steps=4, warmup_steps=1, decay_steps=4, measurements=2, batch_size=2, held_out=6)
RATES = {sweep.DENSE_ACTIVE: (0.01,), "MoE, E=4": (0.01, 0.02)}
TABLE = [(sweep.DENSE_ACTIVE, 0.01, 0), ("MoE, E=4", 0.01, 0), ("MoE, E=4", 0.02, 0)]


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Call the command line for a sweep of three tiny runs, in a folder of its own; returns the exit code."""
    monkeypatch.setitem(sweep.SWEEPS, "rates", sweep.Sweep("tiny", TINY, RATES, range(1)))
    return lambda *options: cli.main(["sweep", "rates", "--output", str(tmp_path / "new"), *options])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "rates.jsonl"


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- what is stored ------------------------------------------------------------------------------------------


def test_every_run_is_stored_with_settings_and_versions(command, path):
    assert command() == 0
    header, *runs = rows(path)
    assert header["sweep"] == "rates" and header["steps"] == 4 and header["sizes"] == sweep.SIZES
    assert [sweep.key(run) for run in runs] == TABLE
    for run in runs:
        assert run["step"] == [2, 4] and not run["diverged"] and run["ms_per_step"] > 0
        assert run["torch"] == torch.__version__ and run["threads"] == 1 and run["cpu"] and run["date"]


def test_what_is_stored_is_what_the_loop_gives():
    row = sweep.train("MoE, E=4", 0.02, 3, TINY)
    model = sweep.make_model("MoE, E=4", 3)
    schedule = {"warmup_steps": 1, "decay_steps": 4, "max_grad_norm": TINY.max_grad_norm}
    run = Run(model, sweep.make_task(), lr=0.02, seed=3, batch_size=2, **schedule)
    run.knobs.router_aux_loss_coef = TINY.router_aux_loss_coef
    losses = []
    for _ in range(4):
        run.step()
        losses.append(run.evaluate(6)["loss"])
    assert row["loss"] == pytest.approx([losses[1], losses[3]], abs=1e-5)
    count = count_parameters(model)
    assert (row["parameters"], row["active"]) == (count.total, count.active)
    assert row["flops_per_step"] == 2 * 64 * flops_per_token(model, training=True)


def test_a_run_that_diverges_is_stored_as_far_as_it_came(monkeypatch):
    step = Run.step

    def diverges(run):
        if len(run.records) == 3:
            raise TrainingDiverged("the loss is nan")
        return step(run)

    monkeypatch.setattr(Run, "step", diverges)
    row = sweep.train(sweep.DENSE_ACTIVE, 0.01, 0, TINY)
    assert row["diverged"] and row["step"] == [2]


def test_spikes_are_counted_against_the_steps_before():
    flat = [1.0] * sweep.BEFORE
    assert sweep.count_spikes(flat + [1.4]) == 0
    assert sweep.count_spikes(flat + [1.6, 1.0, 1.7]) == 2
    assert sweep.count_spikes([9.0, 1.0]) == 0  # too short to have a before


@pytest.mark.parametrize("name", sweep.MODELS)
def test_the_models_are_what_their_names_say(name):
    """Equal compute for each token but for the router; the last twin has the size of the mixture with 8."""
    count = count_parameters(sweep.make_model(name))
    active = count_parameters(sweep.make_model(sweep.DENSE_ACTIVE)).total
    router = 2 * 64 * sweep.MOE.get(name, 0)
    if name == sweep.DENSE_TOTAL:
        assert count.total == count_parameters(sweep.make_model("MoE, E=8")).total - 2 * 64 * 8
    else:
        assert count.active == active + router


def test_the_tables_of_the_sweeps():
    for chosen in sweep.SWEEPS.values():
        keys = [sweep.key(run) for run in chosen.table()]
        assert len(set(keys)) == len(keys) == len(chosen.seeds) * sum(map(len, chosen.rates.values()))
        assert set(chosen.rates) <= set(sweep.MODELS)
        assert chosen.settings.steps % chosen.settings.measurements == 0
    seeds = [set(sweep.SWEEPS[name].seeds) for name in ("rates", "capacity")]
    assert not seeds[0] & seeds[1]  # what chose the rate is not what it is judged by


# --- an interrupt --------------------------------------------------------------------------------------------


def test_after_an_interrupt_the_same_command_goes_on(command, path, monkeypatch, capsys):
    train, started = sweep.train, []

    def interrupt(*args, **kwargs):
        started.append(args)
        if len(started) == 2:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "train", interrupt)
        assert command() == 130
    assert "1 of 3 runs are stored" in capsys.readouterr().out
    first = rows(path)
    assert [sweep.key(run) for run in first[1:]] == TABLE[:1]
    assert command() == 0
    assert rows(path)[:2] == first
    assert [sweep.key(run) for run in rows(path)[1:]] == TABLE
    before = path.read_bytes()
    assert command() == 0 and path.read_bytes() == before  # nothing is left to do


@pytest.mark.parametrize("cut", [1, 40])
def test_a_line_cut_off_on_the_disk_is_trained_again(command, path, capsys, cut):
    command()
    whole = rows(path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert [sweep.key(run) for run in read_runs(path)[1]] == TABLE[:2]
    assert command() == 0
    assert "cut off by an interrupt" in capsys.readouterr().out
    again = rows(path)
    assert [row.get("loss") for row in again] == [row.get("loss") for row in whole]


def test_a_file_cut_off_in_its_header_begins_anew(command, path):
    path.parent.mkdir()
    path.write_text('{"sweep": "ra')
    assert command() == 0
    assert rows(path)[0]["sweep"] == "rates" and len(rows(path)) == 4


def test_more_seeds_follow_later(command, path):
    command()
    command("--seeds", "2")
    assert [run["seed"] for run in rows(path)[1:]] == [0, 0, 0, 1, 1, 1]


# --- what is refused -----------------------------------------------------------------------------------------


def test_a_file_of_other_settings_is_left_alone(command, path, monkeypatch, capsys):
    command()
    before = path.read_bytes()
    other = replace(sweep.SWEEPS["rates"], settings=replace(TINY, steps=2))
    monkeypatch.setitem(sweep.SWEEPS, "rates", other)
    with pytest.raises(SystemExit):
        command()
    assert "got steps 4 (not 2)" in capsys.readouterr().err and path.read_bytes() == before
    assert command("--fresh") == 0
    assert rows(path)[0]["steps"] == 2
    assert path.with_name("rates.old1.jsonl").read_bytes() == before


def test_beginning_anew_twice_keeps_both_files(command, path):
    command()
    for number in (1, 2):
        before = path.read_bytes()
        assert command("--fresh") == 0
        assert path.with_name(f"rates.old{number}.jsonl").read_bytes() == before
    assert len(list(path.parent.iterdir())) == 3 and len(rows(path)) == 4


@pytest.mark.parametrize("text", ["not JSON\n", "[1, 2]\n"])
def test_a_file_of_something_else_is_left_alone(command, path, capsys, text):
    path.parent.mkdir()
    path.write_text(text)
    for options in ([], ["--list"]):
        with pytest.raises(SystemExit):
            command(*options)
        assert "must have a JSON object on each line, got on line 1" in capsys.readouterr().err
    assert path.read_text() == text


def test_of_two_at_once_the_later_one_stops(command, path, monkeypatch, capsys):
    """The other finishes the same run while this one trains it."""
    train = sweep.train

    def meanwhile(*args, **kwargs):
        monkeypatch.setattr(sweep, "train", train)
        assert command() == 0
        return train(*args, **kwargs)

    monkeypatch.setattr(sweep, "train", meanwhile)
    with pytest.raises(SystemExit):
        command()
    assert "another program has changed" in capsys.readouterr().err
    assert [sweep.key(run) for run in rows(path)[1:]] == TABLE


@pytest.mark.parametrize(
    "options, error",
    [
        (["capacities"], "invalid choice: 'capacities' (choose from"),
        ([], "name one of rates, capacity, seconds, flops, tolerance"),
        (["rates", "--seeds", "0"], "seeds must be a whole number of at least 1, got 0"),
        (["rates", "--quick"], "unrecognized arguments: --quick"),
    ],
)
def test_bad_options_are_refused(options, error, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["sweep", *options, "--output", str(tmp_path)])
    assert error in capsys.readouterr().err.replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(command, path, capsys):
    path.parent.write_text("a file, not a folder")
    with pytest.raises(SystemExit):
        command()
    error = capsys.readouterr().err
    assert str(path.parent) in error and "--output" in error


def test_list_says_how_far_each_is(command, path, tmp_path, capsys):
    command()
    path.with_name("seconds.jsonl").write_text('{"sweep": "seconds"}\n{"of": "another time"}\n')
    assert cli.main(["sweep", "--list", "--output", str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    assert "rates      3 of 3 runs are stored: tiny" in out and "tolerance  0 of" in out
    assert "seconds.jsonl is of other settings" in out


# --- reading -------------------------------------------------------------------------------------------------


def test_reading_gives_a_row_for_each_measurement(command, path, monkeypatch):
    command()
    monkeypatch.setattr(datafiles, "_FOLDERS", (path.parent / "none", path.parent))
    path.parent.joinpath("results").mkdir()
    path.rename(path.parent / "results" / path.name)
    frame = load_results("rates")
    assert len(frame) == 6 and frame.attrs["steps"] == 4
    assert frame.step.tolist() == [2, 4] * 3 and pd.api.types.is_float_dtype(frame.loss)
    first, last = frame.iloc[0], frame.iloc[1]
    assert (
        last.flops
        == 2 * first.flops
        == 4 * 2 * 64 * flops_per_token(sweep.make_model(sweep.DENSE_ACTIVE), training=True)
    )
    assert last.seconds == 2 * first.seconds > 0
    with pytest.raises(FileNotFoundError, match="results/rates.jsonl"):
        load_results("rats")
    path = path.parent / "results" / path.name
    path.write_text(path.read_text().partition("\n")[0] + "\n")  # the header of a sweep that has just begun
    with pytest.raises(ValueError, match="must hold at least one run"):
        load_results("rates")


@pytest.mark.parametrize("name", sweep.SWEEPS)
def test_what_is_stored_belongs_to_the_sweeps_of_the_code(name):
    """All runs are there, with the settings of the code: else run the sweep again."""
    header, runs, _ = read_runs(datafiles.data_path(f"results/{name}.jsonl"))
    assert header == json.loads(json.dumps(sweep.make_header(name)))
    assert [sweep.key(run) for run in runs] == [sweep.key(run) for run in sweep.SWEEPS[name].table()]
    assert datafiles.data_path(f"results/{name}.jsonl").stat().st_size < 300_000


def test_each_model_has_its_best_rate():
    final = load_results("rates").groupby(["model", "lr"]).loss.last().unstack()
    assert final.idxmin(axis=1).to_dict() == sweep.BEST_RATE
