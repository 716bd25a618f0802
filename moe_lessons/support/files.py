"""Writing a file: all of it, or nothing."""

import errno
import os
from pathlib import Path


def can_be_written(path: Path) -> bool:
    return (path.is_file() or not path.exists()) and os.access(path.absolute().parent, os.W_OK)


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to a file beside `path`, which then takes its place. Raises OSError; then `path` is as it was."""
    path = path.resolve()  # of a link, the file that it leads to
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "what is there is no regular file", str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # in the same folder: a move within one disk
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # on the disk before it takes the place of the last one
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
