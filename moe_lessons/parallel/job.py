"""Start ranks as an engineer does, by torchrun, from Python: read what they say, and end them whatever happens."""

import atexit
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from moe_lessons.parallel.faults import what_happened
from moe_lessons.support.errors import check_count, check_number, check_positive_int

GRACE = 5.0  # seconds that ranks have to end by themselves, before they are killed
ENVIRONMENT = {
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else ranks may meet, after a restart, where those before them did
    "OMP_NUM_THREADS": "1",
}


def torchrun(target: str, ranks: int, *args, max_restarts: int = 0, silence: float = 60.0) -> "Job":
    """Start `ranks` ranks of a module or a script on this machine, by torchrun on a free port; return them as a `Job`.

    target: a dotted name, as 'moe_lessons.parallel.training', or a .py file. args: its arguments.
    max_restarts: how often all ranks are started again after one has failed.
    silence: seconds without a record, since the first one, after which the job is ended.

    Raises ValueError where the target is not there.
    """
    check_positive_int("ranks", ranks)
    check_count("max_restarts", max_restarts)
    check_number("silence", silence, above=True)
    is_file = str(target).endswith(".py")
    if not (Path(target).is_file() if is_file else _is_module(target)):
        raise ValueError(f"target must be a module or a .py file that is there, got {target!r}")
    options = ["--standalone", "--nproc-per-node", ranks, "--max-restarts", max_restarts, *(() if is_file else ("-m",))]
    command = [sys.executable, "-m", "torch.distributed.run", *options, target, *args]
    return Job([str(word) for word in command], silence)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


class Job:
    """The ranks that `torchrun` has started. Iterating gives their records, dicts, as they come.

    These are the lines of JSON that the ranks print, each with an 'event'. Beside them stand
        {"event": "restart", "reason": …, "from_step": …}   after a failure, when all ranks run again;
        {"event": "ended", "returncode": …, "reason": …}    the last one; returncode 0 where all went well.
    Once a rank has said {"event": "failed"}, those that are still there after 5 s are killed: torchrun would wait for
    half a minute where one is stopped. Iterating to the end, closing the iterator, an interrupt, `stop` and the end of
    this process end all ranks. (Where this one is killed, they end at the next record that nobody reads.) `log` holds
    the other lines.
    """

    def __init__(self, command: list[str], silence: float):
        self.silence, self.log, self._why = silence, [], ""
        self._said: queue.Queue[dict | str | None] = queue.Queue()
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        text = {"text": True, "encoding": "utf-8", "errors": "replace"}
        self.process = subprocess.Popen(command, **pipes, **text, env=os.environ | ENVIRONMENT, start_new_session=True)
        atexit.register(self.stop)
        threading.Thread(target=self._listen, daemon=True).start()  # who reads slowly must not hold up the ranks

    def _listen(self) -> None:
        pids: dict[tuple, int] = {}  # of each rank, by how many restarts there had been
        for said in (part for line in self.process.stdout for part in parts(line)):
            record = said if isinstance(said, dict) else {"event": None}
            if record["event"] == "start" and "pid" in record:
                pids[record.get("restart"), record.get("rank")] = record["pid"]
            elif record["event"] == "failed":
                same = [pid for (restart, _), pid in pids.items() if restart == record.get("restart")]
                timer = threading.Timer(GRACE, lambda pids=same: kill(set(pids) & set(children(self.process.pid))))
                timer.daemon = True
                timer.start()
            self._said.put(said)
        self._said.put(None)

    def __iter__(self) -> Iterator[dict]:
        since: list[dict] = []  # the records since the last start of all ranks
        read = len(self.log)  # the lines before it
        try:
            while (record := self._next(bool(since))) is not None:
                if isinstance(record, str):
                    self.log.append(record)
                    continue
                if record["event"] == "start" and since and record.get("restart") != since[0].get("restart"):
                    reason, since = what_happened(since, self.log[read:]), []
                    read, from_step = len(self.log), record.get("from_step")
                    reason = f"{reason}; all ranks went on from step {from_step}"
                    yield {"event": "restart", "reason": reason, "from_step": from_step}
                since.append(record)
                yield record
            code = self.process.wait()
            if not self._why:  # else it was stopped, or heard to its end before
                self._why = "all ranks have ended" if code == 0 else what_happened(since, self.log[read:])
            yield {"event": "ended", "returncode": code, "reason": self._why}
        finally:
            self.stop()

    def _next(self, has_started: bool) -> dict | str | None:
        while True:
            try:
                said = self._said.get(timeout=self.silence if has_started else None)
            except queue.Empty:
                self.stop(f"no rank said anything for {self.silence:g} s")
            else:
                if said is None:
                    self._said.put(None)  # for who iterates again
                return said

    def stop(self, why: str = "stopped") -> None:
        """End all ranks, and wait until they are gone: 5 s at most where one does not heed it."""
        atexit.unregister(self.stop)
        if self.process.poll() is None:
            self._why = self._why or why
            ranks = children(self.process.pid)
            self.process.terminate()  # torchrun tells its ranks
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
            kill([self.process.pid, *ranks, *children(self.process.pid)])
        self.process.wait()


def parts(line: str) -> Iterator[dict | str]:
    """What ranks have said in a line: a record, several where they wrote at the same time, or other words."""
    rest = line.strip()
    while rest.startswith("{"):
        try:
            record, end = json.JSONDecoder().raw_decode(rest)
        except ValueError:
            break
        if "event" not in record:
            break
        yield record
        rest = rest[end:]
    if rest:
        yield rest


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are there."""
    if Path("/proc/self/stat").exists():
        pairs = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended meanwhile
                pairs.append((path.parent.name, path.read_text(errors="replace").rpartition(")")[2].split()[1]))
    else:
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True).stdout
        pairs = [line.split() for line in listing.splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]


def kill(pids: Iterable[int]) -> None:
    """Kill processes that lead groups of their own, as torchrun and its ranks do, with their groups."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
