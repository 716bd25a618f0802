"""Writing a file: all of it, or nothing. Reading a configuration: one object of JSON."""

import errno
import glob
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to a file beside `path`, which then takes its place; of a link, to the file that it leads to.
    Raises OSError; then `path` is as it was."""
    path = Path(os.path.realpath(path))
    if path.is_symlink():  # a loop of them
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "what is there is no regular file", str(path))
    remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # in the same folder: a move within one disk
    try:
        with open(temporary, "xb") as file:  # never through a link
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # on the disk before it takes the place of the last one
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what writers of `path` that were killed have left beside it, and this process itself."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        writer = left.name.split(".")[-2]
        if writer.isdecimal() and (int(writer) == os.getpid() or not psutil.pid_exists(int(writer))):
            left.unlink(missing_ok=True)


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Write a file of JSON lines by `write_whole`, a line for each row."""
    write_whole(path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())


def read_config(path: str | Path) -> dict[str, Any]:
    """The configuration in a file, or in the config.json of a folder. ValueError, in one sentence, where it is none."""
    path, name = Path(path), f"{path!s:.200}"
    try:
        path = path / "config.json" if path.is_dir() else path
        if path.exists() and not path.is_file():  # to read a pipe would never end
            raise OSError(errno.EINVAL, "it is neither a file nor a folder")
        # transformers writes infinity, which JSON lacks, as {"__float__": "Infinity"}
        config = json.loads(path.read_bytes(), object_hook=lambda p: float(p["__float__"]) if "__float__" in p else p)
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{name} must be JSON, and is not: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{name} must hold one JSON object, got {type(config).__name__}")
    return config
