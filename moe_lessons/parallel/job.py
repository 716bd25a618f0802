"""Start ranks as an engineer does, by torchrun, from Python: read what they say, and end them whatever happens."""

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil

from moe_lessons.parallel.faults import what_happened
from moe_lessons.support.errors import check_count, check_positive_int

GRACE = 5.0  # seconds that ranks have to end by themselves, before they are killed
ENVIRONMENT = {
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else ranks may meet, after a restart, where those before them did
    "OMP_NUM_THREADS": "1",
}


def torchrun(target: str, ranks: int, *args, max_restarts: int = 0) -> "Job":
    """Start `ranks` ranks of a module or a script on this machine, by torchrun on a free port; return them as a `Job`.

    target: a dotted name, as 'moe_lessons.parallel.training', or a .py file. args: its arguments.
    max_restarts: how often all ranks are started again after one has failed.

    Raises ValueError where the target is not there.
    """
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

    These are the lines of JSON that the ranks print, each with an 'event'. Beside them stand
        {"event": "restart", "reason": …, "from_step": …}   after a failure, when all ranks run again;
        {"event": "ended", "returncode": …, "reason": …}    the last one; returncode 0 where all went well.
    Once a rank has said {"event": "failed"}, those that are still there after 5 s are killed: torchrun would wait for
    half a minute where one is stopped. Iterating to the end, closing the iterator, an interrupt, `stop` and the end of
    this process end all ranks. (Where this one is killed, they end at the next record that nobody reads.) `log` holds
    the other lines.
    """

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
