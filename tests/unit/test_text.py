"""Generated text: every domain is what it says, train and held-out parts share nothing, bad files are refused."""

import importlib.util
import json
import random
import re
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from moe_lessons.datafiles import data_path
from moe_lessons.nn import MoE
from moe_lessons.tasks.text import (
    BYTE_CLASSES,
    DOMAINS,
    HELD_OUT_BYTES,
    PEOPLE,
    TO_GREEK,
    VERBS,
    WRITERS,
    TextTask,
    byte_class,
    decode,
    encode,
    make_text,
)
from moe_lessons.training import Run

domains = pytest.mark.parametrize("domain", DOMAINS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pieces(domain: str, num: int = 300) -> list[str]:
    """Sentences, programs, records or lines of a domain."""
    return [WRITERS[domain](random.Random(seed)) for seed in range(num)]


def windows(text: bytes, length: int) -> set[bytes]:
    return {text[i : i + length] for i in range(len(text) - length + 1)}


# the domains


def test_english_verbs_agree_with_their_subject():
    numbers = []
    for sentence in pieces("english"):
        assert re.fullmatch(r"[A-Z][A-Za-z ]+\.\n", sentence)
        subject = re.search(rf"\b({'|'.join(PEOPLE)})(s?)\b", sentence)
        verbs = re.findall(rf"\b({'|'.join(VERBS)})(s?)\b", sentence[subject.end() :])
        assert verbs and all((s == "") == (subject[2] == "s") for _, s in verbs)
        numbers.append(subject[2])
    assert 100 < numbers.count("s") < 200


def test_every_program_runs_and_returns_a_number():
    for program in pieces("code"):
        names = {}
        exec(compile(program, "program", "exec"), names)
        (function,) = (value for name, value in names.items() if name != "__builtins__")
        assert isinstance(function(2, 3), int)


def test_every_record_parses():
    records = [json.loads(line) for line in pieces("json")]
    assert all(set(record) == {"id", "job", "city", "tags", "active"} for record in records)
    assert {type(record["active"]) for record in records} == {bool}


def test_every_sum_is_right():
    for line in pieces("arithmetic"):
        left, right = line.split("=")
        assert eval(left) == int(right)


def test_brackets_are_balanced_and_nested():
    deepest = 0
    for line in pieces("brackets"):
        rest, depth = line.strip(), 0
        while (shorter := re.sub(r"\(\)|\[\]|\{\}", "", rest)) != rest:
            rest, depth = shorter, depth + 1
        assert rest == "" and 10 <= len(line.strip()) <= 52
        deepest = max(deepest, depth)
    assert deepest >= 5


def test_greek_is_the_english_grammar_letter_for_letter():
    assert len(set(TO_GREEK.values())) == len(TO_GREEK) == 52
    assert all(len(chr(letter).encode()) == 2 for letter in TO_GREEK.values())
    back = {chr(letter): chr(latin) for latin, letter in TO_GREEK.items()}
    for greek, english in zip(pieces("greek"), pieces("english")):
        assert not re.search("[A-Za-z]", greek)
        assert "".join(back.get(char, char) for char in greek) == english


@domains
def test_the_seed_decides_the_text(domain):
    before = random.getstate()
    text = make_text(domain, 2000, seed=3)
    assert text == make_text(domain, 2000, seed=3) != make_text(domain, 2000, seed=4)
    assert make_text(domain, 5000, seed=3).startswith(text)
    assert 2000 <= len(text.encode()) < 2500 and text.endswith("\n")
    assert random.getstate() == before


@domains
def test_nearly_nothing_is_said_twice(domain):
    whole = pieces(domain, 1000)
    assert len(set(whole)) > 950


def test_the_sample_is_what_the_generator_writes():
    path = data_path("make_text_sample.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    maker = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # data/ is packed as it lies
    try:
        spec.loader.exec_module(maker)
    finally:
        sys.dont_write_bytecode = before
    stored = data_path("text_sample.txt").read_bytes()
    assert stored == maker.sample().encode() and len(stored) < 20_000


# bytes


@given(st.text())
def test_decode_undoes_encode(text):
    tokens = encode(text)
    assert tokens.dtype == torch.int64 and decode(tokens) == decode(tokens.tolist()) == text


@given(st.binary())
def test_decode_never_raises(data):
    assert isinstance(decode(torch.tensor(list(data), dtype=torch.int64)), str)


def test_byte_classes():
    examples = {
        "letter": "azAZ", "digit": "059", "space": " \n\t\r", "bracket": "()[]{}", "quote": "\"'`",
        "operator": "+-*/=<>%", "other": ".,:;_!?#\x00\x7f",
    }  # fmt: skip
    for name, chars in examples.items():
        assert {BYTE_CLASSES[i] for i in byte_class(encode(chars)).tolist()} == {name}
    greek = byte_class(encode("αω€").reshape(7, 1))
    assert greek.shape == (7, 1)
    lead, more = "lead byte", "continuation byte"
    assert [BYTE_CLASSES[i] for i in greek[:, 0].tolist()] == [lead, more, lead, more, lead, more, more]
    assert byte_class(torch.arange(256)).unique().numel() == len(BYTE_CLASSES) == 9


# the task


def test_a_batch():
    task = TextTask(["english", "json"], context=20)
    x, y = task.batch(200, generator())
    assert x.shape == y.shape == (200, 20) and x.dtype == y.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1])
    again, _ = TextTask(["english", "json"], context=20).batch(200, generator())
    assert torch.equal(x, again)
    assert not torch.equal(x, task.batch(200, generator(1))[0])
    assert not torch.equal(x, TextTask(["english", "json"], context=20, seed=1).batch(200, generator())[0])
    texts = [make_text(domain, 220_000) for domain in task.domains]
    found = [[decode(sequence) in text for text in texts] for sequence in torch.cat([x, y[:, -1:]], dim=1)]
    assert all(sum(where) == 1 for where in found)
    assert 70 < sum(where[0] for where in found) < 130


def test_no_sequence_reaches_into_the_next_domain():
    task = TextTask(["arithmetic", "brackets", "greek"], context=1500)
    x, y, domain = task.held_out(20)
    batch, _ = task.batch(1500, generator())
    for sequences in (batch, torch.cat([x, y])):
        digits, brackets, greek = (
            (byte_class(sequences) == BYTE_CLASSES.index(name)).any(dim=1) for name in ("digit", "bracket", "lead byte")
        )
        assert (digits.int() + brackets.int() + greek.int() == 1).all()
        assert digits.any() and brackets.any() and greek.any()
    assert torch.equal(domain, torch.arange(3).repeat_interleave(20))


@pytest.mark.parametrize("domain, context", [(domain, 64) for domain in DOMAINS] + [("json", 20), ("code", 10)])
def test_training_and_held_out_share_no_sequence(domain, context):
    """Every sequence that training can draw, against every window of the held-out part."""
    task = TextTask([domain], context)
    text = make_text(domain, 220_000).encode()
    held_out = windows(text[-HELD_OUT_BYTES:], context)
    raw, starts = bytes(task._bytes.tolist()), task._starts.tolist()
    assert raw == text
    trained = {raw[start + shift : start + shift + context] for start in starts for shift in (0, 1)}
    assert not trained & held_out
    # and nothing else is left out of training
    train = text[:-HELD_OUT_BYTES]
    usable = [i for i in range(len(train) - context)
              if train[i : i + context] not in held_out and train[i + 1 : i + 1 + context] not in held_out]  # fmt: skip
    assert starts == usable
    if context == 64:
        assert len(starts) > 0.99 * len(train)


def test_held_out_is_the_end_of_each_text_and_always_the_same():
    task = TextTask(["english", "code"], context=128)
    x, y, domain = task.held_out(5)
    assert x.shape == y.shape == (10, 128) and torch.equal(x[:, 1:], y[:, :-1])
    assert all(torch.equal(a, b) for a, b in zip((x, y, domain), task.held_out(5)))
    for i, name in enumerate(task.domains):
        end = make_text(name, 220_000).encode()[-HELD_OUT_BYTES:]
        sequences = [bytes(s.tolist()) for s in torch.cat([x, y[:, -1:]], dim=1)[domain == i]]
        places = [end.find(sequence) for sequence in sequences]
        assert places[0] == 0 and places[-1] == HELD_OUT_BYTES - 129
        assert min(b - a for a, b in zip(places, places[1:])) > 4000  # spread evenly


def test_held_out_gives_what_there_is():
    task = TextTask.from_text(make_text("english", 1000), context=64)
    x, _, domain = task.held_out(10_000)
    assert 30 < len(x) < 60 and len(x) == len(x.unique(dim=0)) == len(domain)


def test_the_task_trains_in_a_run():
    class Bigrams(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.block = nn.Embedding(TextTask.vocab_size, 16), MoE(16, 16, num_experts=4)
            self.head = nn.Linear(16, TextTask.vocab_size)

        def forward(self, x):
            y, routing = self.block(self.embed(x))
            return self.head(y), [routing]

    run = Run(Bigrams(), TextTask(["english", "brackets"], context=32), lr=0.03, batch_size=16)
    losses = [run.step().loss for _ in range(40)]
    assert losses[0] > 5 and losses[-1] < 3


# a text of one's own


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "notes.txt"
    text = make_text("greek", 3000)
    path.write_bytes(text.encode())
    task = TextTask.from_file(path, context=32)
    assert task.domains == ("notes.txt",) and repr(task) == "TextTask(notes.txt, context=32)"
    x, _ = task.batch(50, generator())
    assert all(bytes(sequence.tolist()) in text.encode() for sequence in x)
    same, _ = TextTask.from_text(text, context=32).batch(50, generator())
    assert torch.equal(x, same)
    with pytest.raises(FileNotFoundError):
        TextTask.from_file(tmp_path / "none.txt")


LONG = make_text("english", 2000)


@pytest.mark.parametrize(
    "text, context, message",
    [
        ("", 64, "text must have at least 1000 bytes of text, got 0"),
        (b"", 64, "text must have at least 1000 bytes of text, got 0"),
        ("Hello.", 64, "text must have at least 1000 bytes of text, got 6"),
        (LONG[:1000].encode() + b"\xff", 64, "text must be UTF-8 text, got the byte 0xff at position 1000"),
        (LONG.encode("utf-16"), 64, "text must be UTF-8 text, got the byte 0xff at position 0"),
        (LONG + "\ud800", 64, f"text must be UTF-8 text, got the byte 0xed at position {len(LONG)}"),
        (LONG, 4000, f"context must be below {len(LONG) // 10}, a tenth of text, got 4000"),
        (LONG, 0, "context must be a whole number of at least 1, got 0"),
        (LONG, 2.5, "context must be a whole number of at least 1, got 2.5"),
        ("ab" * 1000, 64, "text must vary more: each 64 bytes of it are also in the part held out"),
    ],
)
def test_a_bad_text_is_refused(text, context, message):
    with pytest.raises(ValueError) as error:
        TextTask.from_text(text, context)
    assert str(error.value) == message


def test_a_bad_file_is_named(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8\xff" * 1000)
    with pytest.raises(ValueError, match="photo.jpg must be UTF-8 text, got the byte 0xff at position 0"):
        TextTask.from_file(path)


@pytest.mark.parametrize("num_bytes", [1000, 1650, 7777])
def test_the_longest_context_of_a_text(num_bytes):
    text = "".join(chr(97 + i) for i in torch.randint(26, (num_bytes,), generator=generator()).tolist())
    longest = num_bytes // 10 - 1
    x, _, _ = TextTask.from_text(text, longest).held_out()
    assert x.shape == (1, longest)
    with pytest.raises(ValueError, match="context must be below"):
        TextTask.from_text(text, longest + 1)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="domains must be one of 'english', .*, got 'latin'"):
        TextTask(["english", "latin"])
    for wrong in ([], ["code", "code"]):
        with pytest.raises(ValueError, match="domains must be one or more different names"):
            TextTask(wrong)
    for context in (0, True, "64", HELD_OUT_BYTES):
        with pytest.raises(ValueError, match="context must be"):
            TextTask(["brackets"], context)
    with pytest.raises(ValueError, match="domain must be one of"):
        make_text("latin", 10)
    with pytest.raises(ValueError, match="num_bytes must be"):
        make_text("code", 0)
    with pytest.raises(ValueError, match="num_per_domain must be"):
        TextTask("brackets").held_out(0)
