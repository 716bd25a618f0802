"""What lesson 04 says under 'What to notice', of its own model, trained as there from three seeds."""

import codecs
import re
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from moe_lessons.analysis import agreement, expert_shares, information, mutual_information, repeats, trace
from moe_lessons.nn import LanguageModel, TransformerConfig, seeded
from moe_lessons.tasks import TextTask, decode, encode, make_text
from moe_lessons.training import Run

CONFIG = TransformerConfig(d_model=64, num_layers=3, d_ff=32, num_experts=8, top_k=2)
SEEDS, LAYERS = range(3), range(3)
PROMPTS = {
    "english": "The old ",
    "code": "def find_table(",
    "json": '{"id": ',
    "arithmetic": "12+",
    "cipher": "gUR ",
}
LOOKS_LIKE = {  # what is found in a text of each domain
    "english": r"[a-z]+( [a-z]+){2}",
    "code": r"\):\n    |    \w+ = |    return ",
    "json": r'", "',
    "arithmetic": r"\n\d+[+-]\d+=-?\d+\n",
    "cipher": r"[A-Z]{2,} [A-Z]{2,}",
}


class Trained(NamedTuple):
    run: Run
    before: pd.DataFrame
    after: pd.DataFrame
    free: pd.DataFrame  # after training without the auxiliary loss


def model_of(seed: int) -> LanguageModel:
    with seeded(seed):
        return LanguageModel(CONFIG)


def five_languages() -> TextTask:
    texts = {domain: make_text(domain, 220_000) for domain in ("english", "code", "json", "arithmetic")}
    return TextTask(texts | {"cipher": codecs.encode(make_text("english", 220_000, seed=1).swapcase(), "rot13")})


@pytest.fixture(scope="module")
def trained() -> list[Trained]:
    """The lesson's model after its 300 steps, from each seed, with and without the auxiliary loss, with its traces."""
    task, found = five_languages(), []
    for seed in SEEDS:
        runs = []
        for coefficient in (0.01, 0.0):
            options = {"batch_size": 16, "warmup_steps": 20, "decay_steps": 300, "max_grad_norm": 1.0}
            runs.append(Run(model_of(seed), task, lr=0.005, seed=seed, **options))
            runs[-1].knobs.router_aux_loss_coef = coefficient
        before = trace(runs[0].model, task)
        for _ in range(300):
            for run in runs:
                run.step()
        found.append(Trained(runs[0], before, *(trace(run.model, task) for run in runs)))
    return found


def layer_of(table: pd.DataFrame, layer: int) -> pd.DataFrame:
    return table[table["layer"] == layer]


def written(model: LanguageModel, prompt: str) -> list[str]:
    """Four continuations, drawn as in the lesson."""
    ids = encode(prompt).expand(4, -1)  # (4, T)
    return [decode(row[ids.shape[1] :]) for row in model.generate(ids, 80, temperature=0.7)]


@pytest.mark.claim("samples-show-their-domain")
def test_samples_show_their_domain(trained):
    found = {name: 0 for name in PROMPTS}
    for one in trained:
        for name, prompt in PROMPTS.items():
            found[name] += sum(bool(re.search(LOOKS_LIKE[name], text)) for text in written(one.run.model, prompt))
            assert not any(re.search(LOOKS_LIKE[name], text) for text in written(model_of(one.run.seed), prompt))
        loss = one.run.evaluate_by_domain()["loss"].sort_values()
        assert loss.index.tolist() == ["json", "code", "english", "cipher", "arithmetic"]  # what the lesson prints
        assert loss.diff().min() > 0.05 and loss["arithmetic"] > 1.4 * loss["cipher"]
        assert (8 * expert_shares(one.after, "layer")).stack().between(1 / 2.5, 1.9).all()  # in even shares
    assert min(found.values()) >= 10 and sum(found.values()) >= 54, found  # of 12, and of 60


def meet(a: pd.Series, b: pd.Series) -> float:
    """How often a token of a and one of b, drawn at random, have the same expert."""
    return np.prod([np.bincount(e, minlength=8) / len(e) for e in (a, b)], axis=0).sum()


@pytest.mark.claim("same-letter-same-colour")
def test_a_letter_keeps_its_expert_in_layer_0(trained):
    kept = []
    for one in trained:
        table = layer_of(one.after, 0)
        english, code = (table[table["domain"] == name] for name in ("english", "code"))
        english, code = (t[t["byte_class"] == "letter"] for t in (english, code))
        same, weight = [], []
        for byte in set(english["byte"]) & set(code["byte"]):
            both = [t.loc[t["byte"] == byte, "expert0"] for t in (english, code)]
            same.append(meet(*both))
            weight.append(min(map(len, both)))
        chance = meet(english["expert0"], code["expert0"])
        kept.append(np.average(same, weights=weight))
        assert kept[-1] > max(0.48, 1.6 * chance)
    assert np.mean(kept) > 0.53


def differ(shares: pd.DataFrame, a: str, b: str) -> float:
    """The share of the assignments of a that would have to move to make its row that of b."""
    return (shares.loc[a] - shares.loc[b]).abs().sum() / 2


@pytest.mark.claim("domains-have-favourites")
def test_domains_have_favourites(trained):
    for one in trained:
        for layer in LAYERS:
            shares = expert_shares(one.after, "domain", layer)
            assert (shares.max(axis=1) > 1.3 / 8).all() and (shares.min(axis=1) < 0.75 / 8).all()
            assert differ(shares, "arithmetic", "english") > 0.35


def overlap(table: pd.DataFrame, a: str, b: str) -> float:
    """What the rows of two domains have in common, the mean over the layers."""
    return np.mean([1 - differ(expert_shares(table, "domain", layer), a, b) for layer in LAYERS])


def by_kind(table: pd.DataFrame) -> pd.DataFrame:
    kinds = table[table["byte_class"].isin(["letter", "digit"])]
    return kinds.assign(domain=kinds["byte_class"].astype(str) + "s of " + kinds["domain"].astype(str))


@pytest.mark.claim("digits-go-with-digits")
def test_digits_go_with_digits(trained):
    for one in trained:
        lead = []  # of the same byte over the same domain
        for table in map(by_kind, (one.before, one.after)):
            same_byte = overlap(table, "digits of code", "digits of arithmetic")
            lead.append(same_byte - overlap(table, "digits of code", "letters of code"))
        assert lead[0] < -0.1 and lead[1] > 0.15


@pytest.mark.claim("an-untrained-map-has-a-pattern")
def test_an_untrained_map_has_a_pattern(trained):
    for one in trained:
        for layer in LAYERS:
            shares = expert_shares(one.before, "domain", layer)
            assert shares.to_numpy().max() > 0.25 and shares.to_numpy().min() < 0.04
            assert differ(shares, "arithmetic", "english") > 0.25
        for layer, least in ((0, 0.55), (1, 0.47)):  # 'about half of the time, or more'
            table = layer_of(one.before, layer)
            favourite = table.groupby("byte")["expert0"].agg(lambda e: e.value_counts().iloc[0]).sum() / len(table)
            assert favourite > max(least, 1.3 * table["expert0"].value_counts(normalize=True).max())


@pytest.mark.claim("english-is-closer-to-code-than-to-cipher")
def test_english_is_closer_to_code_than_to_cipher(trained):
    nearer = []
    for one in trained:
        code, cipher = (overlap(one.after, "english", name) for name in ("code", "cipher"))
        assert cipher + 0.08 < code
        nearer.append(cipher - overlap(one.before, "english", "cipher"))
    assert np.mean(nearer) < 0.03 and max(nearer) < 0.08


@pytest.fixture(scope="module")
def bits(trained) -> list[tuple[pd.DataFrame, ...]]:
    """Of each seed: trained, untrained, shuffled."""
    return [(information(one.after), information(one.before), information(one.after, shuffled=True)) for one in trained]


@pytest.mark.claim("more-about-the-byte-than-the-domain")
def test_more_about_the_byte_than_the_domain(bits):
    for after, _, shuffled in bits:
        byte, domain = after["byte | domain"].mean(), after["domain | byte"].mean()
        assert 1.1 < byte < 1.45 and 0.22 < domain < 0.42 and 3 < byte / domain < 5.5
        assert (after["byte | domain"] > 2 * after["domain | byte"]).all()
        assert after["domain | byte"].min() > 5 * shuffled.abs().to_numpy().max()


@pytest.mark.claim("without-the-auxiliary-loss-the-same")
def test_without_the_auxiliary_loss_the_answer_is_the_same(trained, bits):
    more = []
    for one, (after, *_) in zip(trained, bits):
        free = information(one.free)
        assert free["byte | domain"].mean() > 2.3 * free["domain | byte"].mean()
        more.append(free["domain | byte"].mean() - after["domain | byte"].mean())
        busiest, busiest_free = (8 * expert_shares(t, "layer").to_numpy().max(axis=1) for t in (one.after, one.free))
        assert busiest_free.mean() > busiest.mean() + 0.3
    assert np.mean(more) < 0.04 and max(more) < 0.08


@pytest.mark.claim("what-training-adds")
def test_what_training_adds(bits):
    later = []
    for after, before, _ in bits:
        gain = after - before
        assert gain["byte | domain"].mean() > 2 * gain["domain | byte"].mean()
        assert (gain.loc[1:, "byte | domain"] > 0.3).all()
        later.append(gain.loc[1:, "byte | domain"].mean() - gain.loc[0, "byte | domain"])
    assert min(later) > 0 and np.mean(later) > 0.15


@pytest.mark.claim("as-shares-the-domain-leads-later")
def test_as_shares_the_domain_leads_later(trained, bits):
    lead = []
    for one, (after, *_) in zip(trained, bits):
        table = layer_of(one.after, 0)
        byte, domain = table["byte"], table["domain"]
        most = {
            "byte | domain": mutual_information(byte, byte, given=domain),
            "domain | byte": mutual_information(domain, domain, given=byte),
        }
        assert most == pytest.approx({"byte | domain": 4, "domain | byte": 1}, abs=0.3)
        share = after[list(most)] / most
        later = share.loc[1:].mean()
        assert 0.22 < later["byte | domain"] < 0.3 and 0.27 < later["domain | byte"] < 0.45
        assert later["domain | byte"] > later["byte | domain"] + 0.03
        lead.append(share.loc[0, "byte | domain"] - share.loc[0, "domain | byte"])
    assert min(lead) > 0 and np.mean(lead) > 0.1


@pytest.mark.claim("neighbours-repeat-as-their-domain-does")
def test_neighbours_repeat_as_their_domain_does(trained):
    above_domain = []
    for one in trained:
        after, before = repeats(one.after), repeats(one.before)
        assert (after["repeated"] > 1.05 * after["chance"]).all()
        assert after["repeated"].mean() > 1.4 * after["chance"].mean()
        assert before["repeated"].mean() > 1.2 * after["repeated"].mean()
        ratio = after["repeated"] / after["chance_in_domain"]
        assert ratio.max() < 1.3 and ratio.mean() < 1.15  # 'a little above'
        assert (before["repeated"] / before["chance_in_domain"]).mean() > 1.25
        above_domain.append(ratio.mean())
    assert np.mean(above_domain) < 1.1


@pytest.mark.claim("seeds-agree-a-little")
def test_seeds_agree_a_little(trained):
    for one, other in combinations(trained, 2):
        after, before = agreement(one.after, other.after), agreement(one.before, other.before)
        assert after["agreement"].between(0.12, 0.45).all()
        assert after["agreement"].mean() > 1.5 * before["agreement"].mean()
        assert after["shuffled"].abs().max() < 0.01
