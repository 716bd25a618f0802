"""Generated text and facts: each domain and entry is what it says, train and held-out parts share nothing."""

import json
import random
import runpy
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from moe_lessons.nn import is_moe
from moe_lessons.support.data import data_path
from moe_lessons.tasks import BYTE_CLASSES, NOT_SCORED, Facts, TextTask, byte_class, decode, encode, make_text
from moe_lessons.tasks import text as text_module
from moe_lessons.tasks.text import HELD_OUT_BYTES, REAL_TEXTS, WRITERS
from moe_lessons.training import Run, facts_model, facts_run, facts_runs, train
from moe_lessons.training.record import scored_mean, token_losses


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pieces(domain: str, num: int = 300) -> list[str]:
    return [WRITERS[domain](random.Random(seed)) for seed in range(num)]


def test_every_program_runs_every_record_parses_and_every_sum_is_right():
    for program in pieces("code"):
        names = {}
        exec(compile(program, "program", "exec"), names)
        (function,) = (value for name, value in names.items() if name != "__builtins__")
        assert isinstance(function(2, 3), int)
    records = [json.loads(line) for line in pieces("json")]
    assert all(set(record) == {"id", "job", "city", "tags", "active"} for record in records)
    assert {type(record["active"]) for record in records} == {bool}
    assert all(eval(line.replace("=", "==")) for line in pieces("arithmetic"))


@pytest.mark.parametrize("domain", WRITERS)
def test_the_seed_decides_the_text(domain):
    text = make_text(domain, 2000, seed=3)
    assert text == make_text(domain, 2000, seed=3) != make_text(domain, 2000, seed=4)
    assert make_text(domain, 5000, seed=3).startswith(text)
    assert 2000 <= len(text.encode()) < 2500 and text.endswith("\n")
    assert len(set(pieces(domain))) > 280  # nearly nothing is said twice


@pytest.mark.parametrize("name, least", [("prose", 300_000), ("source", 2_000_000)])
def test_real_texts_are_those_of_this_python_cut_in_pieces(name, least):
    text = REAL_TEXTS[name]()
    assert text == REAL_TEXTS[name]() and text.isascii() and len(text) > least
    whole = {"prose": "\n".join(topics.values()), "source": Path(random.__file__).read_text("utf-8")}[name]
    blocks = [block for block in whole.split("\n\n") if block.isascii() and len(block) > 200]
    assert sum(block in text for block in blocks) > 0.9 * len(blocks)  # paragraphs stay whole
    places = [whole.find(block) for block in text[-HELD_OUT_BYTES:].split("\n\n") if len(block) > 100]
    assert name == "source" or max(places) - min(places) > len(whole) / 3  # what is held out comes from many places


def test_a_python_without_the_source_of_its_library_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(text_module, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match="^domains must not name 'source' here"):
        TextTask(["prose", "source"])


def test_the_sample_is_what_the_generator_writes_and_bytes_have_their_classes():
    stored = data_path("text_sample.txt").read_bytes()
    assert stored == runpy.run_path(data_path("make_text_sample.py"))["sample"]().encode() and len(stored) < 20_000
    examples = {"letter": "azAZ", "digit": "059", "space": " \n\t\r", "bracket": "()[]{}", "quote": "\"'`"}
    for name, chars in (examples | {"operator": "+-*/=<>%", "other": ".,:;_!?#\x00\x7f"}).items():
        assert {BYTE_CLASSES[i] for i in byte_class(encode(chars)).tolist()} == {name}
    lead, more = "lead byte", "continuation byte"
    greek = byte_class(encode("αω€").reshape(7, 1))[:, 0].tolist()
    assert [BYTE_CLASSES[i] for i in greek] == [lead, more, lead, more, lead, more, more]


def test_a_batch_has_sequences_of_each_domain_and_none_reaches_into_the_next():
    task = TextTask(["arithmetic", "brackets", "greek"], 1500)
    x, y = task.batch(300, generator())
    assert x.shape == y.shape == (300, 1500) and x.dtype == y.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1]) and torch.equal(x, task.batch(300, generator())[0])
    assert not torch.equal(x, task.batch(300, generator(1))[0])
    texts = [make_text(domain, 220_000).encode() for domain in ("arithmetic", "brackets", "greek")]
    sequences = [bytes(sequence.tolist()) for sequence in torch.cat([x, y[:, -1:]], dim=1)]
    found = torch.tensor([[sequence in text for text in texts] for sequence in sequences])  # (300, 3)
    assert (found.sum(dim=1) == 1).all() and (found.sum(dim=0) > 70).all()


@pytest.mark.parametrize("domain, context, size", [("greek", 64, HELD_OUT_BYTES), ("code", 10, 8_000)])
def test_training_and_held_out_share_no_sequence_and_nothing_else_is_left_out(domain, context, size):
    task = TextTask([domain], context, held_out_bytes=size)
    text = make_text(domain, 200_000 + size).encode()
    assert bytes(task._bytes.tolist()) == text
    train, end = text[:-size], text[-size:]
    held_out = {end[i : i + context] for i in range(len(end) - context + 1)}
    usable = [i for i in range(len(train) - context)
              if train[i : i + context] not in held_out and train[i + 1 : i + 1 + context] not in held_out]  # fmt: skip
    assert task._starts.tolist() == usable and (context < 64 or len(usable) > 0.99 * len(train))


def test_held_out_is_the_end_of_each_text_and_always_the_same():
    task = TextTask(["english", "code"], context=128)
    x, y, domain = task.held_out(5)
    assert x.shape == y.shape == (10, 128) and torch.equal(x, task.held_out(5)[0])
    for i, name in enumerate(task.domains):
        end = make_text(name, 220_000).encode()[-HELD_OUT_BYTES:]
        sequences = [bytes(s.tolist()) for s in torch.cat([x, y[:, -1:]], dim=1)[domain == i]]
        places = [end.find(sequence) for sequence in sequences]
        assert places[0] == 0 and places[-1] == HELD_OUT_BYTES - 129
        assert min(b - a for a, b in zip(places, places[1:])) > 4000  # spread evenly


def test_a_file_of_ones_own(tmp_path):
    path, text = tmp_path / "notes.txt", make_text("greek", 3000)
    path.write_bytes(text.encode())
    task = TextTask.from_file(path, context=32)
    assert task.domains == ("notes.txt",)
    x, _ = task.batch(50, generator())
    assert all(bytes(sequence.tolist()) in text.encode() for sequence in x)
    both = TextTask({"notes.txt": text, "other": make_text("english", 2000)}, context=32)
    assert torch.equal(both.held_out(5)[0][:5], task.held_out(5)[0]) and both.domains == ("notes.txt", "other")
    path.write_bytes(b"\xff\xd8\xff" * 1000)
    with pytest.raises(ValueError, match="^notes.txt must be UTF-8 text, got "):
        TextTask.from_file(path)


def test_the_longest_context_of_a_text_and_as_many_sequences_as_there_are():
    text = "".join(chr(97 + i) for i in torch.randint(26, (1650,), generator=generator()).tolist())
    assert TextTask({"own": text}, 164).held_out()[0].shape == (1, 164)
    x, _, domain = TextTask({"own": text}, 64).held_out(10_000)
    assert len(x) == len(x.unique(dim=0)) == len(domain) == 165 - 64
    for bad, context in ((text, 165), ("ab" * 999, 64)):
        with pytest.raises(ValueError, match=f"must .*{context}"):
            TextTask({"own": bad}, context)


@given(num=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_entries_are_different_names_and_numbers_in_ascii(num, seed):
    facts = Facts(num, seed)
    names, numbers = zip(*(entry.split(":") for entry in facts.entries))
    assert len(set(names)) == num == len(facts.entries) and facts.entries == Facts(num, seed).entries
    assert all(name.isalpha() and name.isupper() and len(name) == 4 for name in names)
    assert all(number.isdigit() and len(number) == 4 for number in numbers)
    assert facts.x.shape == facts.y.shape == (num, facts.context) and int(facts.x.max()) < facts.vocab_size
    for entry, x, y in zip(facts.entries, facts.x, facts.y):
        assert decode(x) == entry[:-1] and decode(y[4:]) == entry[5:] and (y[:4] == NOT_SCORED).all()


def test_an_entry_is_known_where_the_model_writes_all_its_digits():
    facts, more, shares = Facts(20), Facts(300), []  # the same and more, in two parts
    run = Run(facts_model(num_experts=4), facts, lr=0.005, batch_size=32)
    for _ in range(4):
        known = facts.known(run.model)
        written = [decode(ids) for ids in run.model.generate(facts.x[:, :5], 4, temperature=0)]  # after each 'NAME:'
        assert known.tolist() == [text == entry for text, entry in zip(written, facts.entries)]
        assert torch.equal(more.known(run.model)[:20], known) and len(more.known(run.model)) == 300
        shares.append(known.float().mean().item())
        train(run, 10)
    assert shares[0] < 0.1 and any(0.1 < share <= 0.95 for share in shares) and run.model.training


def test_the_loss_is_that_of_torch_with_its_ignore_index():
    facts, run = Facts(50), facts_run(facts_model(), Facts(50))
    x, y = facts.batch(256, generator())
    with torch.no_grad():
        logits, _ = run.model(x)
    losses, correct = token_losses(logits, y)
    assert losses.shape == correct.shape == y.shape and not losses[:, :4].any() and not correct[:, :4].any()
    expected = F.cross_entropy(logits.transpose(1, 2), y, ignore_index=-100)
    assert scored_mean(losses, y).item() == pytest.approx(expected.item(), rel=1e-6)
    assert scored_mean(correct, y).item() == (logits.argmax(dim=2) == y)[:, 4:].float().mean().item()


def test_the_runs_are_a_mixture_and_its_baselines_on_the_same_batches():
    runs = facts_runs(num_experts=8, top_k=4, num_entries=100, seed=3)
    assert list(runs) == ["MoE", "dense, 1×", "dense, 2×"]
    widths = [{layer.ffn.d_ff for layer in run.model.layers} for run in runs.values()]
    assert widths == [{16}, {4 * 16}, {8 * 16}]
    assert all(is_moe(layer.ffn) and layer.ffn.top_k == 4 for layer in runs["MoE"].model.layers)
    starts = [run.model.layers[0].attention.qkv_proj.weight for run in runs.values()]
    assert torch.equal(starts[0], starts[1]) and torch.equal(starts[0], starts[2])
    assert len({run.task for run in runs.values()}) == 1 and {run.seed for run in runs.values()} == {3}
    assert [run.knobs.router_aux_loss_coef for run in runs.values()] == [0.01, 0, 0]
    assert [facts_run(facts_model(), Facts(num)).decay_steps for num in (250, 400, 2000)] == [300, 300, 1500]
