"""What a learner predicted, answered, solved and measured: one JSON file in the user's data folder, and nowhere else.

    {"version": 1, "predictions": {"05.survivors": {"answer": "two", "when": "2026-03-01T12:00:00+00:00"}}, "quiz": …}

A record is written beside the file and put in its place as one step, under a lock, after what others have written
there is read. So a killed process, two notebooks at once or a full disk lose nothing. A second copy is kept, since
someone may damage the first. What cannot be written stays in this session, and goes with the next record.

The variable MOE_LESSONS_PROGRESS names another file, or is 'off': then nothing is read or written."""

import atexit
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
PATIENCE = 2.0  # seconds that a record waits for another process
Progress = dict[str, dict[str, dict[str, Any]]]  # section -> key -> entry

_session: Progress = {}  # what is not in the file yet
_said: set[str] = set()  # the troubles that were told
_guard = threading.RLock()  # of the two: widgets answer on threads of their own


class Future(OSError):
    """The file was written by a later version of the course."""


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
        return _save() or None


def read() -> Progress:
    """Return what the file and this session hold, by section and key."""
    with _guard:
        path, found = file(), {}
        try:
            found, damage = _read(path) if path else ({}, "")
            if damage and _save():  # it could not be mended
                _say(f"Your progress file {path} is damaged ({damage}); what can be read of it is used.")
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


def _save() -> str:
    """Put the session's entries into the file. Returns what is wrong, in a sentence, or ''."""
    path = file()
    if path is None:
        return ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            found, damage = _read(path)
            if damage:
                _say(f"Your progress file was damaged ({damage}); it is kept as {_keep(path, 'damaged')}. "
                     "What could be read of it, or of its last copy, is used.")  # fmt: skip
            if _session or damage:
                _write(path, _merge(found, _session))
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        return _say(_trouble(error, path))
    _session.clear()
    _said.difference_update([said for said in _said if said.startswith("Not saved")])
    return ""


def _lock(path: Path) -> FileLock:
    waited = any("another process" in said for said in _said)  # once in vain: not again at each click
    return FileLock(f"{path}.lock", timeout=0 if waited else PATIENCE, poll_interval=0.01)


def _read(path: Path) -> tuple[Progress, str]:
    """Read what is in the file, and what is wrong with it. Of a damaged one: its copy, and what is whole of itself."""
    found, damage = _parse(path) if path.exists() else ({}, "")
    if damage and _copy(path).exists():
        found = _merge(_parse(_copy(path))[0], found)
    return found, damage


def _parse(path: Path) -> tuple[Progress, str]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8
        return {}, "it is empty" if not path.stat().st_size else f"it is no JSON: {error}"
    if not isinstance(content, dict):
        return {}, f"it holds a {type(content).__name__} in the place of its sections"
    version = content.pop("version", VERSION)
    if isinstance(version, int) and version > VERSION:
        raise Future(f"{path} is of a later version of the course ({version}) and is left alone; update the course")
    whole = {name: part for name, part in content.items() if isinstance(part, dict)}
    whole = {name: {k: e for k, e in part.items() if isinstance(e, dict)} for name, part in whole.items()}
    wrong = [name for name, part in content.items() if whole.get(name) != part]
    return whole, f"wrong entries in {', '.join(wrong)}" if wrong else ""


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
    for target in (_copy(path), path):
        write_whole(target, _as_json(progress))


def _keep(path: Path, why: str) -> Path:
    return Path(shutil.copyfile(path, path.with_name(f"{path.stem}.{why}-{datetime.now():%Y-%m-%dT%H-%M-%S-%f}.json")))


def _copy(path: Path) -> Path:
    return path.with_name(f"{path.stem}.copy.json")


def _as_json(progress: Progress) -> bytes:
    return (json.dumps({"version": VERSION} | progress, indent=1) + "\n").encode()


def _plain(value: Any) -> Any:
    return value.item() if getattr(value, "size", None) == 1 or getattr(value, "ndim", None) == 0 else str(value)


def _trouble(error: BaseException, path: Path | None) -> str:
    kept = "Your answers stay in this session and are saved once that is mended."
    if isinstance(error, Future):
        return f"Not saved: {error}."
    if isinstance(error, Timeout):
        return f"Not saved yet: another process holds {path}.lock; end it if it hangs. {kept}"
    return f"Not saved yet: {path} cannot be written or read: {getattr(error, 'strerror', None) or error}. {kept}"


def _say(trouble: str) -> str:
    if trouble not in _said:
        _said.add(trouble)
        print(trouble, file=sys.stderr)
    return trouble


@atexit.register
def _last_try() -> None:
    if _session:
        _said.clear()
        _save()
