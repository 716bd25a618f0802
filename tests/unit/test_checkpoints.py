"""Checkpoints: a run goes on to the same numbers, and what goes wrong loses nothing."""

import copy
import json
import os
import random
from dataclasses import replace

import pytest
import torch
from oracle import refused
from safetensors.torch import save

from moe_lessons.nn import FrozenRouter, LanguageModel, MoE, NoisyTopKRouter, SigmoidRouter, TransformerConfig, seeded
from moe_lessons.tasks import PlaneClassifier, PlaneTask, TextTask, make_text
from moe_lessons.training import PlaneSetting, Record, Run, SeedBand, TrainingDiverged
from moe_lessons.training.checkpoints import FORMAT, VALUES, checksum, load_checkpoint, save_checkpoint

MAKE_ROUTER = {
    "gaussian": lambda top_k: NoisyTopKRouter(16, 4, top_k, noise="gaussian", noise_std=0.0),
    "learned": lambda top_k: NoisyTopKRouter(16, 4, top_k),
    "frozen": lambda top_k: FrozenRouter(16, 4, top_k),
    "sigmoid": lambda top_k: SigmoidRouter(16, 4, top_k),
}


def plane_run(router: str = "gaussian", top_k: int = 2, task: str = "blobs", steps: int = 0, **options) -> Run:
    with seeded(1):
        block = MoE(16, 4, 4, top_k, router=MAKE_ROUTER[router](top_k))
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


def state_of(run: Run) -> tuple:
    state = copy.deepcopy(run.state_dict())
    return checksum(state.pop("tensors")), state | {"records": len(state["records"])}  # without the times


RUNS = {
    "noise": lambda: turned(plane_run(), noise_std=1.0, jitter_noise=0.1, router_z_loss_coef=0.01),
    "learned noise": lambda: turned(plane_run("learned"), router_aux_loss_coef=0.1),
    "dropping": lambda: turned(plane_run(), capacity_factor=0.5),
    "frozen": lambda: turned(plane_run("frozen"), noise_std=0.5),
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

    later = turned(RUNS[name](), router_aux_loss_coef=7.0)  # the saved ones count
    later.model.load_state_dict({k: torch.zeros_like(v) for k, v in later.model.state_dict().items()})
    assert load_checkpoint(later, path) is later
    assert records(later, 8) == expected and repr(later.knobs) == repr(run.knobs)
    assert [r.auxiliary for r in later.records] == [r.auxiliary for r in run.records]
    assert later.evaluate(32) == run.evaluate(32) and state_of(later) == state_of(run)


def test_a_run_that_has_diverged_goes_on_from_its_checkpoint(path):
    run, later = plane_run(steps=3), plane_run()
    run.knobs.lr = 1e30
    with pytest.raises(TrainingDiverged):
        records(run, 20)
    save_checkpoint(run, path)
    load_checkpoint(later, path)
    run.knobs.lr = later.knobs.lr = 0.02
    assert records(later, 3) == records(run, 3)
    later.take_back()
    assert len(later.records) == len(run.records) - 1


def refuses(run: Run, path, message: str) -> None:
    before = state_of(run)
    with refused(message):
        load_checkpoint(run, path)
    assert state_of(run) == before


OTHERS = {
    "run.decay_steps None, got 9": {"decay_steps": 9},
    "task.name 'blobs', got 'waves'": {"task": "waves"},
    "model.block.router NoisyTopKRouter, got SigmoidRouter": {"router": "sigmoid"},
}


def test_a_checkpoint_of_another_run_is_refused_and_the_first_difference_named(path):
    for message, options in OTHERS.items():
        save_checkpoint(plane_run(**options), path)
        refuses(plane_run(steps=2), path, f"{path} is no checkpoint of this run: state must be of a run with {message}")
    run, other = (text_run(TextTask({"text": make_text("code", 5000, seed)}, context=16)) for seed in (1, 2))
    save_checkpoint(run, path)
    refuses(other, path, ".* with checksum of the task's data [0-9a-f]{16}, got [0-9a-f]{16}")
    with refused("run must be a Run that a checkpoint can hold, got SeedBand"):
        save_checkpoint(SeedBand(PlaneSetting(), [0, 1]), path)


def test_another_file_is_refused_in_one_sentence(path):
    torch.save({"format": FORMAT}, path)
    for content in (path.read_bytes(), b"lessons", b"", save({"a": torch.zeros(3)}), save({}, {"format": FORMAT})):
        path.write_bytes(content)
        refuses(plane_run(), path, f"{path} must be a {FORMAT}, got another file or a damaged one")
    for place in ("/dev/zero", path.parent):
        refuses(plane_run(), place, f"{place} must be a {FORMAT}, got no regular file")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(plane_run(), path.parent / "missing")


def test_a_damaged_file_is_refused(path):
    run, rng = plane_run(steps=2), random.Random(0)
    save_checkpoint(run, path)
    whole = path.read_bytes()
    for _ in range(150):
        content, place = bytearray(whole), rng.randrange(len(whole))
        if rng.random() < 0.5:
            content[place] ^= 1 << rng.randrange(8)
        else:
            del content[place : place + rng.choice((1, 8, 999, len(whole)))]
        path.write_bytes(content)
        refuses(run, path, f"{path} must be a {FORMAT}, got another file or a damaged one")


def crafted(path, run: Run, craft) -> None:
    """Write a checkpoint whose checksum is right, and whose contents are not."""
    save_checkpoint(run, path)
    state = run.state_dict()
    tensors = {name: tensor.clone() for name, tensor in state.pop("tensors").items()}
    state = json.loads(json.dumps(state))
    craft(state, tensors)
    tensors.setdefault(VALUES, torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8))
    path.write_bytes(save(tensors, {"format": FORMAT, "sha256": checksum(tensors)}))


CRAFTED = {
    "optimizer.head.bias.step .*, got None": lambda s, t: t.pop("optimizer.head.bias.step"),
    "model.head.bias .*, got .* torch.float64": lambda s, t: t.update({"model.head.bias": torch.zeros(8).double()}),
    "one that a run gives, got another: Invalid mt19937 state": lambda s, t: t["random.0"].fill_(255),
    "one that a run gives, .* argument 'more'": lambda s, t: s["records"][1].update(more=1),
    "lr must be a finite number above 0 .*, got -1": lambda s, t: s["knobs"].update(lr=-1),
    r"records\[1\].step must be int, got 'x'": lambda s, t: s["records"][1].update(step="x"),
    r"records\[0\].loss must be float, got None": lambda s, t: s["records"][0].update(loss=None),
    r"records\[0\].load must be list\[list\[float\]\], got \[\[.a.*": lambda s, t: s["records"][0].update(load=[["a"]]),
    r"records\[1\].auxiliary must be dict\[str, float\], got 3": lambda s, t: s["records"][1].update(auxiliary=3),
}


@pytest.mark.parametrize("message", CRAFTED)
def test_a_crafted_file_is_refused_and_changes_nothing(message, path):
    run = plane_run(steps=2)
    crafted(path, run, CRAFTED[message])
    refuses(run, path, f".*{message}")


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
