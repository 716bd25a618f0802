"""The progress of a learner, in one JSON file in the user's data folder and nowhere else.

    {"version": 1, "predictions": {"05.survivors": {"answer": "two", "when": "2026-03-01T12:00:00+00:00"}}, "quiz": …}

A record is written beside the file and put in its place as one step, under a lock, after what others have written
there is read. So a killed process, two notebooks at once or a full disk lose nothing. A file that is damaged is kept
aside. What cannot be written stays in this session, and goes with the next record.

The variable MOE_LESSONS_PROGRESS names another file, or is 'off': then nothing is read or written."""

import errno
import json
import os
import shutil
import stat
import sys
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_data_path

from moe_lessons.support.files import write_whole
from moe_lessons.support.static import static_mode

VERSION, SECTIONS = 1, ("predictions", "quiz", "exercises", "figures")
PATIENCE = 5.0  # seconds that a record waits for another process
Progress = dict[str, dict[str, dict[str, Any]]]  # section -> key -> entry

_session: Progress = {}  # what is not in the file yet
_said: set[str] = set()  # the troubles that were told
_guard = threading.RLock()  # of the two: widgets answer on threads of their own


def record(section: str, key: str, **entry: Any) -> str | None:
    """Keep what a learner did, with the time; fields of the same key that are not given stay.

    section: one of `SECTIONS`. key: lesson, dot, name, such as '05.survivors'. It never raises: what cannot be
    written stays in this session. Returns what is wrong, in a sentence, or None."""
    try:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        entry = json.loads(json.dumps(entry, default=_plain)) | {"when": now}
    except (TypeError, ValueError, RecursionError) as error:
        return _say(f"{key} was not recorded: it cannot be written as JSON: {error}")
    with _guard:
        entries = _session.setdefault(section, {})
        entries[str(key)] = entries.get(str(key), {}) | entry
        return _save()


def read() -> Progress:
    """Return what the file and this session hold, by section and key."""
    with _guard:
        path, found = file(), {}
        try:
            found, damage = _read(path) if path else ({}, "")
            if damage:
                _save()  # which keeps it aside
        except OSError as error:
            _say(_trouble(error, path))
        return {section: {} for section in SECTIONS} | _merge(found, _session)


def export(path: str | Path) -> Path:
    """Write all to a new file. Raises OSError where that cannot be, where it exists, or what is kept cannot be read."""
    path, kept = Path(path).expanduser().absolute(), file()
    if kept:
        _read(kept)
    if os.path.lexists(path):  # a link too
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    write_whole(path, _as_json(read()), follow=False)
    return path


def reset() -> Path | None:
    """Forget everything; a dated copy stays beside the file. Returns its path, or None where there was no file.

    Raises OSError where the file cannot be written; then nothing is forgotten."""
    with _guard:
        path, copy = file(), None
        if path and path.exists():
            with _lock(path):
                _read(path)  # a later version's file is left alone
                copy = _keep(path, "until")
                _write(path, {})
        _session.clear()
        return copy


def file() -> Path | None:  # None where it is off
    name = os.environ.get("MOE_LESSONS_PROGRESS", "")
    if name == "off" or static_mode():
        return None
    return Path(os.path.realpath(os.path.expanduser(name) or user_data_path("moe_lessons") / "progress.json"))


def _save() -> str | None:
    """Put the session's entries into the file. Returns what is wrong, in a sentence, or None."""
    path = file()
    if path is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            found, damage = _read(path)
            if damage:
                _say(f"Your progress file was damaged ({damage}): it is kept as {_keep(path, 'damaged')}.")
            if _session or damage:
                _write(path, _merge(found, _session))
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        return _say(_trouble(error, path))
    _session.clear()
    _said.difference_update([said for said in _said if said.startswith("Not saved")])
    return None


def _lock(path: Path) -> FileLock:
    return FileLock(f"{path}.lock", timeout=PATIENCE, poll_interval=0.01)


def _read(path: Path) -> tuple[Progress, str]:
    """Read what is whole of the file, and what is wrong with it. Raises OSError where it is not to be written over."""
    if not path.exists():
        return {}, ""
    if not path.is_file():  # reading a pipe would never end
        raise OSError(errno.EINVAL, "it is no regular file")
    try:
        content = dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError, RecursionError) as error:  # no JSON, no UTF-8, no sections
        return {}, f"it is no JSON: {error}" if path.stat().st_size else "it is empty"
    version = content.pop("version", VERSION)
    if isinstance(version, int) and version > VERSION:
        raise OSError(errno.EINVAL, f"it is of a later version of the course ({version}) and left alone; update yours")
    sections = {name: part for name, part in content.items() if isinstance(part, dict)}
    whole = {name: {k: e for k, e in part.items() if isinstance(e, dict)} for name, part in sections.items()}
    return whole, "" if whole == content else "entries that are none"


def _merge(*parts: Progress) -> Progress:
    merged: Progress = {}
    for part in parts:
        for section, entries in part.items():
            target = merged.setdefault(section, {})
            target |= {key: target.get(key, {}) | entry for key, entry in entries.items()}
    return merged


def _write(path: Path, progress: Progress) -> None:
    if path.exists() and not path.stat().st_mode & stat.S_IWUSR:  # else it would be replaced
        raise PermissionError(errno.EACCES, "the file is read-only")
    write_whole(path, _as_json(progress), follow=False)


def _keep(path: Path, why: str) -> Path:
    return Path(shutil.copyfile(path, path.with_name(f"{path.stem}.{why}-{datetime.now():%Y-%m-%dT%H-%M-%S-%f}.json")))


def _as_json(progress: Progress) -> bytes:
    return (json.dumps({"version": VERSION} | progress, indent=1) + "\n").encode()


def _plain(value: Any) -> Any:  # of numpy or torch
    return value.item() if getattr(value, "size", None) == 1 or getattr(value, "ndim", None) == 0 else str(value)


def _trouble(error: BaseException, path: Path | None) -> str:
    why = "another process holds its lock" if isinstance(error, Timeout) else getattr(error, "strerror", None) or error
    return f"Not saved yet: {path}: {why}. Your answers stay in this session and are saved once that is mended."


def _say(trouble: str) -> str:
    if trouble not in _said:
        _said.add(trouble)
        print(trouble, file=sys.stderr)
    return trouble
