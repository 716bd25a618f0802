"""What lesson 06b says under 'What to notice': of the counts of two real models, of small ones, and of real classes."""

import numpy as np
import pandas as pd
import pytest
import torch
from everywhere import seeds

from moe_lessons.analysis import (
    known_share,
    load_statistics,
    mutual_information,
    published_models,
    real_routing,
    shuffled_counts,
)
from moe_lessons.exercises import expert_counts, merged
from moe_lessons.hub import Lens
from moe_lessons.hub.routing_lens import joined
from moe_lessons.nn import LanguageModel, TransformerConfig, load_balancing_loss, seeded
from moe_lessons.nn.families import FAMILIES, difference
from moe_lessons.support.data import data_path
from moe_lessons.tasks import TextTask
from moe_lessons.training import Run, train

SEEDS, OLMOE, MIXTRAL = seeds(3), "OLMoE-1B-7B", "Mixtral 8x7B"
TOP_K, REAL = {OLMOE: 8, MIXTRAL: 2}, real_routing()


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
    assert 0.7 < table.loc[domain, expert] / table[expert].sum() < 0.8


@pytest.mark.claim("olmoe-tells-the-domain-and-mixtral-hardly")
def test_olmoe_tells_the_domain_and_mixtral_hardly():
    share = {name: [known_share(table, TOP_K[name]) for table in tables.values()] for name, tables in REAL.items()}
    assert share[OLMOE] == sorted(share[OLMOE]) and share[OLMOE][0] > 0.06 and 0.18 < share[OLMOE][2] < 0.25
    assert 0 < min(share[MIXTRAL]) and max(share[MIXTRAL]) < 0.01
    for table in (table for tables in REAL.values() for table in tables.values()):
        control = max(abs(mutual_information(shuffled_counts(table, seed))) for seed in range(5))
        assert control < 0.0002 < mutual_information(table) / 10


@pytest.mark.claim("both-tell-the-token-first-and-the-domain-when-it-is-known")
def test_both_tell_the_token_first_and_the_domain_when_it_is_known():
    tokens = pd.read_csv(data_path("real_tokens.csv")).set_index("model")
    olmoe, mixtral = tokens.loc["olmoe"], tokens.loc["mistral"]
    assert (tokens.token_share > 1.5 * tokens.domain_share).all() and (tokens.token > 2 * tokens.domain).all()
    assert (tokens.token_given_domain_share > 1.3 * tokens.domain_given_token_share).all()
    assert mixtral.domain_given_token_share.between(0.08, 0.12).all() and (mixtral.domain_share < 0.01).all()
    assert olmoe.domain_given_token_share.between(0.22, 0.29).all()
    assert tokens.filter(like="shuffled").abs().max().max() < 0.005


@pytest.mark.claim("eight-groups-tell-less-and-still-more-than-mixtral")
def test_eight_groups_tell_less_and_still_more_than_mixtral():
    for layer in (7, 15):
        table, bits = torch.tensor(REAL[OLMOE][layer].to_numpy()), []
        for seed in range(300):
            group = torch.randperm(64, generator=torch.Generator().manual_seed(seed)) // 8
            bits.append(mutual_information(merged.answer(table, group)))
        assert 0.05 < np.mean(bits) < 0.08 and np.mean(bits) < mutual_information(table) / 5
        assert np.mean(bits) > 5 * mutual_information(REAL[MIXTRAL][layer])


@pytest.mark.claim("alike-but-for-the-size-of-experts-they-tell-about-the-same")
@pytest.mark.parametrize("seed, steps", [*((seed, 200) for seed in SEEDS), (SEEDS[0], 400)])
def test_alike_but_for_the_size_of_experts_they_tell_about_the_same(seed, steps):
    task, told = TextTask(["english", "code", "json", "arithmetic"]), {}
    ids, _, of_sequence = task.held_out(64)
    domain, token = torch.as_tensor(of_sequence).repeat_interleave(ids.shape[1]), ids.flatten()

    def tells(model):  # the mean of the layers, of what there is to know about the domain, and about the token
        with torch.no_grad(), Lens(model) as lens:
            model(ids)
        tables = [(r, expert_counts.answer(256 * domain + token, r.token_idx, r.expert_idx, (1024, r.num_experts)))
                  for r in lens.routings.values()]  # fmt: skip
        tables = [(r.top_k, table.reshape(4, 256, -1)) for r, table in tables]
        return np.mean([(known_share(t.sum(dim=1), k), known_share(t.sum(dim=0), k)) for k, t in tables], axis=0)

    for E, K, F in ((8, 2, 32), (32, 8, 8)):
        with seeded(seed):
            model = LanguageModel(TransformerConfig(d_model=64, num_layers=3, d_ff=F, num_experts=E, top_k=K))
        run = Run(model, task, lr=0.005, batch_size=8, seed=seed, warmup_steps=20, decay_steps=steps, max_grad_norm=1.0)
        run.knobs.router_aux_loss_coef = 0.01
        untrained, _ = tells(model)
        train(run, steps)
        told[E], of_token = tells(model)
        assert of_token > 1.3 * told[E] and untrained / told[E] > 1 / 3
    assert 1 / 2 < told[32] / told[8] < 2


@pytest.mark.claim("a-family-changes-a-few-settings")
def test_a_family_changes_a_few_settings():
    released = {"OLMoE": "OLMoE-1B-7B", "Qwen3-MoE": "Qwen3-30B-A3B", "DeepSeek-V3": "DeepSeek-V3"}
    released |= {"gpt-oss": "gpt-oss-20b", "Llama 4": "Llama 4 Scout"}
    sizes, shown = published_models().set_index("name"), {"shared_experts", "router", "num_groups"}
    width = (sizes.d_ff / sizes.d_model)[[MIXTRAL, *released.values()]]
    changed = {name: set(difference(FAMILIES["Mixtral"], FAMILIES[name])[1]) for name in released}
    assert all({"num_experts", "top_k"} <= own for own in changed.values())
    assert width.iloc[0] == 3.5 and width.iloc[1:].max() == 1.6
    assert {name for name, own in changed.items() if own & shown} == {"DeepSeek-V3", "Llama 4"}


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


@pytest.mark.claim("the-pooled-loss-sees-no-collapse")
def test_the_pooled_loss_sees_no_collapse(ids):
    for seed in SEEDS:
        model = small_model("GptOss", seed)
        for i, layer in enumerate(model.model.layers):
            layer.mlp.router.bias.data[2 * i : 2 * i + 2] += 2.0
        with torch.no_grad(), Lens(model) as lens:
            theirs = model(ids, output_router_logits=True).aux_loss / 2
        assert lens.balance()["dead"].eq(6).all() and lens.balance()["load_balancing_loss"].min() > 2.6
        assert abs(theirs - 1) < 0.01 and pooled_loss(lens) == pytest.approx(theirs.item(), rel=1e-5)
        assert min(load_balancing_loss(routing) for routing in lens.routings.values()) > 2.6


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
