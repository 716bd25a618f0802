"""Progress: whatever happens to the file or to the process, nothing that was recorded is lost."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from filelock import FileLock

from moe_lessons.support import progress

NEEDS_PIPES = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
GOOD = {"04.speed": {"value": 2.0}}
DAMAGED = {
    "truncated": b'{"version": 1, "quiz": {"07.a": {"first"',
    "no UTF-8": b"\xff\xfe\x00",
    "nested without end": b"[" * 200_000,
    "an entry that is a number": b'{"version": 1, "quiz": {"07.b": 3}, "figures": {"04.speed": {"value": 2.0}}}',
}


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "data" / "progress.json"
    monkeypatch.setenv("MOE_LESSONS_PROGRESS", str(path))
    return path


def content(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def test_what_is_recorded_is_there_in_the_next_session(path, new_session):
    assert progress.record("quiz", "07.survivors", first="a", last="b") is None
    new_session()
    progress.record("quiz", "07.survivors", last="c")
    entry = progress.read()["quiz"]["07.survivors"]
    assert entry.pop("when").endswith("+00:00") and entry == {"first": "a", "last": "c"}  # what is not given stays
    progress.record("figures", "04.all", a=np.float32(0.5), b=torch.tensor(3))
    entry = content(path)["figures"]["04.all"]
    assert (entry["a"], entry["b"]) == (0.5, 3)


@pytest.mark.parametrize("name, value", [("MOE_LESSONS_PROGRESS", "off"), ("MOE_LESSONS_STATIC", "1")])
def test_switched_off_it_lives_in_this_session_only(path, monkeypatch, new_session, name, value):
    progress.record("quiz", "07.a", last="old")
    before = path.read_bytes()
    monkeypatch.setenv(name, value)
    assert progress.file() is None and progress.read()["quiz"] == {}
    progress.record("quiz", "07.b", last="new")
    assert progress.read()["quiz"]["07.b"]["last"] == "new" and path.read_bytes() == before
    assert progress.reset() is None and progress.read()["quiz"] == {} and path.read_bytes() == before


def test_export_writes_a_new_file_and_reset_forgets_everything_but_a_dated_copy(path, tmp_path, new_session):
    assert progress.reset() is None
    progress.record("quiz", "07.a", last="b")
    there = progress.export(tmp_path / "mine.json")
    assert content(there)["quiz"]["07.a"]["last"] == "b" and content(there)["version"] == 1
    with pytest.raises(FileExistsError, match="mine.json"):
        progress.export(there)
    copy = progress.reset()
    assert copy.parent == path.parent and content(copy)["quiz"]["07.a"]["last"] == "b"
    new_session()
    assert not any(progress.read().values())


LIGHT = """
import os, sys, types
import moe_lessons
sys.modules["moe_lessons.course"] = course = types.ModuleType("moe_lessons.course")  # the whole has torch
course.__path__ = [os.path.join(*moe_lessons.__path__, "course")]
from moe_lessons.support import progress
"""
WRITER = LIGHT + """
for number in range(int(sys.argv[2])):
    assert progress.record("figures", f"{sys.argv[1]}.{number}", value=number, filling="x" * 400) is None
    print(number, flush=True)
"""  # fmt: skip


def writer(name: str, times: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WRITER, name, str(times)], stdout=subprocess.PIPE, text=True)


def test_kills_in_the_middle_of_a_write_lose_nothing(path, capsys):
    for kill in range(12):
        process = writer(f"{kill:02}", 10**6)
        for line in process.stdout:
            if int(line) == kill:
                break
        process.kill()
        told = [line, *process.stdout.read().split()][-1]
        process.wait()
        kept = [key for key in progress.read()["figures"] if key.startswith(f"{kill:02}")]
        assert len(kept) >= int(told) + 1
    progress.record("quiz", "07.a", last="a")
    assert capsys.readouterr().err == "" and sorted(path.parent.iterdir()) == [path, Path(f"{path}.lock")]


def test_two_writers_at_once_lose_nothing(path):
    writers = [writer(name, 100) for name in ("07", "08")]
    with ThreadPoolExecutor(9) as threads:
        threads.map(lambda i: progress.record("quiz", f"07.c{i}"), range(9))
    assert [process.communicate(timeout=100) and process.returncode for process in writers] == [0, 0]
    found = progress.read()
    assert len(found["quiz"]) == 9 and len(found["figures"]) == 200


def full(*_):
    raise OSError(28, "No space left on device")


TROUBLES = {
    "could not be acquired": lambda path: FileLock(f"{path}.lock"),
    "No space left on device": lambda path: mock.patch.object(os, "fsync", full),
}


@pytest.mark.parametrize("words", TROUBLES)
def test_where_the_file_cannot_be_written_it_stays_whole_and_the_answers_come_later(path, monkeypatch, capsys, words):
    monkeypatch.setattr(progress, "PATIENCE", 0.1)
    progress.record("quiz", "07.a", last="a")
    before = path.read_bytes()
    with TROUBLES[words](path):
        for answer in "bcd":
            assert words in progress.record("quiz", "07.b", last=answer)
        assert path.read_bytes() == before and progress.read()["quiz"]["07.b"]["last"] == "d"
    assert progress.record("quiz", "07.e", last="e") is None
    assert [entry["last"] for entry in content(path)["quiz"].values()] == ["a", "d", "e"]
    assert capsys.readouterr().err.count("Not saved yet") == 3


@pytest.mark.parametrize(
    "taken",
    [
        lambda path: path.mkdir(parents=True),
        lambda path: path.parent.write_text(""),
        pytest.param(lambda path: path.parent.mkdir() or os.mkfifo(path), marks=NEEDS_PIPES),
        lambda path: path.parent.mkdir() or path.write_text('{"version": 2, "quiz": [{"07.b": 3}]}'),
    ],
)
def test_a_place_where_no_file_can_be_is_named_and_waited_for_by_nobody(path, taken):
    taken(path)
    assert "Not saved yet" in progress.record("quiz", "07.a", last="a")
    assert progress.read()["quiz"]["07.a"]["last"] == "a"


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_kept_aside_and_what_is_whole_of_it_used(path, capsys, damage):
    path.parent.mkdir()
    path.write_bytes(DAMAGED[damage])
    found = progress.read()
    assert found["figures"] == (GOOD if b"speed" in DAMAGED[damage] else {})
    (aside,) = path.parent.glob("*damaged*")
    assert aside.read_bytes() == DAMAGED[damage]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("Your progress file was damaged") and str(aside) in said
    progress.record("quiz", "07.d", last="d")
    assert len(list(path.parent.glob("*damaged*"))) == 1 and capsys.readouterr().err == ""
