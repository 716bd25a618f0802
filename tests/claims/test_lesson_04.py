"""What lesson 04 says under 'What to notice', of its own model, trained as there from three seeds."""

import re
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from moe_lessons.analysis import agreement, expert_shares, information, mutual_information, repeats, trace
from moe_lessons.nn import LanguageModel, TransformerConfig, seeded
from moe_lessons.tasks import TextTask, decode, encode
from moe_lessons.training import Run

CONFIG = TransformerConfig(d_model=64, num_layers=3, d_ff=32, num_experts=8, top_k=2)
SEEDS, LAYERS = range(3), range(3)
PROMPTS = {
    "english": "The old ",
    "code": "def find_table(",
    "json": '{"id": ',
    "arithmetic": "12+",
    "greek": "Τηε ",
}
LOOKS_LIKE = {  # what is found in a text of each domain
    "english": r"[a-z]+( [a-z]+){2}",
    "code": r"\):\n    |    \w+ = |    return ",
    "json": r'", "',
    "arithmetic": r"\n\d+[+-]\d+=-?\d+\n",
    "greek": r"[α-ωϙϝ]{2,} [α-ωϙϝ]{2,}",
}


class Trained(NamedTuple):
    run: Run
    before: pd.DataFrame
    after: pd.DataFrame


def model_of(seed: int) -> LanguageModel:
    with seeded(seed):
        return LanguageModel(CONFIG)


@pytest.fixture(scope="module")
def trained() -> list[Trained]:
    """The lesson's model after its 300 steps, from each seed, with its traces before and after."""
    task, found = TextTask(["english", "code", "json", "arithmetic", "greek"]), []
    for seed in SEEDS:
        options = {"batch_size": 16, "warmup_steps": 20, "decay_steps": 300, "max_grad_norm": 1.0}
        run = Run(model_of(seed), task, lr=0.005, seed=seed, **options)
        run.knobs.router_aux_loss_coef = 0.01
        before = trace(run.model, task)
        for _ in range(300):
            run.step()
        found.append(Trained(run, before, trace(run.model, task)))
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
        assert loss.index.tolist() == ["json", "code", "english", "greek", "arithmetic"]  # what the lesson prints
        assert loss.diff().min() > 0.05 and loss["arithmetic"] > 1.5 * loss["greek"]
        assert (8 * expert_shares(one.after, "layer")).stack().between(1 / 2.5, 1.9).all()  # in even shares
    assert min(found.values()) >= 10 and sum(found.values()) >= 54, found  # of 12, and of 60


def meet(a: pd.Series, b: pd.Series) -> float:
    """How often a token of a and one of b, drawn at random, have the same expert."""
    return np.prod([np.bincount(e, minlength=8) / len(e) for e in (a, b)], axis=0).sum()


@pytest.mark.claim("same-letter-same-colour")
def test_a_letter_keeps_its_expert_in_layer_0(trained):
    kept, from_english = [], []
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
        assert kept[-1] > max(0.48, 1.6 * chance) and chance < 1 / 3
        shares = expert_shares(one.after, "domain", 0)
        from_english.append({name: differ(shares, "english", name) for name in ("greek", "code")})
    assert np.mean(kept) > 0.53
    from_english = pd.DataFrame(from_english).mean()
    assert from_english["greek"] > max(0.25, from_english["code"] + 0.08)


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


@pytest.mark.claim("classes-are-sharper")
def test_the_map_of_classes_is_sharper(trained):
    def from_even(shares: pd.DataFrame) -> pd.Series:
        return (shares - 1 / 8).abs().sum(axis=1) / 2

    for one in trained:
        tokens = layer_of(one.after, 0)["byte_class"].value_counts(normalize=True)
        weighted = []
        for layer in LAYERS:
            domain, byte_class = (from_even(expert_shares(one.after, by, layer)) for by in ("domain", "byte_class"))
            assert byte_class.mean() > domain.mean() + 0.03
            weighted.append((byte_class * tokens).sum() - domain.mean())
        assert np.mean(weighted) > 0.02  # not only the rare classes
        lead = one.after[one.after["byte_class"] == "lead byte"]
        assert set(lead["domain"]) == {"greek"}


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
            assert favourite > max(least, 1.4 * table["expert0"].value_counts(normalize=True).max())


@pytest.mark.claim("english-is-closer-to-code-than-to-greek")
def test_english_is_closer_to_code_than_to_greek(trained):
    def overlap(table: pd.DataFrame) -> dict[str, float]:
        shares = [expert_shares(table, "domain", layer) for layer in LAYERS]
        return {n: np.mean([1 - differ(s, "english", n) for s in shares]) for n in ("code", "json", "greek")}

    nearer = []
    for one in trained:
        after, before = overlap(one.after), overlap(one.before)
        assert after["greek"] + 0.05 < min(after["code"], after["json"])
        assert before["greek"] + 0.08 < before["code"]
        nearer.append(after["greek"] - before["greek"])
    assert np.mean(nearer) < 0.05 and max(nearer) < 0.15


@pytest.fixture(scope="module")
def bits(trained) -> list[tuple[pd.DataFrame, ...]]:
    """Of each seed: trained, untrained, shuffled."""
    return [(information(one.after), information(one.before), information(one.after, shuffled=True)) for one in trained]


@pytest.mark.claim("more-about-the-byte-than-the-domain")
def test_more_about_the_byte_than_the_domain(bits):
    for after, _, shuffled in bits:
        assert (after["byte | domain"] > 2 * after["domain | byte"]).all()
        assert after["domain | byte"].min() > 5 * shuffled.abs().to_numpy().max()


@pytest.mark.claim("what-training-adds")
def test_what_training_adds(bits):
    later = []
    for after, before, _ in bits:
        assert before.loc[0, "byte | domain"] > 0.8 and before.loc[0, "byte"] > 1
        gain = after - before
        assert gain["byte | domain"].mean() > 2 * gain["domain | byte"].mean()
        assert (gain.loc[1:, "byte | domain"] > 0.3).all()
        later.append(gain.loc[1:, "byte | domain"].mean() - gain.loc[0, "byte | domain"])
    assert min(later) > 0 and np.mean(later) > 0.15


@pytest.mark.claim("as-shares-the-two-are-alike")
def test_as_shares_the_two_are_alike(trained, bits):
    lead = []
    for one, (after, *_) in zip(trained, bits):
        table = layer_of(one.after, 0)
        byte, domain = table["byte"], table["domain"]
        most = {
            "byte | domain": mutual_information(byte, byte, given=domain),
            "domain | byte": mutual_information(domain, domain, given=byte),
        }
        assert most == pytest.approx({"byte | domain": 4, "domain | byte": 1}, abs=0.15)
        share = after[list(most)] / most
        assert share.loc[1:].stack().between(0.19, 0.5).all()
        lead.append(share.loc[0, "byte | domain"] - share.loc[0, "domain | byte"])
    assert min(lead) > 0 and np.mean(lead) > 0.1


@pytest.mark.claim("layers-differ")
def test_layers_differ(trained, bits):
    for one, (after, before, _) in zip(trained, bits):
        rest = []
        for layer in LAYERS:
            table = layer_of(one.after, layer)
            whole = mutual_information(table["expert0"], table["expert0"])
            rest.append(whole - after.loc[layer, "byte"] - after.loc[layer, "domain | byte"])
            if layer == 0:
                assert after.loc[0, "byte"] > 0.6 * whole
        assert after.loc[0, "byte"] > after.loc[1:, "byte"].max() + 0.2
        assert after.loc[0, "domain | byte"] < after.loc[1:, "domain | byte"].min() - 0.02
        assert rest[0] < min(rest[1:]) - 0.1
        rise = after.loc[1:, "domain | byte"].mean() - after.loc[0, "domain | byte"]
        assert np.mean(rest[1:]) - rest[0] > rise + 0.05
        assert before.loc[2, "byte"] < before.loc[0, "byte"] - 0.4
        assert after.loc[2, "byte"] > before.loc[2, "byte"] + 0.3
        assert after["domain"].mean() > 1.7 * after["domain | byte"].mean()
        assert after["byte | domain"].mean() > 1.15 * after["domain"].mean()


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
    same = []
    for one, other in combinations(trained, 2):
        after, before = agreement(one.after, other.after), agreement(one.before, other.before)
        assert after["agreement"].between(0.12, 0.45).all()
        assert after["agreement"].mean() > 1.5 * before["agreement"].mean()
        assert after["shuffled"].abs().max() < 0.01
        number = one.after["expert0"] == other.after["expert0"]
        same += number.groupby(one.after["layer"]).mean().tolist()
    assert max(same) < 1 / 3 and np.mean(same) == pytest.approx(1 / 8, abs=0.06)


@pytest.mark.claim("some-experts-find-a-partner")
def test_some_experts_find_a_partner(trained):
    for one, other in combinations(trained, 2):
        first, second = (layer_of(t.after, 0)["expert0"].to_numpy() for t in (one, other))
        largest = pd.crosstab(first, second, normalize="index").max(axis=1)
        assert largest.max() > 0.45 and largest.min() < 0.4
