"""Experts on several ranks: equal to one process, to the last digits of float64; what travels; a run that goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ranks
import torch
from oracle import refused
from torch.nn import functional as F

from moe_lessons.nn import DISPATCH, LanguageModel, MoE, load_balancing_loss, seeded
from moe_lessons.parallel import launch, shard_experts
from moe_lessons.parallel.training import Settings, checkpoints_in, train_each, train_rank
from moe_lessons.tasks import TextTask, make_text

SMALL = Settings(steps=100, batch=4, context=16, num_layers=1, d_model=16, d_ff=16)


def losses(said: list[dict]) -> list[float]:
    return [record["loss"] for record in said if record["event"] == "step"]


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_equal_to_one_process(num_ranks):
    cases = launch(ranks.exact, num_ranks)
    assert len(cases) == 2 * (len(ranks.KINDS) + len(ranks.SPLITS[num_ranks]) - 1)
    assert any(case["dropped"] for case in cases)
    worst = max(cases, key=lambda case: case["difference"])
    assert worst["difference"] < 1e-9, worst


def test_what_cannot_be_sharded_and_whole_experts():
    assert launch(ranks.not_sharded, 4)[0] == [
        "ValueError: num_experts (6) must be a multiple of the number of ranks (4)",
        "ValueError: model must not be sharded yet, got one whose experts are",
        "ValueError: model must run its experts as MoE does, got a HalfMoE",
    ]
    with pytest.raises(RuntimeError, match="^shard_experts needs ranks: start it by parallel.launch or torchrun"):
        shard_experts(MoE(4, 4, 4))
    moe, x = MoE(4, 4, 4, dispatch="exchange"), torch.randn(5, 4)
    torch.testing.assert_close(moe(x)[0], DISPATCH["loop"](moe.experts, x, moe(x)[1]))  # whole experts stay here


@pytest.fixture(scope="module")
def alone() -> list[float]:
    """The losses of one process, written without anything of `parallel` but the sizes."""
    with seeded(0):
        model = LanguageModel(SMALL.model_config())
    task = TextTask({name: make_text(name, 50_000) for name in ("english", "code", "arithmetic")}, 16)
    optimizer, curve = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0), []
    for step in range(SMALL.steps):
        x, y = task.batch(4, torch.Generator().manual_seed(step))
        logits, routings = model(x)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        (loss + 0.01 * sum(map(load_balancing_loss, routings))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.append(loss.item())
    return curve


def test_the_curve_of_one_process(alone):
    said = launch(train_each, 2, [replace(SMALL, steps=5, seed=1), SMALL])
    curve = losses([record for record in said if record["run"] == 1])
    assert curve[-1] < curve[0] - 1
    assert max(abs(loss - other) for loss, other in zip(curve, alone, strict=True)) < 1e-4


@pytest.mark.slow
def test_goes_on_with_another_number_of_ranks(alone, tmp_path):
    settings = replace(SMALL, steps=6, every=2, checkpoint=str(tmp_path / "saved"))
    curve = losses(launch(train_rank, 2, settings))
    assert sorted(path.name for path in Path(settings.checkpoint).iterdir()) == ["step2", "step4", "step6"]
    for num_ranks in (1, 4):
        folder = shutil.copytree(settings.checkpoint, tmp_path / f"for {num_ranks}")
        again = launch(train_rank, num_ranks, replace(settings, steps=10, checkpoint=str(folder)))
        assert again[0]["from_step"] == 6 and again[-1]["event"] == "end"
        both = curve + losses(again)
        assert max(abs(loss - other) for loss, other in zip(both, alone[:10], strict=True)) < 1e-5


@pytest.mark.slow
def test_three_ranks_go_on_to_the_same_bits(tmp_path):
    """With more than two, the order of a sum counts."""
    whole = replace(SMALL, steps=8, batch=6, num_experts=6, dtype="float64")
    half = replace(whole, steps=4, checkpoint=str(tmp_path))
    ends = [launch(train_rank, 3, settings)[-1]["weights"] for settings in (whole, half, replace(half, steps=8))]
    assert ends[0] == ends[2] != ends[1]


def test_what_is_refused_on_all_ranks_alike(tmp_path):
    said = {record["case"]: record["errors"] for record in launch(ranks.refusals, 2, str(tmp_path))}
    for case, message in {
        "experts": "ValueError: num_experts (9) must be ",
        "batch": "ValueError: batch (3) must be ",
        "no folder": "FileExistsError: ",
        "another model": "ValueError: checkpoint must be of a model with {'d_model': 32}, got ",
        "not saved": f"RuntimeError: step 3 could not be saved in {tmp_path}",
    }.items():
        assert len(said[case]) == 2 and all(error.startswith(message) for error in said[case])
    assert {path.name for path in tmp_path.iterdir()} == {"step1", "step2", "step3.part"}
    (tmp_path / "step10").mkdir()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step1", "step2", "step10"]


@pytest.mark.parametrize("name, content", [("model.json", b"[" * 100_000), ("*.safetensors", None)])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_serves(name, content, tmp_path):
    settings = replace(SMALL, steps=2, every=1, checkpoint=str(tmp_path))
    launch(train_rank, 1, settings)
    (file,) = Path(tmp_path, "step2").glob(name)
    file.write_bytes(content) if content else file.unlink()
    with pytest.raises(RuntimeError, match=f"checkpoint {tmp_path}/step2 is damaged: delete it to go on from"):
        launch(train_rank, 1, replace(settings, steps=3))
    shutil.rmtree(tmp_path / "step2")
    assert launch(train_rank, 1, replace(settings, steps=3))[0]["from_step"] == 1


@pytest.mark.parametrize(
    "how, message",
    {
        "raise": "rank 1 failed: LookupError: rank 1 has had enough$",
        "kill": r"rank 1 was killed by signal 9 \(SIGKILL\)$",
        "exit": "rank 1 ended with exit code 7$",
        "hang": "rank 0 failed: .*[Tt]imed out",
    }.items(),
)
def test_a_rank_that_fails_is_named(how, message):
    with pytest.raises(RuntimeError, match=f"^{message}") as caught:
        launch(ranks.breaks, 2, how, timeout=3)
    assert how != "raise" or "in breaks\n    raise LookupError" in str(caught.value.__cause__)


def test_interrupted_it_ends_all_ranks_and_leaves_this_process_as_it_was(tmp_path):
    def interrupt():
        while len(os.listdir(tmp_path)) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before, environment = signal.getsignal(signal.SIGINT), dict(os.environ)
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        launch(ranks.counts_up, 2, str(tmp_path))
    assert not any(ranks.is_there(int(pid)) for pid in os.listdir(tmp_path))
    assert signal.getsignal(signal.SIGINT) is before and dict(os.environ) == environment


@pytest.mark.slow
def test_by_torchrun_rank_0_prints_its_records():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command += ["moe_lessons.parallel.training", "--steps=2", "--num-layers=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["start", "step", "step", "end"]


def test_a_function_that_other_processes_do_not_find():
    with refused("function must be importable, so that other processes find it: write it to .*; got .*<lambda> at .*"):
        launch(lambda: 1, 2)
