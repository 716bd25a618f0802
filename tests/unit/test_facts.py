"""Facts to be remembered: what a phone book is, what is scored, what a model knows; and how models learn it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from moe_lessons.nn import EQUAL_ACTIVE, EQUAL_TOTAL, is_moe
from moe_lessons.tasks import NOT_SCORED, Facts, decode
from moe_lessons.training import Run, facts_model, facts_run, facts_runs
from moe_lessons.training.run import token_losses


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(num=st.integers(1, 300), seed=st.integers(0, 2**62))
def test_entries_are_different_names_and_numbers_in_ascii(num, seed):
    facts = Facts(num, seed)
    names, numbers = zip(*(entry.split(":") for entry in facts.entries))
    assert len(set(names)) == num == len(facts.entries) and facts.entries == Facts(num, seed).entries
    assert all(name.isalpha() and name.isupper() and len(name) == 4 for name in names)
    assert all(number.isdigit() and len(number) == 4 for number in numbers)
    assert facts.x.shape == facts.y.shape == (num, facts.context) and int(facts.x.max()) < facts.vocab_size
    for entry, x, y in zip(facts.entries, facts.x, facts.y):
        assert decode(x) == entry[:-1] and decode(y[4:]) == entry[5:] and (y[:4] == NOT_SCORED).all()


def test_a_batch_is_of_entries_each_as_likely():
    facts = Facts(20)
    x, y = facts.batch(4000, generator())
    assert x.shape == y.shape == (4000, 8) and torch.equal(x, facts.batch(4000, generator())[0])
    drawn = (x[:, None] == facts.x).all(dim=2).sum(dim=0)
    assert drawn.sum() == 4000 and 140 < drawn.min() and drawn.max() < 260
    place = (x[0] == facts.x).all(dim=1).nonzero().item()
    assert torch.equal(y[0], facts.y[place])


def test_an_entry_is_known_where_the_model_writes_all_its_digits():
    facts, more, shares = Facts(20), Facts(300), []  # the same and more, in two parts
    run = Run(facts_model(num_experts=4), facts, lr=0.005, batch_size=32)
    for _ in range(4):
        known = facts.known(run.model)
        written = [decode(ids) for ids in run.model.generate(facts.x[:, :5], 4, temperature=0)]  # after each 'NAME:'
        assert known.tolist() == [text == entry for text, entry in zip(written, facts.entries)]
        assert torch.equal(more.known(run.model)[:20], known) and len(more.known(run.model)) == 300
        shares.append(known.float().mean().item())
        for _ in range(10):
            run.step()
    assert shares[0] < 0.1 and any(0.1 < share <= 0.95 for share in shares) and run.model.training


def test_the_loss_is_that_of_torch_with_its_ignore_index():
    facts, run = Facts(50), facts_run(facts_model(), Facts(50))
    x, y = facts.batch(256, generator())
    with torch.no_grad():
        logits, _ = run.model(x)
    losses, correct = token_losses(logits, y)
    assert losses.shape == correct.shape == (256 * 4,)
    expected = F.cross_entropy(logits.transpose(1, 2), y, ignore_index=-100)
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-6)
    assert correct.float().mean().item() == (logits.argmax(dim=2) == y)[:, 4:].float().mean().item()


def test_the_runs_are_a_mixture_and_its_twins_on_the_same_batches():
    runs = facts_runs(num_experts=8, top_k=4, num_entries=100, seed=3)
    assert list(runs) == ["MoE", EQUAL_ACTIVE, EQUAL_TOTAL]
    widths = [{layer.ffn.d_ff for layer in run.model.layers} for run in runs.values()]
    assert widths == [{32}, {4 * 32}, {8 * 32}]
    assert all(is_moe(layer.ffn) and layer.ffn.top_k == 4 for layer in runs["MoE"].model.layers)
    starts = [run.model.layers[0].attention.qkv_proj.weight for run in runs.values()]
    assert torch.equal(starts[0], starts[1]) and torch.equal(starts[0], starts[2])
    assert len({run.task for run in runs.values()}) == 1 and {run.seed for run in runs.values()} == {3}
    assert [run.knobs.router_aux_loss_coef for run in runs.values()] == [0.01, 0, 0]
    assert [facts_run(facts_model(), Facts(num)).decay_steps for num in (250, 2000, 4000)] == [250, 500, 1000]
