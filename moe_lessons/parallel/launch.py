"""Start ranks on this machine, by a server that has imported torch or as an engineer does, and say why they ended."""

import atexit
import inspect
import json
import multiprocessing
import os
import pickle
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from moe_lessons.support.errors import check_count, check_number, check_positive_int

PRELOADED = ["moe_lessons.parallel.training", "torch._dynamo"]  # what ranks need; AdamW imports the latter
LOOPBACK = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)  # where gloo finds the ranks of one machine
EXIT = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+) ")  # torchrun's own words
LOST = re.compile(r"[Cc]onnection (closed|reset|refused)|Broken pipe")  # gloo's, where another rank is gone
LATE = re.compile(r"[Tt]imed out waiting (\d+)ms")  # where another rank does not answer
ERROR = re.compile(r"(\[rank\d+\]: ?)?([\w.]*(Error|Exception)\b.*:|[\w.]+: error:)")  # the last line of a traceback
GRACE = 5.0  # seconds that ranks have to end by themselves, before they are killed
ENVIRONMENT = {
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else ranks may meet, after a restart, where those before them did
    "OMP_NUM_THREADS": "1",
}


def launch(function: Callable, ranks: int, *args, timeout: float = 10.0) -> Iterator[Any]:
    """Run `function(*args)` on each of `ranks` processes, joined by gloo, and yield what it yields on rank 0.

    function: a generator function, or one that returns a single record. It must be importable, and so must what it
        yields: a function of a module, or of a file that the notebook has written.
    timeout: seconds that a rank waits for another one, or for you to take its records.

    Raises RuntimeError where a rank fails, dies or does not answer, with the rank's own error; the tracebacks are its
    cause. Then, when the iterator is closed, and when its caller is interrupted, all ranks are ended.

    >>> list(launch(dist.get_world_size, 2))
    [2]
    """
    check_positive_int("ranks", ranks)
    check_number("timeout", timeout, above=True)
    if getattr(function, "__module__", "__main__") == "__main__" or "<" in function.__qualname__:  # a local or a lambda
        way = "write it to a file (%%writefile my_ranks.py) and import it from there"
        raise ValueError(f"function must be importable, so that other processes find it: {way}; got {function!r}")
    return _records(function, ranks, args, timeout)


def _records(function: Callable, ranks: int, args: tuple, timeout: float) -> Iterator[Any]:
    has_server = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows
    context = multiprocessing.get_context("forkserver" if has_server else "spawn")
    if has_server:
        context.set_forkserver_preload(PRELOADED)
    processes, pipes = [], {}
    with tempfile.TemporaryDirectory(prefix="moe_lessons_", ignore_cleanup_errors=True) as folder:
        try:
            for rank in range(ranks):
                receiver, sender = context.Pipe(duplex=False)
                work = (function, rank, ranks, args, timeout, folder, sender)
                process = context.Process(target=_rank, args=work, daemon=True)
                process.start()
                sender.close()  # the rank has its own: where that one ends, so does what is read here
                processes.append(process)
                pipes[receiver] = rank
            yield from _listen(pipes, processes)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _listen(pipes: dict[Connection, int], processes: list) -> Iterator[Any]:
    failures, deadline = [], None
    while pipes and (deadline is None or time.monotonic() < deadline):
        for pipe in wait(list(pipes), None if deadline is None else 0.1):
            try:
                kind, content = pipe.recv()
            except (EOFError, ConnectionError):  # it has ended without a word
                processes[pipes[pipe]].join(1)
                kind, content = "failed", {"code": processes[pipes[pipe]].exitcode, "error": "it fell silent"}
            if kind == "record":
                yield pickle.loads(content)
                continue
            rank = pipes.pop(pipe)
            if kind == "failed":
                failures.append({"rank": rank, **content})
                deadline = deadline or time.monotonic() + 1  # for what the others know
    if failures:
        traces = [f"rank {failure['rank']}: {failure['trace']}" for failure in failures if "trace" in failure]
        cause = RuntimeError("\n".join(traces)) if traces else None
        raise RuntimeError(first_cause(failures, pipes.values())) from cause


def _rank(function: Callable, rank: int, ranks: int, args: tuple, timeout: float, folder: str, pipe: Connection):
    """Run the function in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the caller's to handle
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait([parent]), os._exit(1)), daemon=True).start()  # no rank outlives its caller
    torch.set_num_threads(1)
    if LOOPBACK is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    try:
        meet(dist.FileStore(f"{folder}/store", ranks), rank, ranks, timeout)
        made = function(*args)
        for record in made if inspect.isgenerator(made) else [made]:
            if rank == 0:
                pipe.send(("record", pickle.dumps(record)))  # bytes: a tensor would be shared with a process that ends
        dist.barrier()
    except BaseException as error:
        said = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc(), "time": time.monotonic()}
        pipe.send(("failed", said))
        os._exit(1)  # the connections close now, and not when the garbage is collected
    pipe.send(("done", None))
    dist.destroy_process_group()


def meet(store: dist.Store, rank: int, ranks: int, timeout: float) -> None:
    """Make the process group of all ranks. They have a minute to start, and `timeout` seconds for each answer."""
    store.set(f"rank {rank}", "is here")
    store.wait([f"rank {number}" for number in range(ranks)], timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout))


def torchrun(target: str, ranks: int, *args, max_restarts: int = 0) -> "Job":
    """Start `ranks` ranks of a module or a script on this machine, by torchrun on a free port; return them as a `Job`.

    target: a dotted name, as 'moe_lessons.parallel.training', or a .py file. args: its arguments.
    max_restarts: how often all ranks are started again after one has failed."""
    check_positive_int("ranks", ranks)
    check_count("max_restarts", max_restarts)
    is_file, is_there = target.endswith(".py"), False
    with suppress(ImportError):
        is_there = Path(target).is_file() if is_file else find_spec(target) is not None
    if not is_there:
        raise ValueError(f"target must be a module or a .py file that is there, got {target!r}")
    options = ["--standalone", "--nproc-per-node", ranks, "--max-restarts", max_restarts, *(() if is_file else ("-m",))]
    command = [sys.executable, "-m", "torch.distributed.run", *options, target, *args]
    return Job([str(word) for word in command])


class Job:
    """The ranks that `torchrun` has started. Iterating gives their records, dicts, as they come.

    These are the lines of JSON that the ranks print, each with an 'event'; `log` holds the other lines. Beside them are
        {"event": "restart", "reason": …, "from_step": …}   after a failure, when all ranks run again;
        {"event": "ended", "returncode": …, "reason": …}    the last one; returncode 0 where all went well.
    Once a rank has said {"event": "failed"}, those that are still there after 5 s are killed. Iterating to the end,
    closing the iterator, an interrupt, `stop` and the end of this process end all ranks."""

    def __init__(self, command: list[str]):
        self.log, self._why = [], ""
        self._said: queue.Queue[dict | str | None] = queue.Queue()
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        text = {"text": True, "encoding": "utf-8", "errors": "replace"}
        self.process = subprocess.Popen(command, **pipes, **text, env=os.environ | ENVIRONMENT, start_new_session=True)
        atexit.register(self.stop)
        threading.Thread(target=self._listen, daemon=True).start()  # who reads slowly must not hold up the ranks

    def _listen(self) -> None:
        ranks: dict[int | None, list] = {}  # the processes, by how many restarts there had been
        for said in map(record_of, self.process.stdout):
            record = said if isinstance(said, dict) else {"event": None}
            same = ranks.setdefault(record.get("restart"), [])
            if record["event"] == "start" and "pid" in record:
                with suppress(psutil.NoSuchProcess):
                    same.append(psutil.Process(record["pid"]))
            elif record["event"] == "failed":
                timer = threading.Timer(GRACE, kill, [same])
                timer.daemon = True
                timer.start()
            self._said.put(said)
        self._said.put(None)

    def __iter__(self) -> Iterator[dict]:
        since: list[dict] = []  # the records since the last start of all ranks
        read = len(self.log)  # the lines before it
        try:
            while (said := self._said.get()) is not None:
                if isinstance(said, str):
                    self.log.append(said)
                    continue
                if said["event"] == "start" and since and said.get("restart") != since[0].get("restart"):
                    reason, from_step = what_happened(since, self.log[read:]), said.get("from_step")
                    since, read = [], len(self.log)
                    reason = f"{reason}; all ranks went on from step {from_step}"
                    yield {"event": "restart", "reason": reason, "from_step": from_step}
                since.append(said)
                yield said
            self._said.put(None)  # for who iterates again
            code = self.process.wait()
            if not self._why:  # else it was stopped, or heard to its end before
                self._why = "all ranks have ended" if code == 0 else what_happened(since, self.log[read:])
            yield {"event": "ended", "returncode": code, "reason": self._why}
        finally:
            self.stop()

    def stop(self) -> None:
        """End all ranks, and wait until they are gone: 5 s at most where one does not heed it."""
        atexit.unregister(self.stop)
        if self.process.poll() is None:
            self._why = self._why or "stopped"
            ranks = self._ranks()
            self.process.terminate()  # torchrun tells its ranks
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
            kill([*ranks, *self._ranks()])
            self.process.kill()
        self.process.wait()

    def _ranks(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []


def kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def record_of(line: str) -> dict | str:
    """Read a record from a line that a rank has printed; other words stay as they are."""
    with suppress(ValueError):
        record = json.loads(line)
        if isinstance(record, dict) and "event" in record:
            return record
    return line.strip()


def first_cause(failures: list[dict], silent: Iterable[int], after: str = "") -> str:
    """Say who failed first; the errors of the others follow from it. failures: of each rank that failed, its 'rank',
    'time' and 'error', or, where it was ended, 'code'. silent: the ranks of which nothing is known."""
    names = " and ".join(f"rank {rank}" for rank in sorted(silent))
    first = min(failures, key=lambda failure: failure.get("time", 0))
    if (code := first.get("code")) is not None:
        signalled = code < 0 and f"was killed by signal {-code} ({signal.Signals(-code).name})"
        return f"rank {first['rank']} {signalled or f'ended with exit code {code}'}{after}"
    if names and (late := LATE.search(first["error"])):
        return f"{names} did not answer for {int(late[1]) / 1000:g} s{after}"
    if names and LOST.search(first["error"]):
        return f"{names} ended without a word{after}"
    return first["error"] if first.get("refused") else f"rank {first['rank']} failed{after}: {first['error']}"


def what_happened(records: list[dict], log: list[str]) -> str:
    """Say the same of ranks that torchrun has started, from their records and all other lines."""
    failures = [record for record in records if record["event"] == "failed"]
    code, rank = map(int, next(iter(EXIT.findall("\n".join(log))), (0, 0)))
    errors = [line for line in log if ERROR.match(line) and "ChildFailedError" not in line]  # the latter is torchrun's
    if errors and not failures and code >= 0:
        return errors[0]
    if code < 0 or not failures:
        failures = [{"rank": rank, "code": code}]
    silent = {record.get("rank") for record in records if record["event"] == "start"} - {f["rank"] for f in failures}
    steps = [record["step"] for record in records if "step" in record]
    return first_cause(failures, silent, f" after step {max(steps)}" if steps else "")
