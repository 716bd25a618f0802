"""torchrun from Python: what its ranks say, what is said of one that fails, and that nobody is left behind."""

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
from oracle import refused
from ranks import is_there

from moe_lessons.parallel import Job, torchrun
from moe_lessons.parallel.launch import what_happened

TRAINING = "moe_lessons.parallel.training"
SIZES = ["--router", "gaussian noise", "--steps", 12, "--every", 5, "--batch", 4, "--context", 16, "--num-layers", 1]

# Two ranks that import nothing heavy. Before the restart rank 1 is stopped; after it, rank 0 goes on for ever.
STOPPED = """
import json, os, signal, sys, time
rank, restart = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
def say(event, **more):
    sys.stdout.write(json.dumps({"event": event, "rank": rank, "restart": restart, **more}) + "\\n")
    sys.stdout.flush()
say("start", pid=os.getpid(), from_step=0)
time.sleep(0.5)
if rank == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
if restart == 0:
    say("failed", step=3, error="Timed out waiting 1000ms for recv operation to complete", time=1)
    sys.exit(1)
say("step", step=1)
time.sleep(600)
"""


def test_a_rank_that_is_killed_and_the_run_goes_on(tmp_path):
    fault = ["--fault", "kill", "--at", 7, "--rank", 1, "--checkpoint", tmp_path / "checkpoints"]
    job = torchrun(TRAINING, 2, *SIZES, *fault, max_restarts=1)
    said = list(job)
    assert job.process.returncode == 0, job.log
    events = [record["event"] for record in said]
    assert events.count("start") == 4 and events[-2:] == ["end", "ended"]
    assert [r["step"] for r in said if r["event"] == "step"] == [*range(1, 8), *range(6, 13)]
    again = next(record for record in said if record["event"] == "restart")
    killed = "ank 1 was killed by signal 9 (SIGKILL) after step 7; all ranks went on from step 5"
    assert again["reason"] == f"r{killed}" and said[-1]["reason"] == "all ranks have ended"
    losses = [(r["step"], r["loss"]) for r in said if r["event"] == "step"]
    assert losses[5:7] == losses[7:9]  # steps 6 and 7, before and after: to the last digit
    assert not any(is_there(record["pid"]) for record in said if record["event"] == "start")


def test_a_rank_that_is_stopped_holds_up_nobody(tmp_path, monkeypatch):
    """torchrun by itself would wait for half a minute, and then for the half of another."""
    monkeypatch.setattr(sys.modules[Job.__module__], "GRACE", 1.5)
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED)
    job = torchrun(str(script), 2, max_restarts=1)
    said, began = [], None
    for record in job:
        said.append(record)
        if record["event"] == "failed":
            began = time.monotonic()
        elif record["event"] == "restart":
            assert time.monotonic() - began < 20
            assert record["reason"] == "rank 1 did not answer for 1 s after step 3; all ranks went on from step 0"
        elif record["event"] == "step":
            began = time.monotonic()
            job.stop()
            assert time.monotonic() - began < 20
    assert said[-1]["event"] == "ended" and said[-1]["reason"] == "stopped" and said[-1]["returncode"] != 0
    pids = {record["pid"] for record in said if record["event"] == "start"}
    assert len(pids) == 4 and not any(map(is_there, pids))


def job_of(code: str) -> Job:
    return Job([sys.executable, "-c", code])


def test_lines_that_are_no_records_are_kept():
    lines = ['{"event": "step", "step": 1}', "words", "{1}", '{"no": 1}', "[1]", "SomeError: why"]
    job = job_of(f"for line in {lines}: print(line)\nraise SystemExit(3)")
    first, last = job
    assert first == {"event": "step", "step": 1}
    assert last == {"event": "ended", "returncode": 3, "reason": "SomeError: why"} and job.process.returncode == 3
    assert job.log == lines[1:] and list(job) == [last]  # there is no more to say
    assert list(job_of("pass")) == [{"event": "ended", "returncode": 0, "reason": "all ranks have ended"}]


@pytest.mark.parametrize("how", ["close", "throw"])
def test_closed_or_interrupted_it_ends(how):
    job = job_of("""import time; print('{"event": "start"}', flush=True); time.sleep(600)""")
    said = iter(job)
    next(said)
    assert job.process.poll() is None
    with nullcontext() if how == "close" else pytest.raises(KeyboardInterrupt):
        getattr(said, how)(*[KeyboardInterrupt] * (how == "throw"))
    assert job.process.returncode == -15
    job.stop()  # once more is no matter


START = [{"event": "start", "rank": rank} for rank in range(2)] + [{"event": "step", "step": 4}]


def failed(rank: int, error: str, when: float, **more) -> dict:
    return {"event": "failed", "rank": rank, "step": 4, "error": error, "time": when, **more}


def exits(rank: int, code: int) -> list[str]:
    return [f"E1126 15:00:00 1 api.py:1002] failed (exitcode: {code}) local_rank: {rank} (pid: 7) of binary: python"]


ODD, UNKNOWN = "[rank1]: ValueError: odd", "training.py: error: unrecognized arguments: --no"
TRACE = ["Traceback (most recent call last):", ODD, *exits(1, 1), "torch.x.errors.ChildFailedError:"]


@pytest.mark.parametrize(
    "records, log, expected",
    [
        ([*START, failed(0, "Connection closed by peer", 1)], exits(1, -9), "was killed by signal 9 (SIGKILL)"),
        ([*START, failed(0, "Connection closed by peer", 1)], exits(0, 1), "ended without a word"),
        ([*START, failed(0, "Timed out waiting 9500ms", 1)], exits(0, 1), "did not answer for 9.5 s"),
        ([*START, failed(0, "Connection reset", 2), failed(1, "no", 1)], exits(0, 1), "failed after step 4: no"),
        ([failed(1, "odd", 1, refused=True), failed(0, "odd", 2, refused=True)], exits(0, 1), "odd"),
        ([], ["ModuleNotFoundError: No module named 'x'"], "ModuleNotFoundError: No module named 'x'"),
        ([], TRACE, ODD),
        ([], [UNKNOWN, *exits(1, 2)], UNKNOWN),
        ([], exits(1, 3), "rank 1 ended with exit code 3"),
    ],
)
def test_the_first_cause_is_named(records, log, expected):
    if records[:3] == START:
        expected = f"rank 1 {expected}" if "step" in expected else f"rank 1 {expected} after step 4"
    assert what_happened(records, log) == expected


def test_a_target_that_is_not_there_is_refused_and_a_start_without_torchrun():
    for target in ("no_such_module.at_all", "no_such_file.py"):
        with refused(f"target must be a module or a .py file that is there, got '{target}'"):
            torchrun(target, 2)
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    done = subprocess.run([sys.executable, "-m", TRAINING], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and json.loads(done.stdout)["error"] == done.stderr.strip()
    assert done.stderr == f"start it by torchrun: torchrun --standalone --nproc-per-node 2 -m {TRAINING}\n"
