"""Checkpoints: a run goes on to the same numbers, and what goes wrong loses nothing."""

import copy
import io
import os
import re
from dataclasses import replace

import fuzz_checkpoints
import pytest
import torch
from oracle import refused

from moe_lessons.nn import LanguageModel, MoE, NoisyTopKRouter, SigmoidRouter, TransformerConfig, seeded
from moe_lessons.tasks import PlaneClassifier, PlaneTask, TextTask, make_text
from moe_lessons.training import PlaneSetting, Record, Run, SeedBand, TrainingDiverged
from moe_lessons.training.checkpoints import FORMAT, load_checkpoint, save_checkpoint

ROUTERS = {
    "gaussian": lambda top_k: NoisyTopKRouter(16, 4, top_k, noise="gaussian", noise_std=0.0),
    "learned": lambda top_k: NoisyTopKRouter(16, 4, top_k),
    "sigmoid": lambda top_k: SigmoidRouter(16, 4, top_k),
}


def plane_run(router: str = "gaussian", top_k: int = 2, task: str = "blobs", steps: int = 0, **options) -> Run:
    with seeded(1):
        block = MoE(16, 4, 4, top_k, router=ROUTERS[router](top_k))
        model = PlaneClassifier(block, num_classes=8)
    run = Run(model, PlaneTask(task), **{"lr": 0.02, "batch_size": 32, **options})
    records(run, steps)
    return run


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.pt"


def text_run(task: TextTask) -> Run:
    sizes = {"d_model": 32, "num_layers": 2, "num_heads": 2, "max_positions": 16, "d_ff": 8, "num_experts": 4}
    with seeded(0):
        model = LanguageModel(TransformerConfig(**sizes))
    return Run(model, task, lr=0.01, batch_size=8, warmup_steps=3, decay_steps=12, max_grad_norm=0.5)


def turned(run: Run, **knobs) -> Run:
    for name, value in knobs.items():
        setattr(run.knobs, name, value)
    return run


def records(run: Run, steps: int) -> list[Record]:
    return [replace(run.step(), ms_per_step=0.0) for _ in range(steps)]


def torch_file(content) -> bytes:
    torch.save(content, file := io.BytesIO())
    return file.getvalue()


def same_state(a: Run | dict, b: Run | dict) -> bool:
    states = [value.state_dict() if isinstance(value, Run) else value for value in (a, b)]
    first, second = (state | {"records": len(state["records"])} for state in states)  # but for the times
    return torch_file(copy.deepcopy(first)) == torch_file(copy.deepcopy(second))


RUNS = {
    "noise": lambda: turned(plane_run(), noise_std=1.0, jitter_noise=0.1, router_z_loss_coef=0.01),
    "learned noise": lambda: turned(plane_run("learned"), router_aux_loss_coef=0.1),
    "dropping": lambda: turned(plane_run(), capacity_factor=0.5),
    "bias update": lambda: turned(plane_run("sigmoid"), expert_bias_rate=0.05),
    "language model": lambda: turned(text_run(TextTask("json", context=16)), noise_std=0.5, capacity_factor=1.0),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_saved_goes_on_to_the_same_numbers(name, path):
    run = RUNS[name]()
    records(run, 6)
    save_checkpoint(run, path)
    expected = records(run, 8)
    assert os.listdir(path.parent) == ["run.pt"]

    later = turned(RUNS[name](), router_aux_loss_coef=7.0, router_z_loss_coef=7.0)  # the saved ones count
    later.model.load_state_dict({k: torch.zeros_like(v) for k, v in later.model.state_dict().items()})
    assert load_checkpoint(later, path) is later
    assert records(later, 8) == expected and repr(later.knobs) == repr(run.knobs)
    assert [r.auxiliary for r in later.records] == [r.auxiliary for r in run.records]
    assert later.evaluate(32) == run.evaluate(32) and same_state(later, run)


def test_after_loading_the_last_update_can_be_taken_back_and_a_run_that_has_diverged_goes_on(path):
    run = plane_run(steps=3)
    save_checkpoint(run, path)
    later = load_checkpoint(plane_run(), path)
    run.go_back(), later.go_back()
    assert same_state(later, run)
    run.knobs.lr = 1e30
    with pytest.raises(TrainingDiverged):
        records(run, 20)
    save_checkpoint(run, path)
    load_checkpoint(later, path)
    run.knobs.lr = later.knobs.lr = 0.02
    assert records(later, 3) == records(run, 3)


OTHERS = {
    "run.batch_size 32, got 16": {"batch_size": 16},
    "run.warmup_steps 0, got 3": {"warmup_steps": 3},
    "run.decay_steps None, got 9": {"decay_steps": 9},
    "task.name 'blobs', got 'waves'": {"task": "waves"},
    "model.block.top_k 2, got 1": {"top_k": 1},
    "model.block.router NoisyTopKRouter, got SigmoidRouter": {"router": "sigmoid"},
}


def refuses(run: Run, path, message: str) -> None:
    before = copy.deepcopy(run.state_dict())
    with refused(message):
        load_checkpoint(run, path)
    assert same_state(run, before)


@pytest.mark.parametrize("message", OTHERS)
def test_a_checkpoint_of_another_run_is_refused_and_the_first_difference_named(message, path):
    save_checkpoint(plane_run(**OTHERS[message]), path)
    refuses(plane_run(steps=2), path, f"{path} is no checkpoint of this run: state must be of a run with {message}")
    with pytest.raises(ValueError, match="run must be a Run that a checkpoint can hold, got SeedBand$"):
        save_checkpoint(SeedBand(PlaneSetting(), [0, 1]), path)


def test_the_text_and_what_stands_still_are_compared(path):
    run, other = (text_run(TextTask({"text": make_text("code", 5000, seed)}, context=16)) for seed in (1, 2))
    save_checkpoint(run, path)
    refuses(other, path, ".* with checksum of the task's data [0-9a-f]{16}, got [0-9a-f]{16}")
    run.model.layers[0].ffn.router.requires_grad_(False)
    refuses(run, path, r".*ffn.router.weight .* fixed, got .* learned")


def test_another_file_is_refused_in_one_sentence(path):
    for content in (b"lessons", torch_file(torch.zeros(3)), torch_file({"format": "moe_lessons checkpoint 99"})):
        path.write_bytes(content)
        for where in (path, "/dev/zero"):
            refuses(plane_run(), where, f"{where} must be a {FORMAT}, got another file")


def test_the_one_before_is_kept_and_a_damaged_one_says_how_to_go_on_from_it(path):
    run = plane_run(steps=1)
    save_checkpoint(run, path)
    records(run, 1)
    save_checkpoint(run, path)
    path.write_bytes(path.read_bytes()[:-9])
    before = path.with_name("run.before.pt")
    way = f"the one before it is there: load_checkpoint(run, '{before}')"
    refuses(run, path, re.escape(f"{path} must be a {FORMAT}, got a damaged one; {way}"))
    assert len(load_checkpoint(run, before).records) == 1
    assert sorted(os.listdir(path.parent)) == [before.name, path.name]


@pytest.mark.parametrize("make", [fuzz_checkpoints.of_a_run, fuzz_checkpoints.of_ranks])
def test_garbled_checkpoints_are_refused_in_one_sentence_or_loaded_as_they_stand(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        count = fuzz_checkpoints.fuzz(make, tmp_path, cases=300)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert count["refused"] > 200 and count["loaded"] > 5


@pytest.mark.parametrize("call, error", [("fsync", OSError("No space left")), ("replace", KeyboardInterrupt())])
def test_a_full_disk_or_an_interrupt_keeps_the_last_checkpoint(call, error, path, monkeypatch):
    run = plane_run(steps=2)
    save_checkpoint(run, path)
    before = path.read_bytes()
    records(run, 1)

    def fail(*_):
        raise error

    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(os, call, fail)
        save_checkpoint(run, path)
    assert os.listdir(path.parent) == ["run.pt"] and path.read_bytes() == before
