"""What lesson 06 says under 'What to notice': of its own model, trained as its laboratory does from three seeds; of the
counts of two real models; and of the classes of transformers."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from everywhere import seeds

from moe_lessons.analysis import (
    distinct_experts,
    expert_shares,
    load_statistics,
    muted_losses,
    mutual_information,
    real_routing,
    routing_counts,
    shuffled_counts,
    told_bits,
    trace,
    trace_text,
    union_law,
)
from moe_lessons.hub import Lens
from moe_lessons.hub.routing_lens import joined
from moe_lessons.nn import LanguageModel, TransformerConfig, load_balancing_loss, seeded
from moe_lessons.support.data import data_path
from moe_lessons.tasks import TextTask
from moe_lessons.training import Run, train

CONFIG = TransformerConfig(d_model=64, num_layers=3, d_ff=32, num_experts=8, top_k=2)
SEEDS, TOPICS = seeds(3), ("sea", "kitchen")
TASK = TextTask([*TOPICS, "code", "arithmetic"])
OLMOE, MIXTRAL, REAL = "OLMoE-1B-7B", "Mixtral 8x7B", real_routing()
TOP_K = {OLMOE: 8, MIXTRAL: 2}


class Trained(NamedTuple):
    model: LanguageModel
    table: pd.DataFrame  # its trace


def untrained(seed: int) -> LanguageModel:
    with seeded(seed):
        return LanguageModel(CONFIG)


@pytest.fixture(scope="module")
def models() -> list[dict[int, Trained]]:
    """The lesson's model of each seed: untrained, after its 300 steps, and after twice as many."""
    found = []
    for seed in SEEDS:
        model = untrained(seed)
        run, own = Run(model, TASK, lr=0.005, batch_size=16, seed=seed), {}
        run.knobs.router_aux_loss_coef = 0.01
        for steps in (0, 300, 600):
            train(run, steps - len(run.records))
            copy = LanguageModel(CONFIG)
            copy.load_state_dict(model.state_dict())
            own[steps] = Trained(copy, trace(copy, TASK, 128))
        found.append(own)
    return found


@pytest.fixture(scope="module")
def bits(models) -> dict[int, list[pd.DataFrame]]:
    """The lesson's bits after some steps, of each seed; topic: between sea and kitchen, given the byte."""
    found = {}
    for steps in models[0]:
        tables = [own[steps].table for own in models]
        topics = [told_bits(table[table["domain"].isin(TOPICS)])["domain | token"] for table in tables]
        found[steps] = [told_bits(table).assign(topic=topic) for table, topic in zip(tables, topics)]
    return found


@pytest.fixture(scope="module")
def others() -> list[pd.DataFrame]:
    """The traces of twenty untrained models."""
    return [trace(untrained(seed), TASK, 32) for seed in seeds(20)]


@pytest.mark.claim("byte-then-context-and-no-topic")
def test_the_choice_tells_of_the_byte_first_and_hardly_of_the_topic(bits, others):
    for table in (*bits[300], *bits[600]):
        assert (table["token"] > 1.15 * table["domain"]).all() and table["topic"].max() < 0.05
    before = [told_bits(table) for table in others]
    assert np.mean([(table["token"] > table["domain"]).all() for table in before]) > 0.8
    left = [(table["domain | token"] / table["domain"]).mean() for table in before]
    assert np.mean(left) < 0.45  # the byte explains most of what an untrained router tells of the domain


@pytest.mark.claim("training-adds-the-previous-token")
def test_training_adds_the_previous_token_which_explains_half_of_the_domain(bits):
    for before, after, later in zip(bits[0], bits[300], bits[600]):
        for trained in (after, later):
            assert (trained["previous token | token"] > 2 * before["previous token | token"]).all()
    left = [(table["domain | both tokens"] / table["domain | token"]).mean() for table in bits[300]]
    assert 0.35 < np.mean(left) < 0.75


@pytest.mark.claim("untrained-maps-tell-of-the-domain")
def test_untrained_maps_tell_of_the_domain_and_differ(models, others):
    def mean_bits(table: pd.DataFrame) -> float:
        return np.mean([mutual_information(counts) for counts in routing_counts(table).values()])

    before = [mean_bits(table) for table in others]
    after = [mean_bits(own[300].table) for own in models]
    assert 0.15 < np.mean(before) < 0.27 and max(before) > 2.2 * min(before) > 0.08
    assert max(before) > min(after) and np.mean(after) > 1.1 * np.mean(before)


@pytest.mark.claim("balance-and-specialisation-are-compatible")
def test_balance_and_specialisation_are_compatible(models):
    for own in models:
        for steps in (300, 600):
            rows = expert_shares(own[steps].table, "domain", 2)
            assert rows.mean().max() < 1.7 / 8 and rows.mean().min() > 0.3 / 8
            assert rows.min(axis=None) < 0.04
    cells = [expert_shares(own[300].table, "domain", 2).max(axis=None) for own in models]
    assert min(cells) > 0.22 and np.mean(cells) > 0.27


@pytest.mark.claim("a-letter-has-a-favourite")
def test_a_letter_has_a_favourite_and_not_a_fixed_expert(models):
    for own in models:
        table = own[300].table.query("byte_class == 'letter'")
        for _, layer in table.groupby("layer"):
            favourite = pd.crosstab(layer["byte"], layer["expert0"]).max(axis=1).sum() / len(layer)
            assert 0.35 < favourite < 0.97  # by chance: some .15
    same = []
    for own in models:
        lines = ("The divers haul the heavy anchor.", "The waiters boil the heavy salad.")
        traces = [trace_text(own[300].model, line).query("layer == 0")["expert0"].to_numpy() for line in lines]
        same.extend(traces[0][20:25] == traces[1][21:26])
    assert np.mean(same) > 0.7  # of the letters of 'heavy'


@pytest.mark.claim("a-map-needs-its-control")
def test_a_map_needs_its_control(models, others):
    for own in models:
        shares = expert_shares(own[300].table, "domain", 2)
        alike = {name: np.minimum(shares.loc["sea"], shares.loc[name]).sum() for name in ("kitchen", "arithmetic")}
        assert alike["kitchen"] > alike["arithmetic"] + 0.12 and alike["kitchen"] > 0.9
    rows = [expert_shares(table, "domain", 2) for table in others]
    assert min((own.max() - own.min()).max() for own in rows) > 0.1
    assert len({own.loc["arithmetic"].idxmax() for own in rows}) > 3  # which one stands out is chance


@pytest.mark.claim("the-busiest-expert-need-not-be-the-most-needed")
def test_the_busiest_expert_need_not_be_the_most_needed(models):
    agree, of_layer = [], {}
    for own in models:
        model, table = own[300]
        idle = []
        for layer in range(3):
            rises = (
                muted_losses(model, TASK, layer).groupby("domain", observed=True)[[f"E{e}" for e in range(8)]].mean()
            )
            shares = expert_shares(table, "domain", layer).loc[list(rises.index)]
            agree.extend(rises.idxmax(axis=1) == shares.idxmax(axis=1))
            idle.append(shares.where(rises < 0.005).max(axis=None))
            of_layer.setdefault(layer, []).append(rises.mean(axis=None))
        assert max(idle[1:]) > 0.15
        assert of_layer[0][-1] > 4 * max(of_layer[1][-1], of_layer[2][-1])
    assert 0.17 < np.mean(agree) < 0.55


@pytest.mark.claim("alike-texts-touch-fewer")
def test_alike_texts_touch_fewer_trained_or_not(models):
    text, _, domain = TASK.held_out(64)
    groups = (text, *(text[domain == number] for number in range(4)))

    def loaded(model: LanguageModel) -> list[float]:  # mixed domains, then each one alone
        return [distinct_experts(model, ids, (8,)).distinct.mean() for ids in groups]

    before = np.mean([loaded(untrained(seed)) for seed in seeds(20)], axis=0)
    assert abs(before[0] - 6.2) < 0.3 and np.abs(before[1:] - 5.45).max() < 0.3
    each = np.array([loaded(own[300].model) for own in models])  # (seeds, 5)
    mixed, alone = each[:, 0], each[:, 1:]
    assert np.abs(mixed - union_law(8, 2, 8)).max() < 0.5 and (alone.max(axis=1) < mixed).all()
    assert (alone.mean(axis=1) < mixed - 0.5).all() and (alone[:, 3] < mixed - 1.2).all()
    wider = (mixed - alone.T).mean(axis=1) - (before[0] - before[1:])  # of each domain
    assert wider[3] > 0.6 and wider[:3].max() < 0.4


def shares_of(table: pd.DataFrame) -> pd.DataFrame:
    return table.div(table.sum(axis=1), axis=0) * table.shape[1]


def test_the_counts_give_the_measures_that_were_read_when_they_were_brought_here():
    read = {  # busiest and least, in even shares; bits of the domain; largest share of a domain; bits of the token
        OLMOE: [(2.10, 0.33, 0.167, 7.8, 0.87), (2.75, 0.46, 0.400, 6.8, 1.17), (2.73, 0.38, 0.501, 7.5, 1.38)],
        MIXTRAL: [(1.18, 0.86, 0.003, 1.3, 0.57), (1.07, 0.93, 0.004, 1.25, 0.46), (1.15, 0.57, 0.009, 1.33, 0.57)],
    }
    tokens = pd.read_csv(data_path("real_tokens.csv")).set_index("model")["token"]
    for name, own in read.items():
        for table, token, wanted in zip(REAL[name].values(), tokens["olmoe" if name == OLMOE else "mistral"], own):
            load, largest = table.sum() / table.sum().mean(), shares_of(table).to_numpy().max()
            found = load.max(), load.min(), mutual_information(table), largest, token
            assert (np.abs(np.subtract(found, wanted)) < (0.006, 0.006, 0.0006, 0.06, 0.025)).all()
            assert table.sum(axis=1).eq(TOP_K[name] * 102 * 2048).all()  # so many tokens of each domain


@pytest.mark.claim("olmoe-has-favourites-and-mixtral-has-none")
def test_olmoe_has_favourites_and_mixtral_has_none():
    for name, tables in REAL.items():
        assert all(load_statistics(table.sum().tolist(), TOP_K[name]).dead == 0 for table in tables.values())
    assert max(shares_of(table).to_numpy().max() for table in REAL[MIXTRAL].values()) < 1.4
    busiest = {name: [table.sum().max() / table.sum().mean() for table in own.values()] for name, own in REAL.items()}
    assert max(busiest[MIXTRAL]) < 1.2 and all(2 < most < 3 for most in busiest[OLMOE])
    idlest = {name: [table.sum().min() / table.sum().mean() for table in own.values()] for name, own in REAL.items()}
    assert idlest[MIXTRAL] == pytest.approx([0.86, 0.93, 0.57], abs=0.01) and max(idlest[OLMOE]) < 0.5
    table = REAL[OLMOE][0]
    domain, expert = shares_of(table).stack().idxmax()
    assert domain == "arxiv" and 8 * table.loc[domain, expert] / table.loc[domain].sum() > 0.95
    assert round(100 * table.loc[domain, expert] / table.loc[domain].sum(), 1) == 12.2  # of 12.5 at most
    assert 0.7 < table.loc[domain, expert] / table[expert].sum() < 0.8


@pytest.mark.claim("olmoe-tells-the-domain-and-mixtral-hardly")
def test_olmoe_tells_the_domain_and_mixtral_hardly():
    told = {name: [mutual_information(table) for table in tables.values()] for name, tables in REAL.items()}
    assert told[OLMOE] == sorted(told[OLMOE]) and told[OLMOE][0] > 0.15 and 0 < max(told[MIXTRAL]) < 0.02
    for table in (table for tables in REAL.values() for table in tables.values()):
        control = max(abs(mutual_information(shuffled_counts(table, seed))) for seed in range(5))
        assert control < 0.0002 < mutual_information(table) / 10


@pytest.mark.claim("both-tell-the-token-first-and-the-domain-when-it-is-known")
def test_both_tell_the_token_first_and_the_domain_when_it_is_known():
    tokens = pd.read_csv(data_path("real_tokens.csv")).set_index("model")
    assert (tokens.token > 2 * tokens.domain).all()
    mixtral, olmoe = tokens.loc["mistral"], tokens.loc["olmoe"]
    assert mixtral.domain.max() < 0.02 and mixtral.domain_given_token.round(2).eq(0.11).all()
    assert round(olmoe.domain.max(), 2) == 0.51 and round(olmoe.domain_given_token.max(), 2) == 0.26
    assert tokens.filter(like="shuffled").abs().max().max() < 0.005


def small_model(name: str, seed: int):
    transformers = pytest.importorskip("transformers", minversion="5.18")
    small = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 3}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 4, "num_experts_per_tok": 2}
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    more = {
        "Mixtral": {"num_local_experts": 8},
        "Olmoe": {"num_experts": 8, "eos_token_id": None},
        "GptOss": {"num_local_experts": 8, "head_dim": 16, "rope_parameters": rope, "num_hidden_layers": 4},
    }[name]
    with seeded(seed):
        return transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**small | more))


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return TextTask(["english", "code", "json", "arithmetic"]).held_out(8)[0]


def pooled_loss(lens: Lens) -> float:
    return load_balancing_loss(joined(list(lens.routings.values()))).item()


@torch.no_grad()
@pytest.mark.claim("the-loss-is-off-unless-you-ask")
def test_the_loss_is_off_unless_you_ask(ids):
    for name in ("Mixtral", "Olmoe", "GptOss"):
        for seed in SEEDS:
            model = small_model(name, seed)
            with Lens(model) as lens:
                alone, asked = (model(ids, labels=ids, output_router_logits=on) for on in (False, True))
            assert getattr(alone, "aux_loss", None) is None
            assert asked.aux_loss.item() == pytest.approx(2 * pooled_loss(lens), rel=1e-5)
            added = model.router_aux_loss_coef * asked.aux_loss
            assert added > 0 and asked.loss.item() == pytest.approx((alone.loss + added).item(), abs=2e-6)


@pytest.mark.claim("softmax-before-or-after-is-the-same")
@torch.no_grad()
def test_softmax_before_or_after_is_the_same():
    for seed in SEEDS:
        x, matrix = torch.randn(58, 64, generator=torch.Generator().manual_seed(seed)).split([50, 8])
        weights = {}
        for name in ("Mixtral", "GptOss", "Olmoe"):
            block = small_model(name, seed).model.layers[0].mlp
            router = block.router if name == "GptOss" else block.gate
            router.weight.copy_(matrix / 2)
            if name == "GptOss":
                router.bias.zero_()
            weights[name] = router(x)[1].float()
        assert (weights["GptOss"] - weights["Mixtral"]).abs().max() < 1e-5
        assert weights["Mixtral"].sum(dim=1).sub(1).abs().max() < 1e-5
        assert 0.5 < weights["Olmoe"].sum(dim=1).mean() < 0.95
