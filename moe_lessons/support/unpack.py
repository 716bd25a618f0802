"""The lessons that an installed package carries, copied to a folder of the learner's, where their edits stay."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from moe_lessons.support.files import write_inside

MANIFEST = ".moe_lessons.json"  # in the learner's folder: of each name, the fingerprint of what was copied last
UNREADABLE = ValueError, TypeError, KeyError, RecursionError  # of JSON that somebody has changed


def unpack(source: Path, folder: Path) -> list[str]:
    """Copy the lessons in `source` to `folder`; return what its owner must know, a sentence each.

    What is missing is copied, and what was not changed becomes the newer one. What was changed stays, as does a link,
    and the newer comes beside it, once. After an OSError (a link may lead out) the next call goes on from there."""
    folder.mkdir(parents=True, exist_ok=True)
    before, said = {}, []  # before: unknown, so every file that differs counts as changed
    if (folder / MANIFEST).is_file():
        with suppress(*UNREADABLE):
            before = dict(json.loads((folder / MANIFEST).read_text("utf-8")))
    laid = dict(before)
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        name, new, target = path.relative_to(source).as_posix(), fingerprint(path), path.relative_to(source)
        now = fingerprint(folder / target)
        if now and before.get(name) == new:
            continue
        while now not in ("", new, before.get(target.as_posix())):  # the learner has changed it
            target = target.with_name(f"{target.stem}.new{target.suffix}")
            now = fingerprint(folder / target)
        laid[name] = laid[target.as_posix()] = new
        if now != new:
            write_inside(folder, target.as_posix(), path.read_bytes())
            what = "the newer one now" if now else "a fresh copy: it was missing" if name in before else "new"
            if target.as_posix() != name:
                said.append(f"{name} stays as you changed it; the newer one is {target.name}, beside it.")
            elif before:
                said.append(f"{name} is {what}.")
    if laid != before:
        write_inside(folder, MANIFEST, json.dumps(laid, indent=1).encode())
    return said if before else [f"The lessons are in {folder} now. What you change there stays.", *said]


def fingerprint(path: Path) -> str:
    """Hash a file ('' if there is none); of a notebook what a learner writes: who only runs it does not change it."""
    if path.is_symlink() or (path.exists() and not path.is_file()):  # reading a pipe would never end
        return "no file"
    if not path.exists():
        return ""
    content = path.read_bytes()
    if path.suffix == ".ipynb":
        with suppress(*UNREADABLE):
            cells = json.loads(content)["cells"]
            written = [(cell["cell_type"], "".join(cell["source"]), cell.get("attachments")) for cell in cells]
            content = json.dumps(written, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()
