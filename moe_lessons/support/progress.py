"""The progress of a learner, in one JSON file in the user's data folder and nowhere else.

    {"version": 1, "predictions": {"07.survivors": {"answer": "two", "when": "2026-03-01T12:00:00+00:00"}}, "quiz": …}

A record is written beside the file and put in its place as one step, under a lock, after what others have written
there is read. So a killed process, two notebooks at once or a full disk lose nothing. A file that is damaged is kept
aside. What cannot be written stays in this session, and goes with the next record.

The variable MOE_LESSONS_PROGRESS names another file, or is 'off': then nothing is read or written."""

import errno
import json
import os
import shutil
import sys
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock
from platformdirs import user_data_path

from moe_lessons.support.files import write_whole
from moe_lessons.support.static import static_mode

VERSION, SECTIONS = 1, ("predictions", "quiz", "exercises", "figures")
PATIENCE = 5.0  # seconds that a record waits for another process
Progress = dict[str, dict[str, dict[str, Any]]]  # section -> key -> entry

_session: Progress = {}  # what is not in the file yet
_guard = threading.RLock()  # of it: widgets answer on threads of their own


def record(section: str, key: str, **entry: Any) -> str | None:
    """Keep what a learner did, with the time; fields of the same key that are not given stay.

    section: one of `SECTIONS`. key: lesson, dot, name, such as '07.survivors'. What cannot be written stays in this
    session. Say what is wrong, and return it, or None."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    entry = json.loads(json.dumps(entry, default=float)) | {"when": now}  # float: of a number of numpy or torch
    with _guard:
        entries = _session.setdefault(section, {})
        entries[key] = entries.get(key, {}) | entry
        return _save()


def read() -> Progress:
    """Return what the file and this session hold, by section and key."""
    with _guard:
        path, found = file(), {}
        try:
            found, damage = _read(path) if path else ({}, "")
            if damage:
                _save()  # which keeps it aside
        except OSError:  # the next record says so
            pass
        return {section: {} for section in SECTIONS} | _merge(found, _session)


def export(path: str | Path) -> Path:
    """Write all to a new file. Raises OSError where that cannot be, or where it exists."""
    path = Path(path).expanduser().absolute()
    with open(path, "xb") as new:
        new.write(_as_json(read()))
    return path


def reset() -> Path | None:
    """Forget everything; a dated copy stays beside the file. Return its path, or None where there was no file.

    Raises OSError where the file cannot be written; then nothing is forgotten."""
    with _guard:
        path, copy = file(), None
        if path and path.exists():
            with _lock(path):
                copy = _keep(path, "until")
                write_whole(path, _as_json({}))
        _session.clear()
        return copy


def file() -> Path | None:  # None where it is off
    name = os.environ.get("MOE_LESSONS_PROGRESS", "")
    if name == "off" or static_mode():
        return None
    return Path(os.path.realpath(os.path.expanduser(name) or user_data_path("moe_lessons") / "progress.json"))


def _save() -> str | None:
    """Put the session's entries into the file. Say what is wrong, and return it, or None."""
    path, trouble = file(), None
    if path is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            found, damage = _read(path)
            if damage:
                aside = _keep(path, "damaged")
                print(f"Your progress file was damaged ({damage}): it is kept as {aside}.", file=sys.stderr)
            if _session or damage:
                write_whole(path, _as_json(_merge(found, _session)))
        _session.clear()
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        why = getattr(error, "strerror", None) or error
        trouble = f"Not saved yet: {path}: {why}. Your answers stay in this session and are saved once that is mended."
        print(trouble, file=sys.stderr)
    return trouble


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
        return {}, f"it is no JSON: {error}"
    version = content.pop("version", VERSION)
    if isinstance(version, int) and version > VERSION:
        raise OSError(errno.ENOTSUP, f"it is of version {version}, and this course reads version {VERSION}: update it")
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


def _keep(path: Path, why: str) -> Path:
    return Path(shutil.copyfile(path, path.with_name(f"{path.stem}.{why}-{datetime.now():%Y-%m-%dT%H-%M-%S-%f}.json")))


def _as_json(progress: Progress) -> bytes:
    return (json.dumps({"version": VERSION} | progress, indent=1) + "\n").encode()
