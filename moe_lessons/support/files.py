"""Writing a file: all of it, or nothing."""

import errno
import os
from pathlib import Path


def write_whole(path: Path, content: bytes, follow: bool = True) -> None:
    """Write `content` to a file beside `path`, which then takes its place. Raises OSError; then `path` is as it was.

    follow: whether of a link the file that it leads to is written; else the link is replaced."""
    path = Path(os.path.realpath(path)) if follow else path
    if follow and path.is_symlink():
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


def write_inside(folder: Path, name: str, content: bytes) -> None:
    """Write a file below `folder`, and nowhere else. Raises OSError also where a link on the way leads elsewhere."""
    path = folder.resolve() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent.resolve() != path.parent:
        raise OSError(errno.ELOOP, "a link leads out of the folder", str(path.parent))
    write_whole(path, content, follow=False)
