"""Traces against loops over the routing, and information against tables whose answer is known."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from moe_lessons.analysis import (
    expert_shares,
    muted_losses,
    mutual_information,
    real_routing,
    real_told_bits,
    routing_counts,
    shuffled_counts,
    told_bits,
    trace,
    trace_text,
)
from moe_lessons.nn import LanguageModel, TransformerConfig, muted, seeded
from moe_lessons.tasks import BYTE_CLASSES, TextTask, byte_class, encode

SMALL = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 8, "num_experts": 4}


def model_of(seed: int = 0, **options) -> LanguageModel:
    with seeded(seed):
        return LanguageModel(TransformerConfig(**SMALL | options))


@pytest.fixture(scope="module")
def task() -> TextTask:
    return TextTask(["english", "json"], context=32)


def table_of(expert, domain="text", byte=0, sequence=0, layer=0) -> pd.DataFrame:
    table = pd.DataFrame({"sequence": sequence, "byte": byte, "domain": domain, "layer": layer, "expert0": expert})
    table["position"] = table.groupby("sequence").cumcount()
    table["byte_class"] = [BYTE_CLASSES[i] for i in byte_class(torch.tensor(table["byte"].to_numpy()))]
    return table.assign(num_experts=max(expert) + 1)


@pytest.mark.parametrize("router, capacity_factor", [("top-k", 0.5), ("learned noise", None), ("expert choice", None)])
def test_a_trace_says_what_the_routing_says(router, capacity_factor, task):
    model = model_of(router=router, capacity_factor=capacity_factor)
    table = trace(model, task, num_per_domain=3)
    pd.testing.assert_frame_equal(table, trace(model.train(), task, 3))  # no noise
    assert model.training
    x, _, domain = task.held_out(3)
    with torch.no_grad():
        _, routings = model.eval()(x)
    assert len(table) == 2 * x.numel() and set(table["num_experts"]) == {4}
    assert table["domain"].cat.categories.tolist() == ["english", "json"]
    assert table["byte_class"].cat.categories.tolist() == list(BYTE_CLASSES)
    experts, weights = (table.filter(regex=f"^{name}").to_numpy() for name in ("expert", "weight"))
    assert ((experts < 0) == (weights == 0)).all() and (np.diff(weights, axis=1) <= 0).all()
    for row in range(0, len(table), 7):
        at = table.iloc[row]
        sequence, position, routing = at["sequence"], at["position"], routings[at["layer"]]
        assert at["byte"] == x[sequence, position] and at["domain"] == task.domains[domain[sequence]]
        assert at["byte_class"] == BYTE_CLASSES[byte_class(x[sequence, position])]
        mine = (routing.token_idx == sequence * 32 + position).nonzero().flatten().tolist()
        served = {routing.expert_idx[a].item(): routing.weight[a].item() for a in mine}
        assert {e: w for e, w in zip(experts[row], weights[row]) if e >= 0} == pytest.approx(served)


def test_the_trace_of_a_text():
    table = trace_text(model_of(), "aβ 7")
    assert table.query("layer == 1")["byte"].tolist() == encode("aβ 7").tolist()
    kinds = ["letter", "lead byte", "continuation byte", "space", "digit"]
    assert table.query("layer == 0")["byte_class"].tolist() == kinds


@pytest.mark.parametrize("by", ["domain", "byte_class", "layer"])
def test_shares_against_a_count(by, task):
    table = trace(model_of(router="expert choice"), task, 3)
    layer = None if by == "layer" else 1
    shares = expert_shares(table, by, layer)
    assert list(shares) == ["E0", "E1", "E2", "E3"]
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    rows = table if layer is None else table[table["layer"] == layer]
    for group, mine in rows.groupby(by, observed=True):
        experts = mine.filter(regex="^expert").to_numpy()
        for expert in range(4):
            assert shares.loc[group, f"E{expert}"] == pytest.approx((experts == expert).sum() / (experts >= 0).sum())
    assert len(shares) == rows[by].nunique()


def test_experts_that_serve_nobody_have_a_column_and_layers_are_not_pooled():
    shares = expert_shares(table_of([0, 1, 1, 1]).assign(num_experts=4))
    assert shares.loc["text"].to_dict() == {"E0": 0.25, "E1": 0.75, "E2": 0, "E3": 0}
    with pytest.raises(ValueError, match=r"^layer must be one of \[0, 1\] .*, got None$"):
        expert_shares(table_of([0, 1], layer=[0, 1]))


def of_counts(counts) -> tuple[np.ndarray, ...]:
    """Labels that occur together as often as the entries of a table say."""
    return tuple(np.repeat(axis.ravel(), np.ravel(counts)) for axis in np.indices(np.shape(counts)))


def plain(a, b) -> float:
    """Σ p(a, b) log p(a, b) / (p(a) p(b)), in bits, from counts."""
    both = pd.crosstab(a, b).to_numpy() / len(a)
    of_a, of_b = both.sum(axis=1), both.sum(axis=0)
    return sum(p * math.log2(p / of_a[i] / of_b[j]) for (i, j), p in np.ndenumerate(both) if p > 0)


@given(st.lists(st.integers(0, 3), min_size=6, max_size=6).filter(lambda counts: sum(counts) > 1))
def test_information_is_the_jackknife_of_the_formula(counts):
    a, b = of_counts(np.reshape(counts, (2, 3)))
    size = len(a)
    without = np.mean([plain(np.delete(a, i), np.delete(b, i)) for i in range(size)])
    assert mutual_information(a, b) == pytest.approx(size * plain(a, b) - (size - 1) * without, abs=1e-8)


@given(st.lists(st.integers(0, 20), min_size=24, max_size=24).filter(any))
def test_information_is_symmetric_blind_to_names_and_a_sum(counts):
    a, b, c = of_counts(np.reshape(counts, (2, 3, 4)))
    once, both = mutual_information(a, b, given=c), np.array(list("xyz"))[b] + np.char.mod("%d", c)
    assert once == pytest.approx(mutual_information(b, -a, given=c))
    assert once + mutual_information(a, c) == pytest.approx(mutual_information(a, both))  # the chain rule
    table = np.reshape(counts, (2, 3, 4))
    assert mutual_information(table) == pytest.approx(once)
    assert mutual_information(torch.tensor(table).sum(dim=2).float()) == pytest.approx(mutual_information(a, b))


def test_a_control_has_the_same_sums_and_tells_nothing():
    always = np.array([[90, 90, 0, 0], [0, 0, 90, 90]])
    dealt = shuffled_counts(always, seed=1)
    for axis in (0, 1):
        assert dealt.sum(axis=axis).tolist() == always.sum(axis=axis).tolist()
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(0, size, 6000) for size in (8, 60, 6))  # that have nothing to do with each other
    assert abs(mutual_information(a, b)) < 0.01 < plain(a, b) and abs(mutual_information(a, b, given=c)) < 0.07
    assert abs(mutual_information(dealt)) < 0.02 and (dealt != shuffled_counts(always, seed=2)).any()
    for bad in ([1, 2], [[1.5, 2]], [[-1, 2]], [[0, 0]], [["a"]]):
        with pytest.raises(ValueError, match="^counts must be whole numbers of at least 0, .*, got "):
            shuffled_counts(bad)


def test_routing_maps_and_what_they_tell_by_hand():
    expert, domain = np.array([0, 0, 1, 1] * 20), np.array(["a", "a", "b", "b"] * 20)
    whole = table_of([*expert, *[-1] * 40], [*domain, *["a"] * 40])  # of the last 40 none has an expert
    assert expert_shares(whole).loc["a"].tolist() == [1, 0]
    assert routing_counts(whole)[0].to_numpy().tolist() == [[40, 0], [0, 40]]
    rows = table_of([0, 1, 1, 0] * 50 + [-1], ["a", "b"] * 100 + ["a"]).assign(byte=7)  # the last one has no expert
    told = told_bits(rows.assign(byte=[5, 5, 6, 6] * 50 + [5])).loc[0]  # the expert is (byte + previous byte) mod 2
    assert told["previous token | token"] == pytest.approx(1, abs=0.05) and abs(told["token"]) < 0.05
    assert abs(told["domain | both tokens"]) < 0.05  # which both tokens tell
    told = told_bits(table_of([0, 1] * 100, ["a", "b"] * 100).assign(byte=7)).loc[0]
    assert told[["domain", "domain | token", "domain | both tokens"]].tolist() == pytest.approx([1] * 3, abs=0.02)
    pair = table_of([1] * 200, ["a", "b"] * 100).assign(expert1=2, byte=7)  # always {E1, E2}: one bit stays open
    assert told_bits(pair).loc[0, "domain"] == pytest.approx(0, abs=0.02)


def test_a_loss_rises_by_what_a_muted_expert_did(task):
    model = model_of().eval()
    table, traced = muted_losses(model, task, 1, 2), trace(model, task, 2).query("layer == 1")
    ids, targets, _ = task.held_out(2)
    with torch.no_grad():
        with_it, without = (m(ids)[0].mT for m in (model, muted(model, model.layers[1].ffn, 3)))
    rises = cross_entropy(without, targets, reduction="none") - cross_entropy(with_it, targets, reduction="none")
    np.testing.assert_allclose(table["E3"], rises.flatten(), atol=1e-5)
    served = (traced.filter(regex=r"^expert\d") == 3).any(axis=1).to_numpy()
    assert served.any() and table["E3"][~served].abs().max() < 1e-6 < table["E3"][served].abs().max()  # the last layer
    assert (table["byte"].to_numpy() == traced["byte"].to_numpy()).all()
    with pytest.raises(ValueError, match="^layer must be between 0 and 1, got 2$"):
        muted_losses(model, task, 2)


def test_the_counts_of_real_models_are_the_ones_that_their_shares_are_of():
    for name, tables in real_routing().items():
        assert list(real_told_bits()[name].index) == list(tables) and len(tables) == 3
        assert real_told_bits()[name].to_numpy().min() > 0
