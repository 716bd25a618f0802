"""Progress: whatever happens to the file or to the process, nothing that was recorded is lost."""

import json
import os
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from filelock import FileLock
from platformdirs import user_data_path

from moe_lessons.course import progress

KILLS = int(os.environ.get("KILLS", 200))  # of a process that writes
DAMAGED = {
    "empty": b"",
    "truncated": b'{"version": 1, "quiz": {"05.a": {"first"',
    "no UTF-8": b"\xff\xfe\x00",
    "a list": b"[1, 2]",
    "nested without end": b"[" * 100_000,
    "a section that is a list": b'{"version": 1, "quiz": [1], "figures": {"07.speed": {"value": 2.0}}}',
    "an entry that is a number": b'{"version": 1, "quiz": {"05.b": 3}, "figures": {"07.speed": {"value": 2.0}}}',
}


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "data" / "progress.json"
    monkeypatch.setenv("MOE_LESSONS_PROGRESS", str(path))
    return path


def content(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def out_of_space(*_):
    raise OSError(28, "No space left on device")


def test_what_is_recorded_is_there_in_the_next_session_and_what_cannot_be_kept_is_said(path, new_session, capsys):
    assert progress.record("quiz", "05.survivors", first="a", last="b") is None
    progress.record("figures", "07.speed", value=2.5)
    new_session()
    progress.record("quiz", "05.survivors", last="c")
    found = progress.read()
    assert set(found) == set(progress.SECTIONS)
    assert found["figures"]["07.speed"]["value"] == 2.5
    entry = found["quiz"]["05.survivors"]
    assert entry.pop("when").endswith("+00:00") and entry == {"first": "a", "last": "c"}  # what is not given stays
    assert content(path)["version"] == 1
    progress.record("figures", "07.all", a=np.float32(0.5), b=torch.tensor(3), c=np.arange(2), d=Path("x"))
    entry = content(path)["figures"]["07.all"]
    assert (entry["a"], entry["b"], entry["c"], entry["d"]) == (0.5, 3, "[0 1]", "x")
    assert "cannot be written as JSON" in progress.record("quiz", "05.a", last={(1, 2): 3})
    assert capsys.readouterr().err.count("\n") == 1 and "05.a" not in content(path)["quiz"]


@pytest.mark.parametrize("name, value", [("MOE_LESSONS_PROGRESS", "off"), ("MOE_LESSONS_STATIC", "1")])
def test_switched_off_it_lives_in_this_session_only(path, monkeypatch, new_session, name, value):
    progress.record("quiz", "05.a", last="old")
    before = path.read_bytes()
    monkeypatch.setenv(name, value)
    assert progress.file() is None and progress.read()["quiz"] == {}
    progress.record("quiz", "05.b", last="new")
    assert progress.read()["quiz"]["05.b"]["last"] == "new" and path.read_bytes() == before
    assert progress.reset() is None and progress.read()["quiz"] == {} and path.read_bytes() == before


def test_without_the_variable_it_is_in_the_users_data_folder(monkeypatch):
    monkeypatch.delenv("MOE_LESSONS_PROGRESS")
    assert progress.file() == (user_data_path("moe_lessons") / "progress.json").resolve()


def test_export_writes_a_new_file_with_everything(path, tmp_path, monkeypatch):
    progress.record("quiz", "05.a", last="b")
    there = progress.export(tmp_path / "mine.json")
    assert content(there)["quiz"]["05.a"]["last"] == "b" and content(there)["version"] == 1
    before = there.read_bytes()
    with pytest.raises(FileExistsError, match="mine.json"):
        progress.export(there)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        progress.export(tmp_path / "nowhere" / "mine.json")
    assert there.read_bytes() == before
    with monkeypatch.context() as full, pytest.raises(OSError, match="No space left"):
        full.setattr(os, "fsync", out_of_space)
        progress.export(tmp_path / "half.json")
    assert not list(tmp_path.glob("*half*"))


def test_reset_forgets_everything_and_keeps_a_dated_copy(path, new_session):
    assert progress.reset() is None
    progress.record("quiz", "05.a", last="b")
    copy = progress.reset()
    assert copy.parent == path.parent and content(copy)["quiz"]["05.a"]["last"] == "b"
    assert not any(progress.read().values())
    path.write_bytes(b"")  # nor does it come back from the second copy
    new_session()
    assert not any(progress.read().values())


LIGHT = """
import os, random, signal, sys, time, types
import moe_lessons
sys.modules["moe_lessons.course"] = course = types.ModuleType("moe_lessons.course")  # the whole has torch
course.__path__ = [os.path.join(*moe_lessons.__path__, "course")]
from moe_lessons.course import progress
"""
NURSERY = """

    def child(first, done):
        for number in range(first, first + 10**6):
            progress.record("figures", f"00.{number % 10}", value=number, filling="x" * random.randrange(400))
            os.write(done, number.to_bytes(4, "big"))

    number = 0
    for i in range(int(sys.argv[1])):
        done, end = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(number + 1, end)
        os.close(end)
        os.read(done, 4)  # it writes
        time.sleep(random.uniform(0, 0.002))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        acknowledged = number + 1
        while told := os.read(done, 4 * 1000):
            acknowledged = int.from_bytes(told[-4:], "big")
        os.close(done)
        found = progress.read()["figures"]
        assert not progress._said, progress._said
        number = max(entry["value"] for entry in found.values())
        assert acknowledged <= number <= acknowledged + 1, (acknowledged, number)
        assert set(range(max(number - 9, 1), number + 1)) == {entry["value"] for entry in found.values()}
    print(sum(name.endswith(".tmp") for name in os.listdir(os.path.dirname(sys.argv[2]))))
"""


def test_kills_in_the_middle_of_a_write_lose_nothing(tmp_path):
    nurseries = []  # four at once, since they wait for the disk most of the time
    for path in (tmp_path / name / "progress.json" for name in "abcd"):
        command = [sys.executable, "-c", LIGHT + textwrap.dedent(NURSERY), str(KILLS // 4), path]
        environment = os.environ | {"MOE_LESSONS_PROGRESS": str(path)}
        nurseries.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    hits = [nursery.communicate(timeout=300)[0] for nursery in nurseries]
    assert [nursery.returncode for nursery in nurseries] == [0] * 4
    assert sum(map(int, hits)) > KILLS / 20, "too few of them hit a write"


def test_two_writers_at_once_lose_nothing(path):
    code = LIGHT + "progress.PATIENCE = 50\n"
    code += "for i in range(100): assert not progress.record('quiz', f'05.{sys.argv[1]}{i}', last=i)"
    writers = [subprocess.Popen([sys.executable, "-c", code, name]) for name in "ab"]
    with ThreadPoolExecutor(9) as threads:
        threads.map(lambda i: progress.record("quiz", f"05.c{i}"), range(9))
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert len(progress.read()["quiz"]) == 209


@contextmanager
def read_only(path):
    path.chmod(0o444)
    yield
    path.chmod(0o644)


TROUBLES = {
    "another process holds": lambda path: FileLock(f"{path}.lock"),
    "No space left on device. Your answers stay in this": lambda path: mock.patch.object(os, "fsync", out_of_space),
    "No space left on device": lambda path: mock.patch.object(os, "replace", out_of_space),
    "the file is read-only": read_only,
}


@pytest.mark.parametrize("words", TROUBLES)
def test_where_the_file_cannot_be_written_it_stays_whole_and_the_answers_come_later(path, monkeypatch, capsys, words):
    monkeypatch.setattr(progress, "PATIENCE", 0.3)
    progress.record("quiz", "05.a", last="a")
    before, start = path.read_bytes(), time.monotonic()
    with TROUBLES[words](path):
        for answer in "bcdefghijk":
            assert words in progress.record("quiz", "05.b", last=answer)
        assert time.monotonic() - start < 1.5  # it is waited for once
        assert path.read_bytes() == before and progress.read()["quiz"]["05.b"]["last"] == "k"
    assert progress.record("quiz", "05.e", last="e") is None
    assert [entry["last"] for entry in content(path)["quiz"].values()] == ["a", "k", "e"]
    assert capsys.readouterr().err.count("\n") == 1
    with TROUBLES[words](path):
        progress.record("quiz", "05.f", last="f")
    assert capsys.readouterr().err.count("\n") == 1  # the next trouble is told again


@pytest.mark.parametrize("taken", [lambda path: path.mkdir(parents=True), lambda path: path.parent.write_text("")])
def test_a_place_where_no_file_can_be(path, capsys, taken):
    taken(path)
    for answer in "abc":
        assert "Not saved yet" in progress.record("quiz", "05.a", last=answer)
    assert progress.read()["quiz"]["05.a"]["last"] == "c" and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("by", ["load", "record"])
def test_a_damaged_file_is_kept_aside_and_its_second_copy_used(path, new_session, capsys, damage, by):
    progress.record("quiz", "05.a", first="a", last="b")
    path.write_bytes(DAMAGED[damage])
    new_session()
    found = progress.read() if by == "load" else progress.record("quiz", "05.c", last="c") or progress.read()
    assert found["quiz"]["05.a"]["last"] == "b" and (by == "load" or found["quiz"]["05.c"]["last"] == "c")
    assert found["figures"] == ({"07.speed": {"value": 2.0}} if b"speed" in DAMAGED[damage] else {})
    (aside,) = path.parent.glob("*damaged*")
    assert aside.read_bytes() == DAMAGED[damage]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("Your progress file was damaged") and str(aside) in said
    assert content(path)["quiz"]["05.a"]["last"] == "b"
    progress.record("quiz", "05.d", last="d")
    assert len(list(path.parent.glob("*damaged*"))) == 1 and capsys.readouterr().err == ""


def test_a_file_from_the_future_is_never_written_over(path, capsys):
    path.parent.mkdir()
    path.write_text('{"version": 2, "quiz": {"05.a": {"last": "z"}}}')
    before = path.read_bytes()
    for answer in "abc":
        assert "of a later version of the course (2)" in progress.record("quiz", "05.b", last=answer)
    assert progress.read()["quiz"]["05.b"]["last"] == "c"
    for ask in (progress.reset, lambda: progress.export(path.with_name("mine.json"))):  # it would be a part only
        with pytest.raises(OSError, match=r"is of a later version of the course \(2\) and is left alone"):
            ask()
    assert path.read_bytes() == before and list(path.parent.glob("*.json")) == [path]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "update the course" in said
