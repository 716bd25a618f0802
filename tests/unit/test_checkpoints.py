"""Checkpoints: a run goes on to the same numbers, and what goes wrong loses nothing."""

import builtins
import copy
import errno
import io
import os
import zipfile

import numpy as np
import pytest
import torch

from moe_lessons import checkpoints
from moe_lessons.bands import SeedBand
from moe_lessons.checkpoints import describe, load_checkpoint, save_checkpoint, state_of
from moe_lessons.nn import FeedForward, LanguageModel, MoE, NoisyTopKRouter, SigmoidRouter, TransformerConfig, seeded
from moe_lessons.tasks import PlaneClassifier, PlaneSetting, PlaneTask, TextTask, make_text
from moe_lessons.training import Record, Run, TrainingDiverged

ROUTERS = {
    "gaussian": lambda top_k: NoisyTopKRouter(16, 4, top_k, noise="gaussian", noise_std=0.0),
    "learned": lambda top_k: NoisyTopKRouter(16, 4, top_k),
    "sigmoid": lambda top_k: SigmoidRouter(16, 4, top_k),
}


def plane_run(router: str = "gaussian", top_k: int = 2, task: str = "blobs", **options) -> Run:
    with seeded(1):
        block = MoE(16, 4, 4, top_k, router=ROUTERS[router](top_k))
        model = PlaneClassifier(block, num_classes=8)
    return Run(model, PlaneTask(task), **{"lr": 0.02, "batch_size": 32, **options})


@pytest.fixture(scope="module")
def text() -> TextTask:
    return TextTask(["english", "json"], context=16)


def text_run(task: TextTask, router: str = "top-k", **options) -> Run:
    sizes = {"d_model": 32, "num_layers": 2, "num_heads": 2, "max_positions": 16, "d_ff": 8, "num_experts": 4}
    with seeded(options.pop("start", 0)):
        model = LanguageModel(TransformerConfig(**sizes | options.pop("sizes", {}), router=router))
    schedule = {"weight_decay": 0.1, "warmup_steps": 3, "decay_steps": 12, "max_grad_norm": 0.5}
    return Run(model, task, **{"lr": 0.01, "batch_size": 8} | schedule | options)


def turned(run: Run, **knobs) -> Run:
    for name, value in knobs.items():
        setattr(run.knobs, name, value)
    return run


def records(run: Run, steps: int) -> list[Record]:
    return [run.step()._replace(ms_per_step=0.0) for _ in range(steps)]


def same_state(a: Run | dict, b: Run | dict) -> bool:
    """Whether two runs stand at the same point, to the bit."""

    def plain(value):
        if isinstance(value, torch.Tensor):
            return value.dtype, value.tolist()
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value

    return plain(state_of(a) if isinstance(a, Run) else a) == plain(state_of(b) if isinstance(b, Run) else b)


RUNS = {
    "noise": lambda text: turned(plane_run(), noise_std=1.0, jitter_noise=0.1, router_z_loss_coef=0.01),
    "learned noise": lambda text: turned(plane_run("learned"), router_aux_loss_coef=0.1),
    "dropping": lambda text: turned(plane_run(), capacity_factor=0.5),
    "bias update": lambda text: turned(plane_run("sigmoid"), expert_bias_rate=0.05),
    "dense": lambda text: Run(PlaneClassifier(FeedForward(16, 8), 8), PlaneTask()),
    "language model": lambda text: turned(text_run(text), noise_std=0.5, capacity_factor=1.0),
    "language model, bias update": lambda text: turned(text_run(text, "sigmoid"), expert_bias_rate=0.05, lr=0.02),
    "language model, bfloat16": lambda text: text_run(text, precision="bfloat16"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_saved_goes_on_to_the_same_numbers(name, text, tmp_path):
    run = RUNS[name](text)
    records(run, 6)
    save_checkpoint(run, tmp_path / "run.pt")
    expected = records(run, 8)
    assert os.listdir(tmp_path) == ["run.pt"]

    later = RUNS[name](text)
    later.model.load_state_dict({k: torch.zeros_like(v) for k, v in later.model.state_dict().items()})
    for knob in ("router_aux_loss_coef", "router_z_loss_coef"):
        setattr(later.knobs, knob, 7.0)  # turned since: the saved one counts
    assert load_checkpoint(later, tmp_path / "run.pt") is later
    assert repr(later.knobs) == repr(run.knobs) and len(later.records) == 6
    assert all(isinstance(record, Record) for record in later.records)
    assert records(later, 8) == expected
    assert [r._replace(ms_per_step=0) for r in later.records] == [r._replace(ms_per_step=0) for r in run.records]
    assert later.evaluate(32) == run.evaluate(32)
    for each in (run, later):
        each.records.clear()  # but for the times
    assert same_state(later, run)


def test_knobs_that_differ_from_layer_to_layer_stay_different(text, tmp_path):
    def make() -> Run:
        run = text_run(text, "gaussian noise")
        run.model.layers[0].ffn.router.noise_std = 0.0
        run.model.layers[1].ffn.router.noise_std, run.model.layers[1].ffn.capacity_factor = 2.0, 0.5
        return run

    run = make()
    records(run, 2)
    save_checkpoint(run, tmp_path / "run.pt")
    later = turned(make(), noise_std=1.0, capacity_factor=3.0)
    load_checkpoint(later, tmp_path / "run.pt")
    assert records(later, 3) == records(run, 3)
    assert [layer.ffn.router.noise_std for layer in later.model.layers] == [0, 2]
    assert [layer.ffn.capacity_factor for layer in later.model.layers] == [None, 0.5]


def test_a_seed_of_numpy_is_one(tmp_path):
    run = plane_run(seed=np.int64(5))
    save_checkpoint(run, tmp_path / "run.pt")
    assert records(load_checkpoint(plane_run(seed=5), tmp_path / "run.pt"), 2) == records(run, 2)


def test_saving_does_not_disturb_the_training(tmp_path):
    run, alone = (turned(plane_run(), noise_std=1.0) for _ in range(2))
    seen = []
    for _ in range(4):
        save_checkpoint(run, tmp_path / "run.pt")
        seen += records(run, 1)
    assert seen == records(alone, 4)


def test_a_run_that_has_diverged_is_saved_with_its_last_good_weights(tmp_path):
    run = plane_run()
    records(run, 3)
    run.knobs.lr = 1e30
    with pytest.raises(TrainingDiverged):
        records(run, 20)
    save_checkpoint(run, tmp_path / "run.pt")
    later = load_checkpoint(plane_run(), tmp_path / "run.pt")
    assert same_state(later, run)
    run.knobs.lr = later.knobs.lr = 0.02
    assert records(later, 3) == records(run, 3)


def test_the_last_step_can_be_taken_back_after_loading(tmp_path):
    run = plane_run()
    records(run, 3)
    save_checkpoint(run, tmp_path / "run.pt")
    later = load_checkpoint(plane_run(), tmp_path / "run.pt")
    run.go_back(), later.go_back()
    assert same_state(later, run)


# --- another configuration -------------------------------------------------------------------------------

OTHERS = {
    "batch_size 32, got 16": {"batch_size": 16},
    "seed 0, got 5": {"seed": 5},
    "threads 1, got 2": {"threads": 2},
    "weight_decay 0.0, got 0.1": {"weight_decay": 0.1},
    "warmup_steps 0, got 3": {"warmup_steps": 3},
    "decay_steps None, got 9": {"decay_steps": 9},
    "max_grad_norm None, got 1.0": {"max_grad_norm": 1.0},
    "precision 'float32', got 'bfloat16'": {"precision": "bfloat16"},
    "task.name 'blobs', got 'waves'": {"task": "waves"},
    "model.block.top_k 2, got 1": {"top_k": 1},
    "model.block.router 'NoisyTopKRouter', got 'SigmoidRouter'": {"router": "sigmoid"},
    "model.block.router.noise 'gaussian', got 'learned'": {"router": "learned"},
}


@pytest.mark.parametrize("message", OTHERS)
def test_a_checkpoint_of_another_run_is_refused_and_the_first_difference_named(message, tmp_path):
    path = tmp_path / "run.pt"
    save_checkpoint(plane_run(**OTHERS[message]), path)
    run = plane_run()
    records(run, 2)
    with pytest.raises(ValueError) as error:
        load_checkpoint(run, path)
    assert str(error.value) == f"{path} must be a checkpoint of a run with {message}"
    assert len(run.records) == 2 and describe(run) == describe(plane_run())


@pytest.mark.parametrize(
    "sizes, message",
    [({"num_experts": 8}, "num_experts 4, got 8"), ({"moe_layers": (1,)}, r"moe_layers None, got \(1,\)")],
)
def test_of_a_language_model_the_configuration_is_compared(sizes, message, text, tmp_path):
    save_checkpoint(text_run(text, sizes=sizes), tmp_path / "run.pt")
    with pytest.raises(ValueError, match=rf"must be a checkpoint of a run with model\.config\.{message}$"):
        load_checkpoint(text_run(text), tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"with model 'PlaneClassifier', got 'LanguageModel'$"):
        load_checkpoint(plane_run(), tmp_path / "run.pt")


def test_the_text_is_compared_too(text, tmp_path):
    one, two = (TextTask.from_text(make_text("code", 5000, seed), context=16) for seed in (1, 2))
    save_checkpoint(text_run(one), tmp_path / "run.pt")
    load_checkpoint(text_run(one), tmp_path / "run.pt")
    with pytest.raises(ValueError, match="with checksum of the task's data '[0-9a-f]{16}', got '[0-9a-f]{16}'$"):
        load_checkpoint(text_run(two), tmp_path / "run.pt")
    with pytest.raises(ValueError, match="with task.seed 0, got None$"):
        load_checkpoint(text_run(text), tmp_path / "run.pt")


def test_what_stands_still_must_be_the_same(tmp_path):
    frozen = plane_run()
    frozen.model.embed.requires_grad_(False)
    save_checkpoint(frozen, tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"model.embed.weight '.* learned', got '.* fixed'$"):
        load_checkpoint(plane_run(), tmp_path / "run.pt")


def test_a_band_has_no_checkpoints(tmp_path):
    band = SeedBand(PlaneSetting(), [0])
    for use in (save_checkpoint, load_checkpoint):
        with pytest.raises(ValueError, match="^run must be a Run and no other kind of one, got SeedBand$"):
            use(band, tmp_path / "run.pt")


# --- what is no checkpoint -------------------------------------------------------------------------------


def torch_file(content) -> bytes:
    torch.save(content, file := io.BytesIO())
    return file.getvalue()


class Code:
    """Pickled, it says what to call when it is read."""

    def __reduce__(self):
        return os.mkdir, ("called",)


def plain_zip() -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("a", "b")
    return file.getvalue()


BAD = {
    "nothing": (b"", "an empty file"),
    "text": (b"lessons", "another file"),
    "zip": (plain_zip(), "another file"),
    "weights": (torch_file({"weight": torch.zeros(3)}), "another file"),
    "tensor": (torch_file(torch.zeros(3)), "another file"),
    "unnamed": (torch_file({"format": checkpoints.FORMAT}), "one of version None where 1 is read"),
    "hollow": (
        torch_file({"format": checkpoints.FORMAT, "version": 1, "state": {}}),
        "one with parts that are missing or wrong",
    ),
    "newer": (torch_file({"format": checkpoints.FORMAT, "version": 2}), "one of version 2 where 1 is read"),
    "code": (torch_file({"format": checkpoints.FORMAT, "version": Code()}), "another file"),
}


@pytest.mark.parametrize("name", BAD)
def test_another_file_is_refused_in_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, got = BAD[name]
    (tmp_path / "run.pt").write_bytes(content)
    with pytest.raises(ValueError, match=f"^run.pt must be a checkpoint of moe_lessons, got {got}$"):
        load_checkpoint(plane_run(), "run.pt")
    assert os.listdir() == ["run.pt"]


def test_a_truncated_or_damaged_file_is_refused_and_changes_nothing(tmp_path):
    run = turned(plane_run(), noise_std=1.0)
    records(run, 2)
    save_checkpoint(run, tmp_path / "run.pt")
    whole = (tmp_path / "run.pt").read_bytes()
    records(run, 2)
    before = copy.deepcopy(state_of(run))
    cut = [whole[: len(whole) * part // 8] for part in range(1, 8)] + [whole[:-1], whole[:5]]
    at = whole.index(zipfile.ZipFile(tmp_path / "run.pt").read("archive/data/0"))
    flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    for content in (*cut, flipped):
        (tmp_path / "bad.pt").write_bytes(content)
        with pytest.raises(ValueError, match="bad.pt must be a checkpoint of moe_lessons, got a truncated or damaged"):
            load_checkpoint(run, tmp_path / "bad.pt")
    assert same_state(before, run)
    load_checkpoint(run, tmp_path / "run.pt")
    assert len(run.records) == 2


PARTS = ["last_good", "optimizer", "knobs", "knobs_of_modules", "records", "data", "random_states"]


@pytest.mark.parametrize("part", PARTS)
def test_a_run_is_never_half_loaded(part, tmp_path):
    """The file is whole and of the right run, yet a part of it cannot be read."""
    run = plane_run()
    records(run, 3)
    save_checkpoint(run, tmp_path / "run.pt")
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    del saved["state"][part]
    torch.save(saved, tmp_path / "run.pt")
    records(run, 3)
    expected = plane_run()
    records(expected, 6)
    with pytest.raises(
        ValueError, match="run.pt must be a checkpoint of moe_lessons, got one with parts that are miss"
    ):
        load_checkpoint(run, tmp_path / "run.pt")
    assert len(run.records) == 6
    assert records(run, 3) == records(expected, 3)


@pytest.mark.parametrize("states", [[], [torch.zeros(3, dtype=torch.uint8)], [torch.zeros(3)]])
def test_random_states_that_cannot_be_set_are_refused_before_the_next_step(states, tmp_path):
    run = plane_run()
    save_checkpoint(run, tmp_path / "run.pt")
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    saved["state"]["random_states"] = states
    torch.save(saved, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="got one with parts that are missing or wrong$"):
        load_checkpoint(run, tmp_path / "run.pt")
    assert records(run, 3) == records(plane_run(), 3)


# --- a disk that is full, a folder that is not there -----------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A run that was saved and has gone on since, and what its checkpoint holds."""
    run = plane_run()
    records(run, 2)
    save_checkpoint(run, tmp_path / "run.pt")
    records(run, 1)
    return run, (tmp_path / "run.pt").read_bytes()


def check_kept(saved, folder, number: int) -> None:
    """Saving again fails with this error number; the checkpoint before is whole and nothing lies beside it."""
    run, content = saved
    with pytest.raises(OSError, match=r"no checkpoint was written: '.*run\.pt'$") as error:
        save_checkpoint(run, folder / "run.pt")
    assert error.value.errno == number
    assert os.listdir(folder) == ["run.pt"] and (folder / "run.pt").read_bytes() == content
    assert len(load_checkpoint(plane_run(), folder / "run.pt").records) == 2


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_is_full_at_the_end_keeps_the_last_checkpoint(call, saved, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    check_kept(saved, tmp_path, errno.ENOSPC)


def test_a_disk_that_is_full_midway_keeps_the_last_checkpoint(saved, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, content):
            super().write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "open", Full, raising=False)
        check_kept(saved, tmp_path, errno.ENOSPC)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
def test_a_device_that_is_full_keeps_the_last_checkpoint(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "open", lambda path, mode: builtins.open("/dev/full", mode), raising=False)
    check_kept(saved, tmp_path, errno.ENOSPC)


def test_a_limit_on_the_size_of_files_keeps_the_last_checkpoint(saved, tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the system itself refuses the second half
    try:
        check_kept(saved, tmp_path, errno.EFBIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_interrupt_while_it_is_written_keeps_the_last_checkpoint(saved, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(saved[0], tmp_path / "run.pt")
    assert os.listdir(tmp_path) == ["run.pt"] and (tmp_path / "run.pt").read_bytes() == saved[1]


def test_a_path_that_cannot_be_used_is_named(tmp_path):
    run = plane_run()
    with pytest.raises(FileNotFoundError, match=r"No such file or directory, no checkpoint was written: '.*run\.pt'"):
        save_checkpoint(run, tmp_path / "missing" / "run.pt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="no checkpoint was written: '.*folder'"):
        save_checkpoint(run, tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]
    with pytest.raises(FileNotFoundError, match=r"run\.pt"):
        load_checkpoint(run, tmp_path / "run.pt")
    with pytest.raises(OSError, match="folder"):
        load_checkpoint(run, tmp_path / "folder")


def test_a_path_without_a_name_is_refused():
    with pytest.raises(ValueError, match="path must name a file, got '.'"):
        save_checkpoint(plane_run(), "")


def test_a_link_stays_a_link(tmp_path):
    link = tmp_path / "latest.pt"
    link.symlink_to(tmp_path / "run.pt")
    save_checkpoint(plane_run(), link)
    assert link.is_symlink() and (tmp_path / "run.pt").is_file()
