"""The lessons that an installed package carries, copied to a folder of the learner's, where their edits stay."""

import hashlib
import json
from itertools import chain, count
from pathlib import Path

from moe_lessons.support.files import write_whole

MANIFEST = ".moe_lessons.json"  # in the learner's folder: of each name, the fingerprint of what was copied last


def unpack(source: Path, folder: Path) -> list[str]:
    """Copy the lessons in `source` to `folder`; return what its owner must know, a sentence each.

    What is missing is copied, and what was not changed becomes the newer one. What was changed stays, and the newer
    comes beside it, once. Raises OSError where that cannot be written; the next call goes on from there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before, said = read_manifest(folder), []
    laid, files = dict(before), sorted(path for path in source.rglob("*") if path.is_file())
    for path in files:
        name, new = path.relative_to(source).as_posix(), fingerprint(path)
        target, last = folder / name, before.get(name)
        now = fingerprint(target) if target.exists() else None
        laid[name] = new
        if now in (None, last) and now != new:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, path.read_bytes())
            what = "the newer one now" if now else "new" if last is None else "a fresh copy: it was missing"
            said += [f"{name} is {what}."] if before else []
        elif now != new != last:
            beside = free_name(target, before)
            write_whole(beside, path.read_bytes())
            laid[beside.relative_to(folder).as_posix()] = new
            said.append(f"{name} stays as you changed it; the newer one is {beside.name}, beside it.")
    if laid != before:
        write_whole(folder / MANIFEST, json.dumps(laid, indent=1).encode())
    return said if before else [f"The lessons are in {folder} now. What you change there stays.", *said]


def read_manifest(folder: Path) -> dict[str, str]:
    """What was copied last; nothing where that is unknown. Then every file that differs counts as changed."""
    try:
        laid = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return laid if isinstance(laid, dict) else {}


def fingerprint(path: Path) -> str:
    """A hash of a file; of a notebook, of what a learner writes in it: who only runs a lesson does not change it."""
    content = path.read_bytes()
    if path.suffix == ".ipynb":
        try:
            cells = json.loads(content)["cells"]
            written = [(cell["cell_type"], "".join(cell["source"]), cell.get("attachments")) for cell in cells]
            content = json.dumps(written, sort_keys=True).encode()
        except (ValueError, KeyError, TypeError):
            pass  # it is no notebook any more
    return hashlib.sha256(content).hexdigest()


def free_name(target: Path, laid: dict[str, str]) -> Path:
    """A name beside `target`: 05.new.ipynb, or 05.new2.ipynb where a learner has changed that one, too."""
    for number in chain([""], count(2)):
        beside = target.with_name(f"{target.stem}.new{number}{target.suffix}")
        if not beside.exists() or fingerprint(beside) in laid.values():
            return beside
