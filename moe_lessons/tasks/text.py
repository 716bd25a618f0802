"""Text to predict byte by byte: real prose and source code that come with Python, six small languages that our own
code writes, or a file of your own."""

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from string import ascii_letters, digits, whitespace
from sysconfig import get_path
from typing import Any

import torch
from torch import Tensor

from moe_lessons.support.errors import check_choice, check_positive_int

TRAIN_BYTES, HELD_OUT_BYTES = 200_000, 20_000  # of each domain; a text of your own holds out a tenth, or this

VOCABULARY: dict[str, Any] = json.loads(Path(__file__).with_name("words.json").read_text("utf-8"))
PEOPLE, THINGS, PLACES, VERBS, LOOKS, TIMES, NAMES, CITIES, TOPICS = VOCABULARY.values()

# Letter for letter as on a Greek keyboard; for q and w the old letters koppa and digamma.
_LATIN, _GREEK = "abcdefghijklmnopqrstuvwxyz", "αβψδεφγηιξκλμνοπϙρστθωϝχυζ"
TO_GREEK = str.maketrans(_LATIN + _LATIN.upper(), _GREEK + _GREEK.upper())


def english(rng: Random, people=PEOPLE, things=THINGS, places=PLACES, verbs=VERBS) -> str:
    """Write a sentence whose verb agrees with its subject: 'Every morning the old bakers clean the red drum.'"""
    look = rng.choice(("", f"{rng.choice(LOOKS)} "))
    plural = rng.random() < 0.5
    who = f"the {look}{rng.choice(people)}" + "s" * plural
    does = rng.choice(verbs) + "s" * (not plural)
    what = f"{rng.choice(('the', 'his', 'her'))} {rng.choice(LOOKS)} {rng.choice(things)}"
    where = f"{rng.choice(('in', 'near', 'behind'))} the {rng.choice(places)}"
    forms = (
        f"{who} {does} {what} {where}",
        f"{rng.choice(TIMES)} {who} {does} {what}",
        f"{who} {where} {does} {what}",
        f"{who} {does} {what} and {rng.choice(verbs)}{'s' * (not plural)} it {rng.choice(TIMES)}",
    )
    sentence = rng.choice(forms)
    return f"{sentence[0].upper()}{sentence[1:]}.\n"


def code(rng: Random) -> str:
    """Write a function in Python of one to three statements that mean nothing and always end."""
    a, b, c = rng.sample(NAMES, 3)
    lines = [f"def {rng.choice(VERBS)}_{rng.choice(THINGS)}({a}, {b}):", f"    {c} = {rng.randrange(100)}"]
    for _ in range(rng.randint(1, 3)):
        x, y = rng.sample((a, b), 2)
        statements = (
            [f"    {c} = {x} {rng.choice('+-*')} {y}"],
            [f"    {c} += {rng.randrange(100)}"],
            [f"    if {x} {rng.choice('<>')} {y}:", f"        {c} = {x}"],
            [f"    for {x} in range({y}):", f"        {c} += {x}"],
            [f"    while {x} < {rng.randrange(100)}:", f"        {x} += 1"],
        )
        lines += rng.choice(statements)
    return "\n".join([*lines, f"    return {c}\n\n"])


def json_record(rng: Random) -> str:
    """Write a record of one person, in JSON on one line."""
    record = {
        "id": rng.randrange(1000),
        "job": rng.choice(PEOPLE),
        "city": rng.choice(CITIES),
        "tags": rng.sample(LOOKS, rng.randint(1, 3)),
        "active": rng.random() < 0.5,
    }
    return json.dumps(record) + "\n"


def arithmetic(rng: Random) -> str:
    """Write a sum or a difference of two numbers below 100, with the right result."""
    a, b = rng.randrange(100), rng.randrange(100)
    return rng.choice((f"{a}+{b}={a + b}\n", f"{a}-{b}={a - b}\n"))


def brackets(rng: Random) -> str:
    """Write a line of nested brackets of three kinds, each closed by its own."""
    line, to_close = "", []
    length = rng.randint(10, 50)
    while to_close or len(line) < length:
        room = len(line) + len(to_close) < length
        if not to_close or (room and rng.random() < 0.5):
            kind = rng.choice(("()", "[]", "{}"))
            line += kind[0]
            to_close.append(kind[1])
        else:
            line += to_close.pop()
    return line + "\n"


WRITERS = {"english": english, "code": code, "json": json_record, "arithmetic": arithmetic, "brackets": brackets}
WRITERS["greek"] = lambda rng: english(rng).translate(TO_GREEK)  # two bytes a letter
DOMAINS = tuple(WRITERS)
# Two topics, in sentences of one kind: their people, things, places and verbs differ; looks, times and letters do not.
WRITERS |= {topic: partial(english, **words) for topic, words in TOPICS.items()}


PIECE_BYTES = 2_000  # of a real text, at least: what is held out comes from many places


def _in_pieces(text: str) -> str:
    """Cut a text at blank lines into pieces, and put them in a random order, always the same. ASCII alone stays."""
    pieces = [""]
    for paragraph in text.encode("ascii", "ignore").decode().split("\n\n"):
        if len(pieces[-1]) >= PIECE_BYTES:
            pieces.append("")
        pieces[-1] += paragraph + "\n\n"
    Random("pieces").shuffle(pieces)  # a string seeds the same on every machine
    return "".join(pieces)


def python_prose() -> str:
    """Read the pages of Python's `help()`, its language reference: some 465 kB of English."""
    from pydoc_data.topics import topics

    return _in_pieces("\n\n".join(topics[name] for name in sorted(topics)))


def python_source() -> str:
    """Read the source of Python's standard library, without its packages: some 4.7 MB. ValueError where a Python comes
    without it."""
    paths = sorted(Path(get_path("stdlib")).glob("*.py"))
    text = "\n\n".join(path.read_text("utf-8", "ignore") for path in paths)
    if len(text) < TRAIN_BYTES:
        raise ValueError(f"domains must not name 'source' here: {get_path('stdlib')} has no source of Python's library")
    return _in_pieces(text)


REAL_TEXTS = {"prose": python_prose, "source": python_source}  # other versions of Python have other ones


def make_text(domain: str, num_bytes: int, seed: int = 0) -> str:
    """Write text of a domain, at least `num_bytes` long: whole sentences, programs, records or lines."""
    check_choice("domain", domain, WRITERS)
    check_positive_int("num_bytes", num_bytes)
    rng = Random(f"{domain} {seed}")  # a string seeds the same on every machine
    parts, length = [], 0
    while length < num_bytes:
        parts.append(WRITERS[domain](rng))
        length += len(parts[-1].encode())
    return "".join(parts)


def encode(text: str) -> Tensor:
    """Give the bytes of `text` in UTF-8: (T,) int64, 0 to 255."""
    return torch.tensor(list(text.encode()), dtype=torch.int64)


def decode(tokens: Tensor) -> str:
    """Give the text of bytes (T,), with the sign '�' for what is no UTF-8, such as half a Greek letter."""
    return bytes(tokens.tolist()).decode(errors="replace")


_CHARS = {"letter": ascii_letters, "digit": digits, "space": whitespace}
_CHARS |= {"bracket": "()[]{}", "quote": "'\"`", "operator": "+-*/=<>%&|^~"}
BYTE_CLASSES = (*_CHARS, "lead byte", "continuation byte", "other")
# A letter beyond ASCII is a lead byte, from 0xC0, and one to three continuation bytes, from 0x80.
_CLASS_OF_BYTE = torch.tensor([8] * 0x80 + [7] * 0x40 + [6] * 0x40)
for _place, _chars in enumerate(_CHARS.values()):
    _CLASS_OF_BYTE[encode(_chars)] = _place


def byte_class(tokens: Tensor) -> Tensor:
    """Give the class of each byte, as an index into `BYTE_CLASSES`, in the shape of `tokens`.

    >>> [BYTE_CLASSES[i] for i in byte_class(encode('x = "7"')).tolist()]
    ['letter', 'space', 'operator', 'space', 'quote', 'digit', 'quote']
    """
    return _CLASS_OF_BYTE.to(tokens.device)[tokens]


class TextTask:
    """Sequences of bytes, each from one domain, and for each byte the one that follows it.

    domains: some of `WRITERS` and `REAL_TEXTS`, or a dict of your own texts, by name. context: bytes in a sequence (T).
    The end of each text is held out, `held_out_bytes` or a tenth of it, whichever is less, and a sequence that occurs
    there, at whatever position, is left out of training.

    >>> x, y = TextTask(["english", "code"], context=32).batch(4, torch.Generator().manual_seed(0))
    >>> x.shape, bool((x[:, 1:] == y[:, :-1]).all())
    (torch.Size([4, 32]), True)
    """

    vocab_size = 256  # every byte is a token

    def __init__(
        self,
        domains: Iterable[str] | Mapping[str, str] = DOMAINS,
        context: int = 64,
        seed: int = 0,
        held_out_bytes: int = HELD_OUT_BYTES,
    ):
        self.domains = (domains,) if isinstance(domains, str) else tuple(domains)
        if not self.domains or len(set(self.domains)) < len(self.domains):
            raise ValueError(f"domains must be one or more different names, got {self.domains}")
        self.context, self.seed = check_positive_int("context", context), seed
        check_positive_int("held_out_bytes", held_out_bytes)
        is_own, num_bytes = isinstance(domains, Mapping), TRAIN_BYTES + held_out_bytes
        starts, self._held_out_starts = [], []
        texts, end = [], 0
        for name in self.domains:
            if is_own:
                text = domains[name]
            elif check_choice("domains", name, WRITERS | REAL_TEXTS) in REAL_TEXTS:
                text = REAL_TEXTS[name]()
            else:
                text = make_text(name, num_bytes, seed)
            text = text.encode()
            num_held_out = min(len(text) // 10, held_out_bytes)
            if context >= num_held_out:
                limit = f"{num_held_out}, the bytes of {name} that are held out"
                raise ValueError(f"context must be below {limit}, got {context}")
            split = len(text) - num_held_out
            held_out = {text[i : i + context] for i in range(split, len(text) - context + 1)}
            may_train = bytearray(text[i : i + context] not in held_out for i in range(split - context + 1))
            may_train = torch.frombuffer(may_train, dtype=torch.bool)  # `torch.tensor` of a list takes longer
            # neither what is read nor what is predicted is held out
            places = (may_train[:-1] & may_train[1:]).nonzero()[:, 0]
            if len(places) == 0:
                raise ValueError(f"{name} must vary more: each {context} bytes of it are also in the part held out")
            starts.append(places + end)
            self._held_out_starts.append(torch.arange(split, len(text) - context) + end)
            texts.append(text)
            end += len(text)
        self._bytes = torch.frombuffer(bytearray().join(texts), dtype=torch.uint8)
        self._starts = torch.cat(starts)
        self._num_starts = torch.tensor([len(s) for s in starts])  # (number of domains,)
        self._first = self._num_starts.cumsum(0) - self._num_starts

    @classmethod
    def from_file(cls, path: str | Path, context: int = 64) -> "TextTask":
        """Make a task of one domain: your own text file in UTF-8. Its last tenth is held out."""
        name = Path(path).name
        try:
            return cls({name: Path(path).read_bytes().decode()}, context)
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} must be UTF-8 text, got one that is not: {error}") from None

    def batch(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `num` sequences for training, every domain as likely: x (num, T) int64 and y, one byte further."""
        domain = torch.randint(len(self.domains), (num,), generator=generator)
        where = torch.rand(num, generator=generator, dtype=torch.float64) * self._num_starts[domain]
        return self._sequences(self._starts[self._first[domain] + where.long()])

    def held_out(self, num_per_domain: int = 32) -> tuple[Tensor, Tensor, Tensor]:
        """Give x and y (N, T) that training never shows, and the domain of each, an index (N,): `num_per_domain` of
        each, or as many as there are, always the same."""
        check_positive_int("num_per_domain", num_per_domain)
        chosen = [s[torch.linspace(0, len(s) - 1, min(num_per_domain, len(s))).long()] for s in self._held_out_starts]
        domain = torch.repeat_interleave(torch.tensor([len(s) for s in chosen]))
        return *self._sequences(torch.cat(chosen)), domain

    def _sequences(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        sequences = self._bytes[starts[:, None] + torch.arange(self.context + 1)].long()
        return sequences[:, :-1], sequences[:, 1:]

    def __repr__(self) -> str:
        return f"TextTask({', '.join(self.domains)}, context={self.context})"
