"""Writing a file: all of it, or nothing."""

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to a file beside `path`, which then takes its place; of a link, to the file that it leads to.
    Raises OSError; then `path` is as it was."""
    path = Path(os.path.realpath(path))
    if path.is_symlink():  # a loop of them
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "what is there is no regular file", str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # in the same folder: a move within one disk
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb") as file:  # never through a link
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # on the disk before it takes the place of the last one
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Write a file of JSON lines by `write_whole`, a line for each row."""
    write_whole(path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
