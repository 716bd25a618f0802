"""Start ranks from a notebook: as processes of this machine, by a server that has imported torch once."""

import inspect
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

from moe_lessons.parallel.faults import first_cause
from moe_lessons.support.errors import check_number, check_positive_int

PRELOADED = ["moe_lessons.parallel.training", "torch._dynamo"]  # what ranks need; AdamW imports the latter
LOOPBACK = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)  # where gloo finds the ranks of one machine


def launch(function: Callable, ranks: int, *args, timeout: float = 10.0) -> Iterator[Any]:
    """Run `function(*args)` on each of `ranks` processes, joined by gloo, and yield what it yields on rank 0.

    function: a generator function, or one that returns a single record. It must be importable, and so must what it
        yields: a function of a module, or of a file that the notebook has written.
    timeout: seconds that a rank waits for another one, or for you to take its records.

    Raises RuntimeError where a rank fails, dies or does not answer, with the rank's own error, and ends the others; the
    tracebacks are its cause. All ranks are ended when the iterator is closed, too, or its caller interrupted. The first
    call takes a few seconds.

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
