"""Start ranks on this machine with PyTorch's elastic launcher, which `torchrun` runs as well."""

import inspect
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from moe_lessons.support.errors import check_count, check_number, check_positive_int, first_line

PRELOADED = ["moe_lessons.parallel.training", "torch._dynamo"]  # what ranks need; AdamW imports the latter
LOOPBACK = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)  # where gloo finds the ranks of one machine
ENVIRONMENT = {
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else ranks may meet, after a restart, where those before them did
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5",  # seconds that ranks have to end by themselves
}


def launch(function: Callable, ranks: int, *args, max_restarts: int = 0, timeout: float = 60.0) -> list[Any]:
    """Run `function(*args)` on each of `ranks` processes, joined by gloo, and return the records of rank 0.

    function: a generator function, or one that returns a single record. It must be importable, and its records must be
        ones that pickle takes: a function of a module, or of a file that the notebook has written.
    max_restarts: how often all ranks start again after one has failed. The records of each start are kept.
    timeout: seconds that a rank waits for another one.

    Raise RuntimeError, with the first rank's own error, where a rank fails, dies or does not answer. All ranks have
    ended when this returns or raises, an interrupt included.

    >>> launch(dist.get_world_size, 2)
    [2]
    """
    check_positive_int("ranks", ranks)
    check_count("max_restarts", max_restarts)
    check_number("timeout", timeout, above=True)
    if getattr(function, "__module__", "__main__") == "__main__" or "<" in function.__qualname__:  # a local or a lambda
        way = "write it to a file (%%writefile my_ranks.py) and import it from there"
        raise ValueError(f"function must be importable, so that other processes find it: {way}; got {function!r}")
    has_server = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows
    if has_server:
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory(prefix="moe_lessons_", ignore_cleanup_errors=True) as folder, quiet():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=ranks,
            run_id=str(uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # any free port
            local_addr="localhost",
            max_restarts=max_restarts,
            start_method="forkserver" if has_server else "spawn",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        records = Path(folder, "records")
        try:
            elastic_launch(config, run_rank)(function, args, timeout, records)
        except ChildFailedError as error:
            rank, failure = min(error.failures.items(), key=lambda item: item[1].timestamp)
            raise RuntimeError(f"rank {rank} {what_happened(failure)}") from RuntimeError(traceback_of(failure))
        except SignalException:
            raise KeyboardInterrupt from None
        return list(read_records(records))


def run_rank(function: Callable, args: tuple, timeout: float, records: Path) -> None:
    """Run the function on this rank, and append what rank 0 says to the file `records`."""
    torch.set_num_threads(1)
    if LOOPBACK is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
        made = function(*args)
        with open(records if dist.get_rank() == 0 else os.devnull, "ab") as file:
            for record in made if inspect.isgenerator(made) else [made]:
                pickle.dump(record, file)
                file.flush()  # it outlives a rank that is killed
        dist.barrier()
        dist.destroy_process_group()
    except RuntimeError:  # perhaps since another rank has died: the launcher is to see that one first
        time.sleep(1)
        raise


def read_records(path: Path) -> Iterator[Any]:
    """Read what `run_rank` has written, up to the first record that is not whole."""
    with open(path, "rb") as file:
        while True:
            try:
                yield pickle.load(file)
            except EOFError:
                return


def what_happened(failure: ProcessFailure) -> str:
    """Say how a rank ended: its own error, the signal that killed it, or its exit code."""
    if isinstance(failure.message, dict):  # an exception, which the rank wrote down
        return f"failed: {first_line(failure.message['message'])}"
    if failure.exitcode < 0:
        return f"was killed by signal {-failure.exitcode} ({failure.signal_name()})"
    return f"ended with exit code {failure.exitcode}"


def traceback_of(failure: ProcessFailure) -> str:
    data = failure.error_file_data["message"]
    return data["extraInfo"]["py_callstack"] if isinstance(data, dict) else str(failure.message)


@contextmanager
def quiet() -> Iterator[None]:
    """Within it the launcher logs nothing: errors are raised. What it changes in this process is put back: the
    environment and, in the main thread, what signals do."""
    loggers = [logging.getLogger(name) for name in ("torch.distributed.elastic", "torch.multiprocessing")]
    levels, before = [logger.level for logger in loggers], dict(os.environ)
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers} if is_main else {}
    os.environ.update(ENVIRONMENT)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
        os.environ.clear()
        os.environ.update(before)
