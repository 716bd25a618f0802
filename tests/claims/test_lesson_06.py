"""What lesson 06 says under 'What to notice', of its own model, trained as there from three seeds."""

import re
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from everywhere import seeds

from moe_lessons.analysis import expert_shares, mutual_information, repeats, trace, trace_text
from moe_lessons.nn import LanguageModel, TransformerConfig, seeded
from moe_lessons.tasks import TextTask, decode, encode, make_text, text
from moe_lessons.training import Run, train

CONFIG = TransformerConfig(d_model=64, num_layers=3, d_ff=32, num_experts=8, top_k=2)
SEEDS, LAYERS, TOPICS = seeds(3), range(3), ("sea", "kitchen")
WORDS = {name: set(re.findall("[a-z]+", make_text(name, 220_000).lower())) for name in TOPICS}
SHARED = WORDS["sea"] & WORDS["kitchen"]


class Trained(NamedTuple):
    model: LanguageModel
    before: pd.DataFrame
    after: pd.DataFrame


def train_and_trace(seed: int, steps: int = 300) -> Trained:
    task = TextTask([*TOPICS, "code", "arithmetic"])
    with seeded(seed):
        model = LanguageModel(CONFIG)
    options = {"batch_size": 16, "warmup_steps": 20, "decay_steps": steps, "max_grad_norm": 1.0}
    run, before = Run(model, task, lr=0.005, seed=seed, **options), trace(model, task, 128)
    run.knobs.router_aux_loss_coef = 0.01
    train(run, steps)
    return Trained(model, before, trace(model, task, 128))


@pytest.fixture(scope="module")
def trained() -> list[Trained]:
    """The lesson's model after its 300 steps, from each seed, with its traces."""
    return [train_and_trace(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def trained_longer() -> list[Trained]:
    """As the lesson's model, after 800 steps."""
    return [train_and_trace(seed, 800) for seed in SEEDS]


def layer_of(table: pd.DataFrame, layer: int) -> pd.DataFrame:
    return table[table["layer"] == layer]


def told(table: pd.DataFrame) -> pd.DataFrame:
    """The lesson's shares, corrected for the scatter of few tokens, by layer. topic: in words that both topics have."""
    rows = []
    for layer in LAYERS:
        own = layer_of(table, layer)
        passages = bytes(own["byte"].tolist()).decode().lower()
        words = [word.span() for word in re.finditer("[a-z]+", passages) if word[0] in SHARED]
        shared = np.isin(np.arange(len(passages)), [i for span in words for i in range(*span)])
        own = own.assign(form=own["domain"].astype(str).replace(TOPICS, "english"), before=own["byte"].shift(1))
        is_english = own["form"] == "english"
        english, late = own[is_english], own[is_english & shared & (own["position"] >= 32)]
        asked = {"byte": (own, "byte", "form"), "form": (own, "form", "byte")}
        asked |= {"before": (english[english["position"] > 0], "before", "byte"), "topic": (late, "domain", "byte")}
        rows.append({name: share(t["expert0"], t[what], t[given]) for name, (t, what, given) in asked.items()})
    return pd.DataFrame(rows)


def share(expert: pd.Series, what: pd.Series, given: pd.Series) -> float:
    return mutual_information(expert, what, given) / mutual_information(what, what, given)


@pytest.fixture(scope="module")
def shares(trained, trained_longer) -> list[tuple[pd.DataFrame, ...]]:
    """The shares of each seed: untrained, after 300 steps, and after 800."""
    pairs = zip(trained, trained_longer)
    return [tuple(told(table) for table in (one.before, one.after, longer.after)) for one, longer in pairs]


@pytest.mark.claim("byte-then-context-and-no-topic")
def test_the_choice_tells_of_the_byte_then_of_its_context_and_not_of_the_topic(shares):
    """The order holds in the mean of the seeds by a margin, that of the byte and the byte before also for each seed."""
    untrained, *trained = (pd.concat(tables).groupby(level=0).mean() for tables in zip(*shares))  # (layers, questions)
    assert 2 * untrained["before"].max() < min(untrained["byte"][0], untrained["form"][0])
    assert untrained["byte"][0] > untrained["byte"][2] + 0.05
    for table in trained:
        assert table["byte"][0] > table["byte"][2] + 0.03
        assert table["before"][2] > 0.05 + table["before"][0] and table["before"][[1, 2]].min() > 0.1
        assert table["form"][[1, 2]].mean() > 0.04 + max(table["form"][0], untrained["form"][[1, 2]].mean())
        assert table["topic"].max() < 0.05 and (table["form"] > 4 * table["topic"])[[1, 2]].all()
        gains = (table.loc[2] - table.loc[0])[["byte", "before", "topic"]]
        assert gains.idxmax() == "before" and gains["before"] > gains["topic"] + 0.04
    for _, *trained in shares:
        assert all(table["byte"][0] > table["byte"][2] and table["before"][2] > table["before"][0] for table in trained)


@pytest.mark.claim("training-adds-the-byte-and-what-stands-around-it")
def test_training_adds_the_byte_and_what_stands_around_it(shares, trained):
    """Of three seeds; of H(what), and for the byte also of H(expert), of which an untrained router has less."""
    gains = pd.concat([(after - before).loc[[2]] for before, after, _ in shares])
    assert gains[["byte", "before"]].min().min() > 0.1 and gains["form"].min() > 0.08
    assert gains["topic"].abs().max() < 0.04
    for one in trained:
        bits, own = [], []  # of the choice; the share of it that the byte tells
        for table in (layer_of(one.before, 2), layer_of(one.after, 2)):
            form = table["domain"].astype(str).replace(TOPICS, "english")
            bits.append(mutual_information(table["expert0"], table["expert0"]))
            told_of_it = mutual_information(table["expert0"], table["byte"], form)
            own.append(told_of_it / mutual_information(table["expert0"], table["expert0"], form))
        assert bits[1] > bits[0] + 0.15 and own[1] > own[0] + 0.15


@pytest.mark.claim("bits-that-there-are-to-know")
def test_how_many_bits_there_are_to_know(trained):
    table = layer_of(trained[0].before, 0)
    table = table.assign(form=table["domain"].astype(str).replace(TOPICS, "english"), before=table["byte"].shift(1))
    english = table[(table["form"] == "english") & (table["position"] > 0)]
    asked = (table, "byte", "form"), (english, "before", "byte"), (table, "form", "byte"), (english, "domain", "byte")
    bits = [mutual_information(own[what], own[what], own[given]) for own, what, given in asked]
    assert bits == pytest.approx([4.07, 2.67, 0.70, 0.99], abs=0.03)


@pytest.mark.claim("the-model-knows-the-topic")
def test_the_model_knows_the_topic(trained, trained_longer):
    gaps = [words_of_sea(one.model, "sea") - words_of_sea(one.model, "kitchen") for one in trained]
    assert np.mean(gaps) > 0.08  # nine seeds: .05 to .32, .19 in the mean
    assert np.mean([words_of_sea(one.model, "sea") for one in trained_longer]) > 0.62  # with three seeds: .65 to .95
    assert np.mean([words_of_sea(one.model, "kitchen") for one in trained_longer]) < 0.38


def words_of_sea(model: LanguageModel, topic: str) -> float:
    """Of the words that only one topic has, in what the model writes of people of `topic`: the share of the sea."""
    written = []
    for start in (f"The {person} " for person in text.TOPICS[topic]["people"]):
        ids = model.generate(encode(start).expand(32, -1), 48, temperature=0.7)
        lines = [decode(row[len(start) :]).split("\n")[0] for row in ids]
        written += [word for word in re.findall("[a-z]+", " ".join(lines)) if word in WORDS["sea"] ^ WORDS["kitchen"]]
    assert len(written) > 100
    return np.mean([word in WORDS["sea"] for word in written])


def favourite(table: pd.DataFrame, layer: int) -> float:
    """The share of all letters that go to the expert which most tokens of their letter go to."""
    own = layer_of(table, layer).query("byte_class == 'letter'")
    return pd.crosstab(own["byte"], own["expert0"]).max(axis=1).sum() / len(own)


@pytest.mark.claim("a-letter-has-a-favourite")
def test_a_letter_has_a_favourite_in_layer_0_more_than_later(trained):
    shares = [[favourite(one.after, layer) for layer in (0, 2)] for one in trained]  # (seeds, layers)
    first, last = np.mean(shares, axis=0)
    assert 0.65 < first < 0.95 and 0.35 < last < 0.65 and first > last + 0.12
    assert all(early > late for early, late in shares)
    same = []
    for one in trained:
        traces = [
            trace_text(one.model, f"The {text}.")
            for text in ("divers haul the heavy anchor", "waiters boil the heavy salad")
        ]
        for layer in (0, 2):
            first, other = (layer_of(table, layer)["expert0"].to_numpy() for table in traces)
            same.extend(first[20:25] == other[21:26])
    assert np.mean(same) > 0.7  # of the letters of 'heavy', in both layers


def overlap(table: pd.DataFrame, a: str, b: str) -> float:
    """What the rows of two domains have in common in the map of layer 1."""
    shares = expert_shares(table, "domain", 1)
    return np.minimum(shares.loc[a], shares.loc[b]).sum()


@pytest.mark.claim("a-map-needs-its-control")
def test_a_map_needs_its_control(trained):
    for one in trained:
        for table in (one.before, one.after):
            assert overlap(table, "sea", "kitchen") > overlap(table, "sea", "arithmetic") + 0.12
    assert np.mean([overlap(one.after, "sea", "kitchen") for one in trained]) > 0.9
    assert np.mean([expert_shares(one.before, "domain", 1).to_numpy().max() for one in trained]) > 0.27


@pytest.mark.claim("neighbours-repeat-as-their-domain-does")
def test_neighbours_repeat_as_their_domain_does(trained):
    for one in trained:
        after, before = repeats(one.after), repeats(one.before)
        assert after["repeated"].mean() > 1.1 * after["chance"].mean()
        assert (after["repeated"] / after["chance_in_domain"]).between(0.5, 1.6).all()
        assert (before["repeated"] > 1.1 * after["repeated"])[[1, 2]].all()
